"""wrk, run for one point: its rate and its latencies."""

import asyncio
import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import orjson

from scripts.benchmarks.processes import BenchError

SCRIPT: Final = Path(__file__).with_name("chat.lua")
QUESTION: Final = "hello from the bench"
MISSING: Final = "wrk is missing: install it (Debian: apt install wrk; macOS: brew install wrk)"


@dataclass(frozen=True, slots=True)
class Point:
    """What wrk saw."""

    rate: float
    """Answers per second."""
    p50_ms: float
    p99_ms: float


@dataclass(frozen=True, slots=True)
class Target:
    """Whom to ask, and what."""

    url: str
    """Without the path."""
    model: str
    header: str = ""
    """As `name: value`, if it wants one."""
    path: str = "/v1/chat/completions"
    body: bytes = b""
    """Empty for a chat request."""


def is_installed() -> bool:
    """Tell whether wrk can be run."""
    return shutil.which("wrk") is not None


def question(model: str, text: str = QUESTION, *, stream: bool = False) -> bytes:
    """Return the body of a chat request, the same for everybody but the model."""
    messages = [{"role": "user", "content": text}]
    return orjson.dumps({"model": model, "messages": messages, "stream": stream})


async def measure(target: Target, connections: int, seconds: float) -> Point:
    """Ask `target` again and again on `connections` connections.

    Raises:
        BenchError: a request failed, or none was answered.
    """
    body = target.body or question(target.model)
    environ = {**os.environ, "BENCH_BODY": body.decode(), "BENCH_HEADER": target.header}
    process = await asyncio.create_subprocess_exec(
        *("wrk", "-t1", f"-c{connections}", f"-d{max(1, round(seconds))}s", "--timeout", "30s"),
        *("-s", str(SCRIPT), target.url + target.path),
        env=environ,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    output, _ = await process.communicate()
    if process.returncode:
        raise BenchError(f"wrk failed: {output.decode(errors='replace')}")
    found = json.loads(output.splitlines()[-1])
    if found["failed"] or not found["requests"]:
        raise BenchError(f"{target.url} with {connections} connections: {found}")
    return Point(found["rate"], found["p50_ms"], found["p99_ms"])
