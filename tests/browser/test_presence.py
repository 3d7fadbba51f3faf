"""Presence as a browser reports it: on a clock that is turned forward, and when the page goes."""

import datetime
from collections.abc import Callable

from playwright.async_api import Page, Response, expect

from mesh.connection import Connection
from mesh.directory import Directory
from mesh.presence import read_people
from tests.browser.conftest import Open
from tests.conftest import until

HIDE = """
Object.defineProperty(document, 'visibilityState', {get: () => 'STATE', configurable: true});
document.dispatchEvent(new Event('visibilitychange', {bubbles: true}));
"""


async def state_of(connection: Connection, directory: Directory, user: str) -> str:
    """Return how somebody is, as the mesh knows it."""
    views = (await read_people(connection, directory.clock)).views()
    return next((one.state.value for one in views if one.matrix_user_id == user), "")


async def be_seen(page: Page, user: str) -> None:
    """Say who reads the page."""
    await page.get_by_label("Show me as").fill(user)
    await page.get_by_role("button", name="Be seen").click()
    await expect(page.locator("#people")).to_contain_text(f"{user} online")


def is_report_of(path: str) -> Callable[[Response], bool]:
    """Return what tells whether a response is to a report of presence from a page at `path`."""

    def is_it(response: Response) -> bool:
        referer = response.request.headers.get("referer", "")
        return response.url.endswith("/presence/online") and referer.endswith(path)

    return is_it


async def test_away_after_five_minutes_and_back(
    opened: Open, connection: Connection, directory: Directory, agent_id: str
) -> None:
    """Without a touch; the page that is open shows it, and any touch brings it back."""
    user = f"@{agent_id}:example.org"
    started = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)
    async with opened("/", clock=started) as watched:
        await be_seen(watched.page, user)
        await watched.page.clock.run_for(4 * 60_000)
        assert await state_of(connection, directory, user) == "online"
        await watched.page.clock.run_for(61_000)
        await until(lambda: is_so(connection, directory, user, "away"))
        await expect(watched.page.locator("#people")).to_contain_text(f"{user} away")
        await watched.page.mouse.move(100, 100)
        await watched.page.mouse.move(140, 140)
        await until(lambda: is_so(connection, directory, user, "online"))


async def is_so(connection: Connection, directory: Directory, user: str, state: str) -> bool:
    """Tell whether the mesh knows somebody so."""
    return await state_of(connection, directory, user) == state


async def test_offline_when_hidden_and_when_closed(
    opened: Open, connection: Connection, directory: Directory, agent_id: str
) -> None:
    """And online again in between; on the next page the same name is known."""
    user = f"@{agent_id}:example.org"
    async with opened("/") as watched:
        await be_seen(watched.page, user)
        await watched.page.evaluate(HIDE.replace("STATE", "hidden"))
        await until(lambda: is_so(connection, directory, user, "offline"))
        await watched.page.evaluate(HIDE.replace("STATE", "visible"))
        await until(lambda: is_so(connection, directory, user, "online"))
        # Its own report, and not what the page before has left: who goes sooner has said nothing.
        async with watched.page.expect_response(is_report_of("/flow")) as reported:
            await watched.page.goto(watched.page.url + "flow")
        assert (await reported.value).ok
        await until(lambda: is_so(connection, directory, user, "online"))
        await watched.page.close()
        await until(lambda: is_so(connection, directory, user, "offline"))


async def test_two_tabs_of_one_person(
    opened: Open, connection: Connection, directory: Directory, agent_id: str
) -> None:
    """Who closes one is still there."""
    user = f"@{agent_id}:example.org"
    async with opened("/") as watched:
        await be_seen(watched.page, user)
        second = await watched.context.new_page()
        await second.goto(watched.page.url)
        await expect(second.locator("#people")).to_contain_text(f"{user} online")
        await watched.page.close()
        await second.wait_for_timeout(500)
        assert await state_of(connection, directory, user) == "online"
        await second.close()
        await until(lambda: is_so(connection, directory, user, "offline"))
