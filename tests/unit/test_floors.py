"""The floors of the house: a module imports only from below, and nothing is imported late."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent

FLOORS: tuple[tuple[str, frozenset[str]], ...] = (
    ("schemas", frozenset({"schemas"})),
    ("errors", frozenset({"mesh.errors", "mesh.version"})),
    (
        "grammar",
        frozenset(
            {
                "mesh.subjects",
                "mesh.headers",
                "mesh.log_lines",
                "mesh.metrics",
                "mesh.tracing",
                "mesh.claims",
                "mesh.codec",
                "mesh.settings",
                "mesh.loader",
                "mesh.frames",
                "mesh.completions",
                "mesh.streams",
                "mesh.tool_calls",
            }
        ),
    ),
    ("trust", frozenset({"mesh.trust"})),
    (
        "transport",
        frozenset(
            {
                "mesh.attachments",
                "mesh.background",
                "mesh.child",
                "mesh.chunks",
                "mesh.heap",
                "mesh.shared_timer",
                "mesh.nats_client",
                "mesh.objects",
                "mesh.parcels",
                "mesh.uploads",
                "mesh.dispatch",
                "mesh.clock",
                "mesh.publisher",
                "mesh.connection",
                "mesh.elections",
                "mesh.exposition",
                "mesh.otlp",
                "mesh.silence",
                "mesh.signatures",
                "mesh.provision",
                "mesh.history",
                "mesh.delivery",
                "mesh.pulls",
                "mesh.group_pull",
                "mesh.replies",
                "mesh.stand_in",
                "mesh.dead_letters",
                "mesh.pressure",
                "mesh.pings",
                "mesh.requests",
                "mesh.broker",
                "mesh.broker_data",
                "mesh.broker_setup",
                "mesh.server_folders",
                "mesh.supervisor",
                "mesh.uplink",
            }
        ),
    ),
    (
        "registry",
        frozenset(
            {
                "mesh.access",
                "mesh.registry",
                "mesh.records",
                "mesh.standing",
                "mesh.directory",
                "mesh.grouping",
                "mesh.heartbeat",
                "mesh.presence",
                "mesh.enrolment",
                "mesh.joining",
            }
        ),
    ),
    (
        "client, agent",
        frozenset(
            {
                "mesh.callers",
                "mesh.calls",
                "mesh.questions",
                "mesh.ledger",
                "mesh.followers",
                "mesh.inbox",
                "mesh.outbox",
                "mesh.retries",
                "mesh.client",
                "mesh.context",
                "mesh.agent",
                "mesh.activity",
                "mesh.call_trace",
                "mesh.traffic",
                "mesh.traffic_log",
            }
        ),
    ),
    (
        "runtime",
        frozenset(
            {
                "mesh.admission",
                "mesh.place",
                "mesh.invocation",
                "mesh.runs",
                "mesh.handling",
                "mesh.execution",
                "mesh.worker",
                "mesh.workforce",
                "mesh.events",
                "mesh.micro",
                "mesh.runtime",
            }
        ),
    ),
    (
        "probes",
        frozenset(
            {
                "mesh.nats_probes",
                "mesh.http_probes",
                "mesh.prober",
                "mesh.probes",
                "mesh.probe_report",
            }
        ),
    ),
    ("shim | handlers", frozenset({"mesh.shim", "handlers"})),
    ("cli", frozenset({"mesh.cli", "mesh.__main__"})),
)

LATE_IMPORTS_ALLOWED = ("mesh.cli",)
"""Start-up time: a command imports what it needs when it runs."""
FACADE = "mesh"
"""`mesh/__init__.py` names what users import, and loads it on use."""


def modules() -> dict[str, Path]:
    """Return every module of the house, by dotted name."""
    found = {}
    for folder in ("schemas", "mesh", "handlers"):
        for path in (ROOT / folder).rglob("*.py"):
            parts = path.relative_to(ROOT).with_suffix("").parts
            name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
            found[name] = path
    return found


MODULES = modules()


def floor_of(module: str) -> int:
    """Return the floor a module stands on."""
    for number, (_, members) in enumerate(FLOORS):
        if module in members or any(module.startswith(f"{one}.") for one in members):
            return number
    raise AssertionError(f"{module} stands on no floor: give it one in {__file__}")


def imported(module: str) -> Iterator[tuple[str, bool, bool]]:
    """Yield what a module imports of the house: name, whether late, whether only for types."""
    tree = ast.parse(MODULES[module].read_text())
    typing_only = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        for inner in ast.walk(node)
    }
    late = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, f"{module}: relative import"
            whole = [f"{node.module}.{alias.name}" for alias in node.names]
            names = [one if one in MODULES else node.module for one in whole]
        for name in names:
            yield name, id(node) in late, id(node) in typing_only


@pytest.mark.parametrize("module", sorted(set(MODULES) - {FACADE}))
def test_imports_only_go_down(module: str) -> None:
    """A module imports from its own floor or from below."""
    floor = floor_of(module)
    for name, _, is_type in imported(module):
        if name not in MODULES or name == FACADE or is_type:
            continue
        above = FLOORS[floor_of(name)][0]
        assert floor_of(name) <= floor, (
            f"{module} on floor {FLOORS[floor][0]!r} imports {name} on floor {above!r}"
        )


@pytest.mark.parametrize("module", sorted(MODULES))
def test_nothing_is_imported_late(module: str) -> None:
    """No import hides in a function, except in the command line."""
    if module.startswith(LATE_IMPORTS_ALLOWED):
        return
    late = [name for name, is_late, _ in imported(module) if is_late]
    assert not late, f"{module} imports {late} inside a function"


def test_there_is_no_cycle() -> None:
    """Modules of one floor may import each other, but never in a circle."""
    graph = {
        module: {name for name, late, typed in imported(module) if name in MODULES and not typed}
        - {FACADE}
        for module in MODULES
        if module != FACADE and not module.startswith(LATE_IMPORTS_ALLOWED)
    }
    done: set[str] = set()

    def visit(module: str, path: tuple[str, ...]) -> None:
        assert module not in path, f"a cycle: {' > '.join((*path, module))}"
        if module in done:
            return
        for name in graph.get(module, ()):
            visit(name, (*path, module))
        done.add(module)

    for module in graph:
        visit(module, ())


def test_only_handlers_know_faststream() -> None:
    """FastStream is the framework of `handlers/`; the data path does not need it."""
    users = {
        module
        for module in MODULES
        for name, _, _ in imported(module)
        if name.partition(".")[0] == "faststream"
    }
    assert all(module.startswith("handlers.") for module in users), users


def test_the_shim_and_the_handlers_do_not_know_each_other() -> None:
    """The HTTP edge and the NATS edge are neighbours, not friends."""
    for module in MODULES:
        others = {name.partition(".")[0] for name, _, _ in imported(module)}
        if module.startswith("mesh.shim"):
            assert "handlers" not in others
        if module.startswith("handlers"):
            assert not any(name.startswith("mesh.shim") for name, _, _ in imported(module))


def test_the_nats_folder_is_no_package() -> None:
    """A Python file in `nats/` would shadow nats-py."""
    assert not list((ROOT / "nats").rglob("*.py"))


def test_no_module_is_a_drawer() -> None:
    """Nothing is called utils, helpers, common or misc."""
    names = {part for module in MODULES for part in module.split(".")}
    assert not names & {"utils", "util", "helpers", "common", "misc"}
