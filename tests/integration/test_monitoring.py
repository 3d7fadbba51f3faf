"""The dashboard and the alerts in `docs/monitoring` are of metrics that there are, and work."""

import asyncio
import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from mesh.exposition import REGISTRY, told

FOLDER = Path(__file__).parents[2] / "docs" / "monitoring"
NAME = re.compile(r"\b(?:mesh|process)_[a-z_]+")


def expressions() -> list[str]:
    """Return every expression of the dashboard."""
    dashboard: dict[str, Any] = json.loads((FOLDER / "dashboard.json").read_text())
    return [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]


def names() -> set[str]:
    """Return the name of every series that a process of the mesh can have."""
    found = set()
    for metric in REGISTRY.collect():
        found |= {metric.name, f"{metric.name}_total", f"{metric.name}_bucket"}
    return found


@pytest.mark.parametrize("file", ["dashboard.json", "alerts.yml", "alerts.test.yml"])
def test_what_is_shown_is_counted(file: str) -> None:
    """No panel and no alert looks for what nobody tells."""
    asked = set(NAME.findall((FOLDER / file).read_text()))
    assert asked
    assert asked <= names()


async def promtool(*arguments: str, cwd: Path) -> None:
    """Let Prometheus's own tool look, and fail with what it says."""
    if shutil.which("promtool") is None:
        pytest.skip("NOT RUN: there is no promtool; `apt-get install prometheus` brings it")
    process = await asyncio.create_subprocess_exec(
        "promtool",
        *arguments,
        cwd=cwd,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    said, _ = await asyncio.wait_for(process.communicate(), 60)
    assert process.returncode == 0, said.decode()


@pytest.mark.parametrize(
    "arguments",
    [
        ("check", "rules", "alerts.yml"),
        ("test", "rules", "alerts.test.yml"),
        ("check", "config", "prometheus.yml"),
    ],
    ids=" ".join,
)
async def test_prometheus_takes_it(arguments: tuple[str, ...]) -> None:
    """And each alert fires when it must."""
    await promtool(*arguments, cwd=FOLDER)


async def test_prometheus_reads_every_panel(tmp_path: Path) -> None:
    """As rules, which its tool checks."""
    rules = [
        {"record": f"panel:{number}", "expr": expression.replace("$agent", ".*")}
        for number, expression in enumerate(expressions())
    ]
    # JSON is YAML.
    text = json.dumps({"groups": [{"name": "panels", "rules": rules}]})
    (tmp_path / "panels.yml").write_text(text)
    await promtool("check", "rules", "panels.yml", cwd=tmp_path)


async def test_prometheus_takes_our_metrics() -> None:
    """Names, units and help are as Prometheus wants them."""
    if shutil.which("promtool") is None:
        pytest.skip("NOT RUN: there is no promtool; `apt-get install prometheus` brings it")
    process = await asyncio.create_subprocess_exec(
        *("promtool", "check", "metrics"),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    said, _ = await asyncio.wait_for(process.communicate(told()), 60)
    assert process.returncode == 0, said.decode()
