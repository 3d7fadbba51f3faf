"""The load that every bench puts on who answers: so many calls, so many of them at once.

Knows nothing of the mesh, so that it runs in the environments of its peers as well.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Final

Ask = Callable[[], Awaitable[None]]
"""Makes one call, and returns when it is answered."""
WARM_UP: Final = 5
"""Calls that do not count, of each that are in flight."""
LABELS: Final = {"rate": "calls/s", "p50_ms": "p50 ms", "p99_ms": "p99 ms"}


async def load(
    ask: Ask, calls: int, in_flight: int, settle: Callable[[], object]
) -> dict[str, float]:
    """Make `calls` calls, `in_flight` at once, and return what they took.

    `settle` runs between warming up and measuring. `made` are all calls, the first ones included.
    """
    took_s: list[float] = []
    each = max(1, calls // in_flight)

    async def work(count: int) -> None:
        for _ in range(count):
            start = time.perf_counter()
            await ask()
            took_s.append(time.perf_counter() - start)

    await asyncio.gather(*(work(WARM_UP) for _ in range(in_flight)))
    settle()
    took_s.clear()
    start = time.perf_counter()
    await asyncio.gather(*(work(each) for _ in range(in_flight)))
    elapsed_s = time.perf_counter() - start
    return {
        "rate": len(took_s) / elapsed_s,
        **quantiles_ms(took_s),
        "made": len(took_s) + WARM_UP * in_flight,
    }


async def load_for(ask: Ask, seconds: float, in_flight: int) -> dict[str, float]:
    """Make calls for so many seconds, `in_flight` at once, and return what they took.

    Those that are under way then are waited for, and count.
    """
    took_s: list[float] = []
    start = time.perf_counter()

    async def work() -> None:
        while (begun := time.perf_counter()) < start + seconds:
            await ask()
            took_s.append(time.perf_counter() - begun)

    await asyncio.gather(*(work() for _ in range(in_flight)))
    elapsed_s = time.perf_counter() - start
    return {"rate": len(took_s) / elapsed_s, **quantiles_ms(took_s), "made": len(took_s)}


def quantiles_ms(took_s: list[float]) -> dict[str, float]:
    """Return the middle one and the hundredth slowest, in ms."""
    ordered = sorted(took_s)
    return {
        "p50_ms": ordered[len(ordered) // 2] * 1e3,
        "p99_ms": ordered[len(ordered) * 99 // 100] * 1e3,
    }
