"""A browser, and a door whose pages it opens."""

import os
import shutil
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from playwright.async_api import Browser, BrowserContext, Page, async_playwright

from mesh.connection import Connection
from mesh.directory import Directory
from mesh.presence import follow_people
from tests.shim import serving

AXE = Path(__file__).parents[1] / "node" / "node_modules" / "axe-core" / "axe.min.js"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what needs a browser."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.browser)


@pytest.fixture(scope="session")
async def chromium() -> AsyncIterator[Browser]:
    """The system's own browser: Playwright's is a download of its own."""
    found = shutil.which("chromium") or shutil.which("google-chrome")
    if os.environ.get("MESH_TEST_NO_BROWSER") or found is None:
        pytest.skip("NOT RUN: there is no Chromium; `apt-get install chromium` brings it")
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(
            executable_path=found, args=["--no-sandbox", "--disable-background-networking"]
        )
        yield browser
        await browser.close()


@pytest.fixture
async def door(connection: Connection, directory: Directory) -> AsyncIterator[str]:
    """A door that knows who is there: its address."""
    async with (
        follow_people(connection, directory.clock) as people,
        serving(connection, directory, people=people) as url,
    ):
        yield url


@dataclass(slots=True)
class Watched:
    """A page, and whatever the browser complained about."""

    page: Page
    context: BrowserContext
    complaints: list[str] = field(default_factory=list)

    def listen(self) -> None:
        """Keep errors, refusals of the policy, and dialogs, which none of our pages opens."""
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("dialog", lambda dialog: self.complaints.append(f"dialog {dialog.message}"))
        self.page.on(
            "console",
            lambda said: self.complaints.append(said.text) if said.type == "error" else None,
        )

    async def violations(self) -> list[str]:
        """Return what axe-core finds that is serious."""
        await self.page.evaluate(AXE.read_text())
        found = await self.page.evaluate("axe.run(document, {resultTypes: ['violations']})")
        return [
            f"{one['id']}: {[node['html'][:160] for node in one['nodes'][:3]]}"
            for one in found["violations"]
            if one["impact"] in ("serious", "critical", "moderate")
        ]


Open = Callable[..., AbstractAsyncContextManager[Watched]]


@pytest.fixture
def opened(chromium: Browser, door: str) -> Open:
    """Open a path of the door: `async with opened("/flow", color_scheme="dark") as watched`."""
    return opener(chromium, door)


def opener(chromium: Browser, door: str) -> Open:
    """Return what opens paths of a door, each in a browser without a past."""

    @asynccontextmanager
    async def open_page(path: str, **options: Any) -> AsyncIterator[Watched]:
        clock = options.pop("clock", None)
        context = await chromium.new_context(**options)
        try:
            page = await context.new_page()
            watched = Watched(page, context)
            watched.listen()
            if clock is not None:
                await page.clock.install(time=clock)
            await page.goto(f"{door}{path}")
            yield watched
        finally:
            await context.close()

    return open_page
