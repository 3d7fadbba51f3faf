"""Logging in, in a browser, with the pages behind it as they are without keys."""

from collections.abc import AsyncIterator

import pytest
from playwright.async_api import Browser, expect

from mesh.access import Access
from mesh.connection import Connection
from mesh.directory import Directory
from mesh.shim.rules import Rules
from tests.browser.conftest import AXE, Open, opener
from tests.conftest import Running
from tests.shim import online, replier, serving


@pytest.fixture
async def guarded(
    chromium: Browser, connection: Connection, directory: Directory
) -> AsyncIterator[Open]:
    """Open a path of a door that requires keys."""
    async with serving(connection, directory, Rules(requires_keys=True)) as url:
        yield opener(chromium, url)


async def test_log_in_talk_and_log_out(
    guarded: Open, connection: Connection, running: Running, directory: Directory, agent_id: str
) -> None:
    """The key is asked for once; chat, test and presence work with it, and then it is forgotten."""
    issued = await Access(connection).create("a browser")
    async with (
        online(running, directory, replier(agent_id)),
        guarded(f"/agent/{agent_id}") as watched,
    ):
        page = watched.page
        field = page.get_by_label("API key")
        await expect(field).to_be_focused()
        if AXE.exists():
            assert await watched.violations() == []
        await field.fill("mesh_wrong_key")
        await page.keyboard.press("Enter")
        await expect(page.get_by_role("alert")).to_contain_text("API key")
        await page.get_by_label("API key").fill(issued.token)
        await page.keyboard.press("Enter")
        await expect(page).to_have_url(page.url.partition("/login")[0] + f"/agent/{agent_id}")
        watched.complaints.clear()  # Each 401 is one.
        await page.get_by_label(f"Message to {agent_id}").fill("hello")
        await page.get_by_role("button", name="Send", exact=True).click()
        await expect(page.locator("#said .agent")).to_have_text("You said: hello")
        await page.get_by_role("link", name="Overview").click()
        await expect(page.locator(f"#agent-{agent_id}")).to_contain_text("online")
        assert await page.evaluate("document.cookie") == ""
        assert watched.complaints == []
        await page.get_by_role("button", name="Log out").click()
        await expect(page.get_by_role("heading", level=1)).to_have_text("Log in")


async def test_a_revoked_key_closes_the_pages(
    guarded: Open, connection: Connection, running: Running, directory: Directory, agent_id: str
) -> None:
    """Those that are open, by themselves."""
    access = Access(connection)
    issued = await access.create("a browser")
    async with guarded("/flow") as watched:
        await watched.page.get_by_label("API key").fill(issued.token)
        await watched.page.keyboard.press("Enter")
        await expect(watched.page.get_by_role("heading", level=1)).to_have_text("Flow")
        await access.revoke(issued.key.id)
        heading = watched.page.get_by_role("heading", level=1)
        await expect(heading).to_have_text("Log in", timeout=20_000)
        await expect(watched.page.get_by_role("alert")).to_contain_text("no longer valid")
