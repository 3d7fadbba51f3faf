"""The browser's presence hook, by node's own test runner on a fake clock: plain, and in React."""

import asyncio
import os

from tests.conformance.node import FOLDER, node_binary


async def test_the_hook() -> None:
    """Every test of `tests/node/presence.test.mjs`."""
    process = await asyncio.create_subprocess_exec(
        *(str(node_binary()), "--test", "presence.test.mjs"),
        cwd=FOLDER,
        env={**os.environ, "NODE_NO_WARNINGS": "1"},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    told, _ = await asyncio.wait_for(process.communicate(), 60)
    assert process.returncode == 0, told.decode()
    assert b"# pass 12" in told or "\u2139 pass 12".encode() in told, told.decode()
