"""Which of the calls that are worked on a cancel stops."""

import asyncio
from contextlib import suppress

import pytest

from mesh.runs import Run, Runs


def test_callers_that_chose_the_same_id() -> None:
    """A cancel that names a place stops the call there, and no other one."""
    runs = Runs()
    mine, other = runs.begin(1, "call-1"), runs.begin(2, "call-1")
    runs.cancel("call-1", 1)
    assert (mine.is_cancelled, other.is_cancelled) == (True, False)


def test_a_sender_that_does_not_know_the_place() -> None:
    """What runs under the id stops, wherever its request lies."""
    runs = Runs()
    run = runs.begin(7, "call-1")
    runs.cancel("call-1", 0)
    assert run.is_cancelled


def test_a_cancel_that_comes_first() -> None:
    """It is remembered for its place, and for its id there."""
    runs = Runs()
    runs.cancel("call-1", 1)
    assert runs.begin(1, "call-1").is_cancelled
    assert not runs.begin(2, "call-1").is_cancelled
    assert not runs.begin(1, "call-2").is_cancelled


async def test_what_is_stopped_is_out_of_time() -> None:
    """By a cancel, or by its deadline; the task itself is cancelled by nobody."""
    loop, task = asyncio.get_running_loop(), asyncio.current_task()
    assert task is not None
    for stop in (lambda run: run.cancel(), lambda run: run.stop_at(loop.time())):
        run = Run("call-1")
        with pytest.raises(TimeoutError), run:  # noqa: PT012
            assert run.is_running
            loop.call_soon(stop, run)
            await asyncio.sleep(5)
        assert (task.cancelling(), run.is_running) == (0, False)


async def test_what_ends_in_time_is_not_stopped() -> None:
    """Nor anything that the task does later."""
    run = Run("call-1")
    with run:
        run.stop_at(asyncio.get_running_loop().time() + 0.01)
    await asyncio.sleep(0.03)
    run.cancel()
    await asyncio.sleep(0)


async def test_what_was_cancelled_does_not_begin() -> None:
    run = Run("call-1")
    run.cancel()
    with pytest.raises(TimeoutError), run:
        pytest.fail("it has begun")


async def test_a_task_that_others_cancel_is_cancelled() -> None:
    """Also when its run is stopped at the same moment."""
    run, is_inside = Run("call-1"), asyncio.Event()

    async def work() -> None:
        with run:
            is_inside.set()
            await asyncio.sleep(5)

    task = asyncio.create_task(work())
    await is_inside.wait()
    run.cancel()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_who_swallows_its_end_goes_on() -> None:
    """And can be stopped again in what it begins next."""
    run, loop = Run("call-1"), asyncio.get_running_loop()
    with run:
        run.stop_at(loop.time())
        with suppress(asyncio.CancelledError):
            await asyncio.sleep(5)
    with pytest.raises(TimeoutError), run:  # noqa: PT012
        run.stop_at(loop.time())
        await asyncio.sleep(5)
