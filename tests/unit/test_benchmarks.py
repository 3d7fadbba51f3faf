"""The benches of `scripts/bench`: what they work out, and in which order they measure."""

import asyncio
import os
import sys
from pathlib import Path

import pytest

from mesh import codec
from mesh.directory import Directory
from mesh.registry import Entry
from schemas.registry import Instance, Role, State
from scripts.benchmarks import every, lookups, sizes, trees
from scripts.benchmarks.__main__ import MODULES
from scripts.benchmarks.crowds import costs, per_call
from scripts.benchmarks.figures import Figure, Limit, NotRun, Row, of_rounds, row_of, table
from scripts.benchmarks.loads import WARM_UP, load, load_for, quantiles_ms
from scripts.benchmarks.peers.sized_agent import answer_to
from scripts.benchmarks.processes import ROOT, BenchError, running
from scripts.benchmarks.resources import commands_below, cpu_us_of, memory_of
from scripts.benchmarks.rounds import Measured, beside, in_turns


async def test_sites_take_turns() -> None:
    """Each once a round; who was last is first then."""
    asked: list[str] = []

    async def measure(site: str) -> Measured:
        asked.append(site)
        return {"rate": float(len(asked))}

    found = await in_turns(["a", "b"], 3, measure)
    assert asked == ["b", "a", "a", "b", "b", "a"]
    assert found == {
        "a": [{"rate": 2.0}, {"rate": 3.0}, {"rate": 6.0}],
        "b": [{"rate": 1.0}, {"rate": 4.0}, {"rate": 5.0}],
    }


def test_a_ratio_is_of_one_round() -> None:
    """Not of the medians: what slows the machine down slows both down."""
    reference = [{"rate": 100.0}, {"rate": 10.0}, {"rate": 1000.0}]
    ours = [{"rate": 50.0}, {"rate": 6.0}, {"rate": 400.0}]
    (row,) = beside("calls", reference, ours, {"rate": "calls/s"}, {"rate": Limit(least=0.6)})
    assert row == Figure("calls: calls/s", 50.0, Limit(least=0.6), reference=100.0, ratio=0.5)
    assert row.is_kept is False


def test_a_round_below_the_clock_has_no_ratio() -> None:
    """Processor time comes in ticks of 10 ms: a short round may take none."""
    assert of_rounds("cpu", [(0.0, 1.0), (2.0, 1.0)]).ratio == 0.5
    assert of_rounds("cpu", [(0.0, 1.0)]).ratio is None


@pytest.mark.parametrize(
    "row",
    [
        Figure("memory, MB", 62.5, Limit(most=80, unit="MB")),
        Figure("calls/s", 5.0, Limit(least=0.85), reference=10.0, ratio=0.5),
        NotRun("first paint", "there is no Chromium"),
    ],
)
def test_a_row_is_the_same_after_json(row: Row) -> None:
    """`scripts/bench all` reads what each bench prints."""
    assert row_of(row.as_json()) == row
    assert row.name in table([row], judge=True)


async def test_a_load_is_as_large_as_it_says() -> None:
    """So many calls, so many at once; the first ones warm up, and do not count."""
    made = now = most = settled_after = 0

    async def ask() -> None:
        nonlocal made, now, most
        now += 1
        most = max(most, now)
        await asyncio.sleep(0)
        now -= 1
        made += 1

    def settle() -> None:
        nonlocal settled_after
        settled_after = made

    measured = await load(ask, 40, 8, settle)
    assert (most, settled_after) == (8, 8 * WARM_UP)
    assert made == measured["made"] == 8 * WARM_UP + 40


async def test_a_load_by_time_ends_with_what_is_under_way() -> None:
    """Nothing begins after its end, and all that has begun is answered and counts."""
    begun = ended = 0

    async def ask() -> None:
        nonlocal begun, ended
        begun += 1
        await asyncio.sleep(0.01)
        ended += 1

    measured = await load_for(ask, 0.05, 4)
    assert begun == ended == measured["made"] >= 4
    assert measured["p50_ms"] >= 10


def test_what_a_call_takes_is_told_by_group() -> None:
    """Of all processes of a group together, with the cores that all groups kept busy."""
    with costs({"agents_us": [os.getpid()], "broker_us": []}) as taken:
        pass
    assert taken.keys() == {"agents_us", "broker_us", "elapsed_s", "idle_cores"}
    made = {"agents_us": 1_000_000.0, "broker_us": 500_000.0, "elapsed_s": 1.0, "idle_cores": 0.5}
    assert per_call(made, 10_000) == {
        "agents_us": 100.0,
        "broker_us": 50.0,
        "cores": 1.5,
        "idle_cores": 0.5,
        "other_cores": max(0.0, (os.cpu_count() or 1) - 2.0),
    }


def test_a_body_of_the_bench_is_as_large_as_it_says() -> None:
    """Question or answer, whichever is the large one; the other is a word."""
    wanted = sizes.points(1.0)
    assert {one.kb for one in wanted if one.in_flight == 8} == set(sizes.FITTING)
    for one in wanted:
        asked, told = one.text, answer_to(one.text)
        large, small = (asked, told) if one.large == sizes.QUESTION else (told, asked)
        assert (len(large), len(small) < 20) == (one.kb * sizes.KB, True)
        sizes.require_whole(one, told)
    with pytest.raises(BenchError, match="characters"):
        sizes.require_whole(wanted[-1], "short")


def test_quantiles() -> None:
    """The middle one and the hundredth slowest, in ms."""
    taken = quantiles_ms([number / 1_000 for number in range(100, 0, -1)])
    assert taken == {"p50_ms": 51.0, "p99_ms": 100.0}


def test_what_is_looked_up_is_what_the_registrar_writes() -> None:
    """A directory that reads it shows every agent online, on its node."""
    directory, ids = Directory(), [f"agent{number}" for number in range(150)]
    registrar = Instance(instance="r1", node="node1", role=Role.REGISTRAR)
    records = [("instance.r1", registrar), *lookups.records_of(ids)]
    for revision, (key, value) in enumerate(records, start=1):
        directory.apply(Entry(key, codec.encode(value), revision))
    views = directory.agents()
    assert [one.card.id for one in views] == sorted(ids)
    assert {(one.state, one.nodes, len(one.instances)) for one in views} == {
        (State.ONLINE, ("node1",), 1)
    }
    rows = lookups.looked_up(directory, ids, 10)
    assert "150 agents: require_target(), p99 µs" in [row.name for row in rows]


def test_a_checkout_is_run_beside_this_bench(tmp_path: Path) -> None:
    """Its own mesh and handlers, with our `scripts`; what is no checkout is refused."""
    tree = trees.plant(ROOT, tmp_path / "tree")
    assert (tree.folder / "mesh").resolve() == ROOT / "mesh"
    assert (tree.folder / "scripts").resolve() == ROOT / "scripts"
    assert tree.python("mesh", "up")[:3] == ["env", "-C", str(tree.folder)]
    with pytest.raises(BenchError, match="no checkout"):
        trees.plant(tmp_path, tmp_path / "other")


def test_the_mesh_of_another_checkout_is_told(tmp_path: Path) -> None:
    """Two that are the same by mistake would look equally fast."""
    trees.require_mesh_of(ROOT, str(ROOT / "mesh" / "__init__.py"))
    with pytest.raises(BenchError, match="was to be run"):
        trees.require_mesh_of(tmp_path, str(ROOT / "mesh" / "__init__.py"))


def test_what_a_process_takes() -> None:
    """As Linux tells it, of this one."""
    with cpu_us_of({"here": os.getpid()}) as taken_us:
        memory = memory_of(os.getpid())
    assert 0 < memory.uss_mb <= memory.pss_mb <= memory.rss_mb
    assert taken_us["here"] >= 0
    assert os.getpid() in [pid for pid, _ in commands_below(os.getppid())]


def test_all_runs_every_bench() -> None:
    """In a quick run all but those that need an environment of their own, and it says so."""
    assert [one.name for one in every.BENCHES] == [name for name in MODULES if name != "all"]
    (peers,) = [one for one in every.BENCHES if one.left_out]
    (row,) = every.run(peers, is_quick=True)
    assert isinstance(row, NotRun)
    assert not every.is_failed(peers, [row], is_quick=True)
    assert every.is_failed(peers, [row], is_quick=False)


def test_the_command_names_every_bench() -> None:
    """In its head, and in the table of what costs what."""
    head = (ROOT / "scripts" / "bench").read_text()
    page = (ROOT / "docs" / "performance.md").read_text()
    for name in MODULES:
        assert f"scripts/bench {name}" in head.replace("[calls]", "calls")
        assert f"`scripts/bench {name}" in page


async def test_a_process_that_ends_is_not_waited_for() -> None:
    """What it said last is told, at once."""
    command = (sys.executable, "-c", "print('no such thing'); raise SystemExit(3)")
    async with asyncio.timeout(10):
        with pytest.raises(BenchError, match="ended with 3, and did not say 'ready'") as caught:
            async with running("peer", command) as said:
                await said.says("ready")
    assert "no such thing" in str(caught.value)
