"""Tasks that nobody awaits, and how they end."""

import asyncio

from mesh.background import BackgroundTasks


async def test_a_swallowed_cancel_comes_again() -> None:
    """As `asyncio.wait_for` swallows one before Python 3.12: the owner does not wait for ever."""
    tasks, swallowed = BackgroundTasks(), 0

    async def stubborn() -> None:
        nonlocal swallowed
        while True:
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                if swallowed:
                    raise
                swallowed += 1

    tasks.start(stubborn())
    await asyncio.sleep(0)
    await asyncio.wait_for(tasks.cancel(again_after_s=0.01), 30)
    assert (swallowed, len(tasks)) == (1, 0)


async def test_a_task_may_tidy_up() -> None:
    """Its owner waits for that."""
    tasks, is_tidy = BackgroundTasks(), False

    async def tidy() -> None:
        nonlocal is_tidy
        try:
            await asyncio.sleep(60)
        finally:
            await asyncio.sleep(0.01)
            is_tidy = True

    tasks.start(tidy())
    await asyncio.sleep(0)
    await tasks.cancel()
    assert is_tidy


async def test_who_says_himself_that_he_ends() -> None:
    """He is waited for until then, and not kept."""
    tasks, told = BackgroundTasks(), list[str]()

    async def work(name: str) -> None:
        await asyncio.sleep(0)
        told.append(name)
        tasks.end()

    for name in "ab":
        tasks.begin(work(name))
    await tasks.join(5)
    assert (told, len(tasks)) == (["a", "b"], 0)


async def test_who_is_cancelled_before_he_begins() -> None:
    """He cannot say that he ends, and is not kept either."""
    tasks = BackgroundTasks()

    async def work() -> None:
        tasks.end()

    tasks.begin(work())
    await asyncio.wait_for(tasks.cancel(), 5)
    assert len(tasks) == 0
