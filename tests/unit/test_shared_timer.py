"""One timer calls back for what takes long, in order, and for nothing else."""

import asyncio
from functools import partial

from mesh.shared_timer import SharedTimer


async def test_only_what_has_not_ended_is_called_back() -> None:
    """In the order of beginning; once."""
    timer, told, is_over = SharedTimer(0.02), list[str](), asyncio.Event()
    for name in ("a", "b", "c", "d"):
        timer.begin(name, partial(told.append, name))
    timer.end("b")
    timer.end("b")
    timer.begin("last", is_over.set)
    timer.end("d")
    await asyncio.wait_for(is_over.wait(), 5)
    assert told == ["a", "c"]
    assert len(timer) == 0


async def test_each_has_its_own_time() -> None:
    """What begins later is due later, though there is one timer."""
    loop = asyncio.get_running_loop()
    timer, is_over = SharedTimer(0.1), asyncio.Event()
    timer.begin(1, lambda: None)
    await asyncio.sleep(0.06)
    began = loop.time()
    timer.begin(2, is_over.set)
    await asyncio.wait_for(is_over.wait(), 5)
    assert loop.time() - began >= 0.1


async def test_who_is_called_back_may_begin_again() -> None:
    """Under the same key, and end others that are due as well."""
    timer, told, is_over = SharedTimer(0.01), list[str](), asyncio.Event()

    def again() -> None:
        told.append("again")
        timer.end("other")
        timer.begin("one", is_over.set)

    timer.begin("one", again)
    timer.begin("other", lambda: told.append("other"))
    await asyncio.wait_for(is_over.wait(), 5)
    assert told == ["again"]


async def test_a_failure_is_no_end_of_it() -> None:
    """The others are called back, at the latest when the next one begins."""
    has_failed, is_over = asyncio.Event(), asyncio.Event()
    asyncio.get_running_loop().set_exception_handler(lambda *_: has_failed.set())
    timer = SharedTimer(0.01)
    timer.begin("bad", partial(int, "none"))
    timer.begin("good", is_over.set)
    await asyncio.wait_for(has_failed.wait(), 5)
    timer.begin("next", lambda: None)
    await asyncio.wait_for(is_over.wait(), 5)


async def test_after_its_end_nobody_is_called_back() -> None:
    timer, told = SharedTimer(0.01), list[str]()
    timer.begin("one", lambda: told.append("one"))
    timer.stop()
    await asyncio.sleep(0.05)
    assert not told
