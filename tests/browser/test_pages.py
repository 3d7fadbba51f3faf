"""What pages do in a browser: they stay true, they can be used by anybody, and they run nothing."""

import asyncio
import time

import pytest
from playwright.async_api import expect

from mesh import Agent, CallContext, ChatRequest
from mesh.directory import Directory
from tests.browser.conftest import AXE, Open
from tests.conftest import Running, until
from tests.shim import online, replier, speaker

PAGES = ("/", "/agents/connections", "/flow", "/agent/{id}", "/docs")
PHONE = {"width": 390, "height": 844}


@pytest.mark.parametrize("path", PAGES)
@pytest.mark.parametrize("scheme", ["light", "dark"])
async def test_a_page_is_for_everybody(
    opened: Open,
    running: Running,
    directory: Directory,
    agent_id: str,
    path: str,
    scheme: str,
) -> None:
    """Nothing serious is wrong with it, in either colours; nor does the browser complain."""
    if not AXE.exists():
        pytest.skip("NOT RUN: axe-core is not installed; scripts/node-env does it")
    async with (
        online(running, directory, replier(agent_id)),
        opened(path.format(id=agent_id), color_scheme=scheme) as watched,
    ):
        await watched.page.wait_for_timeout(300)
        assert await watched.violations() == []
        assert watched.complaints == []


@pytest.mark.parametrize("path", PAGES)
async def test_a_page_fits_a_phone(
    opened: Open, running: Running, directory: Directory, agent_id: str, path: str
) -> None:
    """What is wide scrolls by itself, and not the page."""
    async with (
        online(running, directory, replier(agent_id)),
        opened(path.format(id=agent_id), viewport=PHONE) as watched,
    ):
        wide = "document.scrollingElement.scrollWidth - window.innerWidth"
        assert await watched.page.evaluate(wide) <= 0


async def test_a_page_is_read_without_a_script(
    opened: Open, running: Running, directory: Directory, agent_id: str
) -> None:
    """Everything stands on it, but what only a script could do."""
    async with (
        online(running, directory, replier(agent_id)),
        opened(f"/agent/{agent_id}", java_script_enabled=False) as watched,
    ):
        await expect(watched.page.get_by_role("heading", level=1)).to_have_text(agent_id)
        await expect(watched.page.locator("#state")).to_contain_text("online")
        await expect(watched.page.locator("#chat")).to_be_hidden()
        await expect(watched.page.get_by_text("Needs JavaScript")).to_be_visible()


async def test_a_death_is_seen(
    opened: Open, running: Running, directory: Directory, agent_id: str
) -> None:
    """Within a second of the registry knowing it, on the page that is open."""
    async with opened(f"/agents/connections?q={agent_id}") as watched:
        row = watched.page.locator(f'tr[id="row-{agent_id}.node1"]')
        async with online(running, directory, replier(agent_id)):
            await expect(row).to_contain_text("online")
        await until(lambda: directory.agent(agent_id).state == "offline")
        known_at = time.monotonic()
        await expect(row).to_contain_text("offline", timeout=5_000)
        assert time.monotonic() - known_at < 1.0
        assert watched.complaints == []


async def test_the_button_runs_the_test(
    opened: Open, running: Running, directory: Directory, agent_id: str
) -> None:
    """Results come in, here and on a page that somebody else has open."""
    async with (
        online(running, directory, replier(agent_id)),
        opened(f"/agents/connections?q={agent_id}") as mine,
        opened(f"/agents/connections?q={agent_id}") as other,
    ):
        await mine.page.get_by_role("button", name="Run the test").click()
        for watched in (mine, other):
            row = watched.page.locator(f'tr[id="row-{agent_id}.node1"]')
            await expect(row.locator(".try.ok")).to_have_count(5, timeout=15_000)
        await expect(mine.page.locator("#last-run")).to_contain_text("Last test")
        await expect(mine.page.get_by_role("button", name="Run the test")).to_be_enabled()
        assert mine.complaints == other.complaints == []


async def test_the_chat_box_streams(
    opened: Open, running: Running, directory: Directory, agent_id: str
) -> None:
    """A part is on the page before the next one is there; Stop ends the call."""
    more = asyncio.Event()
    agent = Agent(agent_id)
    ended: list[str] = []

    @agent.chat
    async def speak(request: ChatRequest, call: CallContext):  # type: ignore[no-untyped-def]
        yield f"heard {len(request.messages)}, "
        try:
            await more.wait()
        finally:
            ended.append("ended")
        yield "and done"

    async with online(running, directory, agent), opened(f"/agent/{agent_id}") as watched:
        page = watched.page
        await page.get_by_label(f"Message to {agent_id}").fill("hello")
        await page.get_by_role("button", name="Send", exact=True).click()
        await expect(page.locator("#said .agent")).to_have_text("heard 1, ")
        more.set()
        await expect(page.locator("#said .agent")).to_have_text("heard 1, and done")
        more.clear()
        await page.get_by_label(f"Message to {agent_id}").fill("again")
        await page.keyboard.press("Enter")
        await expect(page.locator("#said .agent").last).to_have_text("heard 3, ")
        await page.get_by_role("button", name="Stop").click()
        await expect(page.locator("#said .failed")).to_have_text("stopped")
        await until(lambda: len(ended) == 2)
        await expect(page.locator("#calls tr").first).to_contain_text("cancelled")


async def test_a_refusal_is_said_in_the_chat(
    opened: Open, running: Running, directory: Directory, agent_id: str
) -> None:
    """In words, and the box can be used again."""
    agent = Agent(agent_id)

    @agent.chat
    async def fail(request: ChatRequest) -> str:
        raise ValueError("the sun does not shine")

    async with online(running, directory, agent), opened(f"/agent/{agent_id}") as watched:
        await watched.page.get_by_label(f"Message to {agent_id}").fill("hello")
        await watched.page.get_by_role("button", name="Send", exact=True).click()
        await expect(watched.page.locator("#said .failed")).to_contain_text("sun does not shine")
        await expect(watched.page.get_by_role("button", name="Send", exact=True)).to_be_visible()


async def test_what_an_agent_says_does_not_run(
    opened: Open, running: Running, directory: Directory, agent_id: str
) -> None:
    """Neither in what was there, nor in what came later, nor in an answer."""
    evil = "<img src=x onerror=alert(1)><script>alert(2)</script>"
    agent = Agent(agent_id, description=evil, version="<svg onload=alert(3)>")

    @agent.chat
    async def answer(request: ChatRequest) -> str:
        return evil

    async with (
        opened(f"/agents/connections?q={agent_id}") as other,
        opened("/") as overview,
        online(running, directory, agent),
        opened(f"/agent/{agent_id}") as watched,
    ):
        await watched.page.get_by_label(f"Message to {agent_id}").fill(evil)
        await watched.page.get_by_role("button", name="Send", exact=True).click()
        await expect(watched.page.locator("#said .agent")).to_have_text(evil)
        await expect(overview.page.locator(f"#agent-{agent_id}")).to_contain_text("onerror")
        row = other.page.locator(f'tr[id="row-{agent_id}.node1"]')
        await expect(row).to_contain_text("onload")
        for one in (watched, overview, other):
            assert one.complaints == []
            assert await one.page.locator("main img, main script").count() == 0


async def test_traffic_moves_on_the_map(
    opened: Open, running: Running, directory: Directory, agent_id: str
) -> None:
    """A line for who asks whom, which moves while calls go over it."""
    async with (
        online(running, directory, speaker(agent_id)),
        opened("/flow") as flow,
        opened(f"/agent/{agent_id}") as watched,
    ):
        await watched.page.get_by_label(f"Message to {agent_id}").fill("hello")
        await watched.page.get_by_role("button", name="Send", exact=True).click()
        line = flow.page.locator("path.line.moving", has_text=f"http asked {agent_id} 1 times")
        await expect(line).to_have_count(1)
        await expect(flow.page.locator("#edges tr", has_text=agent_id)).to_contain_text("http")


async def test_a_map_stands_still_when_told_to(
    opened: Open, running: Running, directory: Directory, agent_id: str
) -> None:
    """And shows what was missed when it goes on; what it shows can be copied as Mermaid."""
    async with (
        online(running, directory, speaker(agent_id)),
        opened("/flow?window=1m", permissions=["clipboard-read", "clipboard-write"]) as flow,
        opened(f"/agent/{agent_id}") as watched,
    ):
        await expect(flow.page.get_by_role("link", name="a minute")).to_have_attribute(
            "aria-current", "true"
        )
        await flow.page.get_by_role("button", name="Pause").click()
        await watched.page.get_by_label(f"Message to {agent_id}").fill("hello")
        await watched.page.get_by_role("button", name="Send", exact=True).click()
        await expect(watched.page.locator("#calls tr").first).to_contain_text("answered")
        row = flow.page.locator("#edges tr", has_text=agent_id)
        await expect(row).to_have_count(0)
        await flow.page.get_by_role("button", name="Go on").click()
        await expect(row).to_have_count(1)
        await flow.page.get_by_text("As Mermaid").click()
        await flow.page.get_by_role("button", name="Copy: A flowchart").click()
        copied = await flow.page.evaluate("navigator.clipboard.readText()")
        assert copied.startswith("flowchart LR\n")
        assert f'["{agent_id}"]' in copied


async def test_a_page_comes_back_by_itself(
    opened: Open, running: Running, directory: Directory, agent_id: str
) -> None:
    """When its connection was lost it says so, and is true again without a reload."""
    async with opened("/") as watched:
        await watched.context.set_offline(True)
        await watched.page.evaluate("window.stop()")
        await expect(watched.page.locator("#stale")).to_be_visible(timeout=15_000)
        await watched.context.set_offline(False)
        async with online(running, directory, replier(agent_id)):
            row = watched.page.locator(f"#agent-{agent_id}")
            await expect(row).to_contain_text("online", timeout=15_000)
            await expect(watched.page.locator("#stale")).to_be_hidden()


async def test_a_keyboard_stays_where_it_is(
    opened: Open, running: Running, directory: Directory, agent_id: str
) -> None:
    """When the row that it is in changes."""
    async with opened(f"/agents/connections?q={agent_id}") as watched:
        async with online(running, directory, replier(agent_id)):
            link = watched.page.get_by_role("link", name=agent_id)
            await link.focus()
        row = watched.page.locator(f'tr[id="row-{agent_id}.node1"]')
        await expect(row).to_contain_text("offline")
        await expect(link).to_be_focused()


async def first_paint_ms(opened: Open, path: str) -> float:
    """Return when something of a page was seen."""
    observed = (
        "new Promise((done) => new PerformanceObserver((list) => "
        "done(list.getEntries()[0].startTime)).observe({type: 'paint', buffered: true}))"
    )
    async with opened(path) as watched:
        return float(await watched.page.evaluate(observed))


async def test_five_hundred_agents_are_painted_at_once(
    opened: Open, running: Running, directory: Directory, agent_id: str
) -> None:
    """In less than four times that of an empty page; `scripts/bench pages` holds it to 150 ms.

    Beside other tests no time of a browser means anything by itself: the best of some rounds does,
    in which all pages have their turn.
    """
    agents = [replier(f"{agent_id}-{number}") for number in range(500)]
    async with online(running, directory, *agents):
        pages = ["/agent/nobody-at-all", *(one.format(id=f"{agent_id}-7") for one in PAGES[:4])]
        rounds = [[await first_paint_ms(opened, one) for one in pages] for _ in range(5)]
        empty, *painted = (min(times) for times in zip(*rounds, strict=True))
        assert max(painted) < 4 * empty, (painted, empty)
