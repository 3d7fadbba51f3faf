"""The door under schemathesis: requests that nobody would write, made of its own document.

A request that is not answered within `ANSWER_S` is a failure. Everything stays on loopback, ends
by itself, and is the same in each run.
"""

import asyncio
import json
import os
import sys
from collections import Counter
from pathlib import Path

import httpx2
import pytest

from mesh.access import Access
from mesh.connection import Connection
from mesh.directory import Directory
from mesh.shim.rules import Rules
from tests.conftest import Running, until
from tests.shim import CHAT, ask, online, serving, speaker

ROOT = Path(__file__).parent.parent.parent
ANSWER_S = 5
RUN_S = 80
EXAMPLES = 30
CONFIG = """
[checks]
# A deadline of a millisecond is valid, and it passes.
not_a_server_error.expected-statuses = ["2xx", "4xx", 504]
# The door takes more than it documents: empty headers, words for true and false.
negative_data_rejection.enabled = false

[[operations]]
# Whom these are about can be said in several places, which must agree, and must be there; and what
# an agent refused is refused when it is read again.
include-operation-id = [
  "createChatCompletion", "createResponse", "askAgent", "testConnections", "streamCall",
]
checks.positive_data_acceptance.enabled = false

# Each request is tried without it too, and must be refused.
[auth.openapi.apiKey]
bearer = "${FUZZED_KEY}"
"""
AGENT = "echo"
"""Whom the examples of the document ask."""


async def finished_call(base: str, token: str) -> str:
    """Make a call, and return its id when it has its answer."""
    key = {"authorization": f"Bearer {token}"}
    async with httpx2.AsyncClient(base_url=base, headers=key) as client:
        stored = await client.post(CHAT, json=ask(AGENT, background=True))
        call_id: str = stored.json()["id"]

        async def is_answered() -> bool:
            seen = await client.get(f"/v1/calls/{call_id}")
            return bool(seen.json()["state"] == "answered")

        await until(is_answered)
        return call_id


async def fuzz(base: str, folder: Path, call_id: str, token: str) -> tuple[int, str]:
    """Run schemathesis in `folder`; returns how it ended, and what it said."""
    (folder / "schemathesis.toml").write_text(CONFIG)
    command = [
        *(sys.executable, "-m", "schemathesis.cli", "run", f"{base}/openapi.json"),
        *("--phases", "examples,coverage,fuzzing", "--max-examples", str(EXAMPLES)),
        *(
            "--request-timeout",
            str(ANSWER_S),
            "--seed",
            "1",
            "--generation-database",
            "none",
            "--warnings",
            "off",
            "--no-color",
        ),
        *("--report", "ndjson", "--report-ndjson-path", str(folder / "events.ndjson")),
    ]
    environ = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "SCHEMATHESIS_HOOKS": "tests.openapi_hooks",
        "FUZZED_AGENT": AGENT,
        "FUZZED_CALL": call_id,
        "FUZZED_KEY": token,
    }
    process = await asyncio.create_subprocess_exec(
        *command,
        cwd=folder,
        env=environ,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    try:
        output, _ = await asyncio.wait_for(process.communicate(), RUN_S)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    return process.returncode or 0, output.decode()


def statuses(folder: Path) -> dict[str, Counter[int]]:
    """Return how often each operation answered how, by the report of a run."""
    found: dict[str, Counter[int]] = {}
    for line in (folder / "events.ndjson").read_text().splitlines():
        recorded = json.loads(line).get("ScenarioFinished", {}).get("recorder", {})
        for one in recorded.get("interactions", {}).values():
            if one.get("response"):
                counted = found.setdefault(recorded["label"], Counter())
                counted[one["response"]["status_code"]] += 1
    return found


@pytest.mark.timeout(RUN_S + 10)
async def test_no_request_breaks_the_door_or_its_word(
    connection: Connection, directory: Directory, running: Running, tmp_path: Path
) -> None:
    """No failure of the server, no hang, nothing without a key, and nothing undocumented."""
    async with (
        online(running, directory, speaker(AGENT)),
        serving(connection, directory, Rules(requires_keys=True)) as base,
    ):
        token = (await Access(connection).create("of the fuzzer")).token
        call_id = await finished_call(base, token)
        ended, output = await fuzz(base, tmp_path, call_id, token)
    assert ended == 0, output
    seen = statuses(tmp_path)
    # Whether it names an agent that nobody knows is chance; `test_shim_inputs` holds that 404.
    assert {200, 202, 400} <= seen[f"POST {CHAT}"].keys()
    assert {200, 400} <= seen["POST /v1/responses"].keys()
    assert {200, 404} <= seen["GET /v1/calls/{id}"].keys()
