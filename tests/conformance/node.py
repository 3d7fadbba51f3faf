"""Scripts in tests/node, each run in a fresh Node.js against a door."""

import asyncio
import os
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import orjson
import pytest

FOLDER = Path(__file__).parents[1] / "node"

Ask = Callable[[str, str], Awaitable[Any]]
"""Runs a scenario of a script against an agent, and returns what it tells."""


def node_binary() -> Path:
    """Return a Node.js that is new enough, with the packages beside it."""
    modules = FOLDER / "node_modules"
    if os.environ.get("MESH_TEST_NO_NPM") or not (modules / ".mesh-setup").exists():
        pytest.skip("NOT RUN: the JavaScript clients are not installed; scripts/node-env does it")
    # One of npm's own, where the machine's is too old for the clients.
    return next(modules.glob("node-*/bin/node"), Path("node"))


def script(name: str, url: str) -> Ask:
    """Return the scenarios of a script, against the door at `url`."""
    node = node_binary()

    async def run(scenario: str, agent_id: str) -> Any:
        process = await asyncio.create_subprocess_exec(
            *(str(node), name, scenario, f"{url}/v1", agent_id),
            cwd=FOLDER,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        try:
            told, complaint = await asyncio.wait_for(process.communicate(), 30)
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        assert process.returncode == 0, complaint.decode()
        return orjson.loads(told)

    return run
