"""One timer calls back for what takes long, in order, and for nothing else."""

import asyncio
from functools import partial

from mesh.shared_timer import SharedTimer


async def test_only_what_has_not_ended_is_called_back() -> None:
    """In the order of beginning; once."""
    timer, told, is_over = SharedTimer(), list[str](), asyncio.Event()
    for name in ("a", "b", "c", "d"):
        timer.begin(name, 0.02, partial(told.append, name))
    timer.end("b")
    timer.end("b")
    timer.begin("last", 0.03, is_over.set)
    timer.end("d")
    await asyncio.wait_for(is_over.wait(), 5)
    assert told == ["a", "c"]
    assert len(timer) == 0


async def test_each_has_its_own_time() -> None:
    """Never too early, in whatever order they begin."""
    loop = asyncio.get_running_loop()
    timer, told, is_over = SharedTimer(), list[tuple[float, float]](), asyncio.Event()

    def tell(after_s: float, began: float) -> None:
        told.append((after_s, loop.time() - began))
        if after_s == 0.15:
            is_over.set()

    for after_s in (0.15, 0.05, 0.1):
        timer.begin(after_s, after_s, partial(tell, after_s, loop.time()))
    await asyncio.wait_for(is_over.wait(), 5)
    assert [after_s for after_s, _ in told] == [0.05, 0.1, 0.15]
    assert all(took_s >= after_s for after_s, took_s in told)


async def test_who_is_called_back_may_begin_again() -> None:
    """Under the same key, and end others that are due as well."""
    timer, told, is_over = SharedTimer(), list[str](), asyncio.Event()

    def again() -> None:
        told.append("again")
        timer.end("other")
        timer.begin("one", 0.0, is_over.set)

    timer.begin("one", 0.01, again)
    timer.begin("other", 0.01, lambda: told.append("other"))
    await asyncio.wait_for(is_over.wait(), 5)
    assert told == ["again"]


async def test_a_failure_is_no_end_of_it() -> None:
    """The others are called back, and the loop is told."""
    has_failed, is_over = asyncio.Event(), asyncio.Event()
    asyncio.get_running_loop().set_exception_handler(lambda *_: has_failed.set())
    timer = SharedTimer()
    timer.begin("bad", 0.01, partial(int, "none"))
    timer.begin("good", 0.01, is_over.set)
    await asyncio.wait_for(has_failed.wait(), 5)
    await asyncio.wait_for(is_over.wait(), 5)


async def test_after_its_end_nobody_is_called_back() -> None:
    timer, told = SharedTimer(), list[str]()
    timer.begin("one", 0.01, lambda: told.append("one"))
    timer.stop()
    await asyncio.sleep(0.05)
    assert not told


async def test_what_ends_leaves_nothing() -> None:
    """However long it might have taken: neither an entry nor a timer of the loop."""
    timer = SharedTimer()
    for name in range(100):
        timer.begin(name, 3600.0 + name, lambda: None)
    for name in range(100):
        timer.end(name)
    assert (len(timer), timer._ticks) == (0, {})
