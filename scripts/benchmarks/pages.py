"""Measures the pages of the door: the first paint, what open pages cost, and what they cost calls.

A real `mesh up`; agents that are announced and beat; the system's Chromium, where there is one.
Each page is painted beside an empty one of the same server, in turns: in a window that has come to
rest, as that of a reader has, and in one whose own start the page has to share the cores with.
"""

import asyncio
import os
import shutil
import statistics
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from typing import Final

import httpx2
from playwright.async_api import Browser, async_playwright

from scripts.benchmarks import rates, wrk
from scripts.benchmarks.door import ECHO, fresh_mesh
from scripts.benchmarks.figures import NO_LIMIT, Figure, Limit, Row, report
from scripts.benchmarks.notes import not_run
from scripts.benchmarks.options import complete, parser
from scripts.benchmarks.processes import BenchError, Mesh, mesh_run
from scripts.benchmarks.rates import Pace
from scripts.benchmarks.registrations import registered, until_listed
from scripts.benchmarks.resources import commands_below, cpu_s, percent_of_a_core

PAINT: Final = (
    "new Promise((done) => new PerformanceObserver((list) => "
    "done(list.getEntries()[0].startTime)).observe({type: 'paint', buffered: true}))"
)
DESCRIPTION: Final = "The pages: first paint, and what open ones cost."
EMPTY: Final = "/agent/nobody-at-all"
PAINT_MS: Final = 150.0
QUIET_S: Final = 0.2
QUIET_CPU_S: Final = 0.015
"""A tick of Linux's clock, at most: of all processes of a browser at rest, in 0.2 s."""
REST_S: Final = 20.0
IDLE_PERCENT: Final = 5.0
OPEN_PAGES: Final = 100
SETTLE_S: Final = 10.0
WATCHING_PAGES: Final = 10
WATCHED_LEAST: Final = 0.7
"""Of the calls of a door that nobody watches: whoever looks hears each message once more."""


async def run_bench(agents: int, rounds: int, idle_s: float, pace: Pace) -> list[Row]:
    """Start everything, and measure."""
    ids = [f"agent{number}" for number in range(agents)]
    pages = ("/", "/agents/connections", "/flow", f"/agent/{ids[0]}")
    async with fresh_mesh() as mesh, registered(mesh, ids):
        await until_listed(mesh, ids)
        rows = await painted(mesh, pages, rounds)
        rows += await idle(mesh, pages, idle_s)
    return [*rows, *await watched(pace)]


async def painted(mesh: Mesh, pages: tuple[str, ...], rounds: int) -> list[Row]:
    """Time the first paint of each page, in a window without a cache."""
    found = shutil.which("chromium") or shutil.which("google-chrome")
    if found is None:
        return [not_run("first paint", "there is no Chromium: apt-get install chromium")]
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=found, args=["--no-sandbox"])
        urls = {page: mesh.http_url + page for page in (EMPTY, *pages)}
        rested = await _paint_times(browser, urls, rounds, is_rested=True)
        starting = await _paint_times(browser, urls, rounds, is_rested=False)
        await browser.close()
    limit = Limit(most=PAINT_MS, unit="ms")
    return [
        *_paint_rows("first paint of", rested, limit),
        *_paint_rows("while its window still starts, first paint of", starting, NO_LIMIT),
    ]


async def _paint_times(
    browser: Browser, urls: Mapping[str, str], rounds: int, *, is_rested: bool
) -> dict[str, float]:
    """Return the median of each page, in ms."""
    times: dict[str, list[float]] = {page: [] for page in urls}
    for number in range(rounds + 1):
        for page, url in urls.items():
            took_ms = await first_paint_ms(browser, url, is_rested=is_rested)
            if number:  # The first round warms both up.
                times[page].append(took_ms)
    return {page: statistics.median(taken) for page, taken in times.items()}


def _paint_rows(name: str, times: dict[str, float], limit: Limit) -> list[Row]:
    empty = times[EMPTY]
    return [
        Figure(f"{name} {page}, ms (an empty page: {empty:.0f})", middle, limit)
        for page, middle in times.items()
        if page != EMPTY
    ]


async def first_paint_ms(browser: Browser, url: str, *, is_rested: bool) -> float:
    """Open a page, in a window that is at rest or just opened; return when it was first seen."""
    context = await browser.new_context()
    try:
        page = await context.new_page()
        if is_rested:
            await until_at_rest()
        await page.goto(url)
        return float(await page.evaluate(PAINT))
    finally:
        await context.close()


async def until_at_rest() -> None:
    """Wait until the browser does nothing: it starts processes ahead, for windows to come.

    Raises:
        BenchError: it is busy for 20 s.
    """
    before = _browser_cpu_s()
    for _ in range(int(REST_S / QUIET_S)):
        await asyncio.sleep(QUIET_S)
        now = _browser_cpu_s()
        taken_s = sum(now.values()) - sum(before.values())
        if now.keys() == before.keys() and taken_s < QUIET_CPU_S:
            return
        before = now
    raise BenchError(f"the browser is busy for {REST_S:g} s with nothing open")


def _browser_cpu_s() -> dict[int, float]:
    found = {}
    for pid, command in commands_below(os.getpid()):
        if command and "chrom" in command[0]:
            with suppress(OSError):  # It has ended meanwhile.
                found[pid] = cpu_s(pid)
    return found


async def idle(mesh: Mesh, pages: tuple[str, ...], for_s: float) -> list[Row]:
    """Keep pages open while nothing happens but heartbeats, and watch the door's processor time."""
    alone = await percent_of_a_core(mesh.http_pid, for_s)
    async with opened(mesh, pages, OPEN_PAGES):
        taken = await percent_of_a_core(mesh.http_pid, for_s)
    return [
        Figure("no page open, % of a core", alone),
        Figure(f"{OPEN_PAGES} pages open, % of a core", taken, Limit(most=IDLE_PERCENT, unit="%")),
    ]


async def watched(pace: Pace) -> list[Row]:
    """Compare a door whose traffic is watched with one of another mesh that nobody looks at."""
    name = "a door that nobody watches"
    if not wrk.is_installed():
        return [not_run(name, wrk.MISSING)]
    async with AsyncExitStack() as stack:
        meshes = [await stack.enter_async_context(fresh_mesh()) for _ in range(2)]
        for mesh in meshes:
            await stack.enter_async_context(mesh_run(mesh.nats_url, ECHO, "echo"))
            await until_listed(mesh, ["echo"])
        alone, seen = meshes
        async with opened(seen, ("/", "/flow", "/agent/echo"), WATCHING_PAGES):
            ours, reference = (wrk.Target(one.http_url, "echo") for one in (seen, alone))
            return [*await rates.compare(name, reference, ours, WATCHED_LEAST, pace)]


@asynccontextmanager
async def opened(mesh: Mesh, pages: Sequence[str], count: int) -> AsyncIterator[None]:
    """Keep pages open."""
    limits = httpx2.Limits(max_connections=2 * count)
    async with httpx2.AsyncClient(timeout=None, limits=limits) as http:
        following = [
            asyncio.create_task(follow(http, mesh.http_url + pages[number % len(pages)]))
            for number in range(count)
        ]
        await asyncio.sleep(SETTLE_S)
        try:
            yield
        finally:
            for one in following:
                one.cancel()
            await asyncio.gather(*following, return_exceptions=True)


async def follow(http: httpx2.AsyncClient, url: str) -> None:
    """Take what comes to an open page."""
    async with http.stream("GET", url, headers={"accept": "text/event-stream"}) as answer:
        async for _ in answer.aiter_raw():
            pass


def main(arguments: list[str]) -> None:
    """Run, and print the table. A missed limit is told, and is no failure: machines are noisy."""
    reading = parser("pages", DESCRIPTION, is_scaled=False)
    reading.add_argument("--agents", type=int, default=500)
    chosen = reading.parse_args(arguments)
    judge = not chosen.quick
    rounds, idle_s, pace = (9, 30.0, Pace(5, 4, 4)) if judge else (1, 2.0, Pace(1, 1, 1))
    rows = complete(run_bench(chosen.agents, rounds, idle_s, pace))
    report(rows, judge=judge, as_json=chosen.json)
