"""Faults, and a seed that chooses among them. Each returns when it is over; the mesh heals itself.

Which faults there are, see `tests.faults.of_one_server` and `tests.faults.of_a_cluster`.
"""

import asyncio
import random
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Generic

from tests.conftest import until
from tests.faults.world import S, World

Act = Callable[[World[S], random.Random], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Fault(Generic[S]):
    """What can be done to a mesh, and which promises it tries."""

    name: str
    tries: str
    act: Act[S]
    is_gentle: bool = False
    """Whether it is what an operator does, and no call may fail of it."""


@dataclass(frozen=True, slots=True)
class Blow:
    """A fault that was done. Times are of the monotonic clock."""

    fault: str
    began_s: float
    over_s: float
    is_gentle: bool = False


async def replace(world: World[S], number: signal.Signals, *names: str) -> None:
    """Send a signal, and wait for the next processes: until then the old ones seem to be there."""
    old = {name: world.parts.pid(name) for name in names}
    for name in names:
        world.send(name, number)
    for name, pid in old.items():
        await until(partial(_is_replaced, world, name, pid), within_s=60)


def _is_replaced(world: World[S], name: str, old: int | None) -> bool:
    return world.parts.pid(name) not in (old, None)


class Nemesis(Generic[S]):
    """Does one fault after the other, with quiet between them. The same seed does the same."""

    def __init__(self, world: World[S], faults: Sequence[Fault[S]], seed: int) -> None:
        self._world = world
        self._faults = faults
        self._dice = random.Random(seed)
        self.blows: list[Blow] = []

    async def strike(self, fault: Fault[S]) -> None:
        """Do one fault. It is over when all that was hit is there again."""
        began_s = time.monotonic()
        await fault.act(self._world, self._dice)
        await until(self._world.is_whole, within_s=120)
        self.blows.append(Blow(fault.name, began_s, time.monotonic(), fault.is_gentle))

    async def strike_for(self, for_s: float, quiet_s: float) -> AsyncIterator[Fault[S]]:
        """Do every fault, in an order that the seed chooses, and again until the time is over.

        Each is done once at least, however short the time; yields when one is over.
        """
        ends_s = time.monotonic() + for_s
        while True:
            for fault in self._dice.sample(self._faults, len(self._faults)):
                if len(self.blows) >= len(self._faults) and time.monotonic() >= ends_s:
                    return
                await self.strike(fault)
                await asyncio.sleep(quiet_s)
                yield fault
