"""Faults, and a seed that chooses among them. Each returns when it is over; the mesh heals itself.

Numbers (F1 …) are those of the list of fault tests that the project was planned with; promises
(P1 …) those of the README.
"""

import asyncio
import random
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from typing import Final

from tests.conftest import until
from tests.faults.world import CONTROL, HOSTS, SHIMS, World

FREEZE_HOST_S: Final = 12.0
"""Longer than the ack_wait of 10 s: what a frozen host holds is given to another one."""

Act = Callable[[World, random.Random], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Fault:
    """What can be done to a mesh, and which promises it tries."""

    name: str
    tries: str
    act: Act


@dataclass(frozen=True, slots=True)
class Blow:
    """A fault that was done. Times are of the monotonic clock."""

    fault: str
    began_s: float
    over_s: float


async def kill_broker(world: World, dice: random.Random) -> None:
    await world.broker.kill(down_s=dice.choice((0.0, 1.0, 3.0)))


async def freeze_broker(world: World, dice: random.Random) -> None:
    await world.broker.freeze(dice.choice((0.5, 2.0, 5.0)))


async def kill_host(world: World, dice: random.Random) -> None:
    await _replace(world, signal.SIGKILL, dice.choice(HOSTS))


async def kill_all_hosts(world: World, dice: random.Random) -> None:
    await _replace(world, signal.SIGKILL, *HOSTS)


async def freeze_host(world: World, dice: random.Random) -> None:
    await world.freeze(dice.choice(HOSTS), FREEZE_HOST_S)


async def restart_hosts(world: World, dice: random.Random) -> None:
    """One after the other, as a new version is rolled out."""
    for host in HOSTS:
        await _replace(world, signal.SIGTERM, host)
        await until(world.is_whole, within_s=60)


async def kill_control(world: World, dice: random.Random) -> None:
    await _replace(world, signal.SIGKILL, CONTROL)


async def kill_shim(world: World, dice: random.Random) -> None:
    await _replace(world, signal.SIGKILL, dice.choice(SHIMS))


async def _replace(world: World, number: signal.Signals, *names: str) -> None:
    """Send a signal, and wait for the next processes: until then the old ones seem to be there."""
    old = {name: world.parts.pid(name) for name in names}
    for name in names:
        world.send(name, number)
    for name, pid in old.items():
        await until(partial(_is_replaced, world, name, pid), within_s=60)


def _is_replaced(world: World, name: str, old: int | None) -> bool:
    return world.parts.pid(name) not in (old, None)


async def cut_callers(world: World, dice: random.Random) -> None:
    world.proxy.cut()
    await asyncio.sleep(dice.choice((0.2, 1.0, 3.0)))
    world.proxy.heal()


async def storm_callers(world: World, dice: random.Random) -> None:
    """Their connections are reset again and again."""
    for _ in range(6):
        world.proxy.cut()
        world.proxy.heal()
        await asyncio.sleep(dice.uniform(0.2, 1.0))


FAULTS: Final = (
    Fault("broker killed", "F1: P1 P2 P5 P6", kill_broker),
    Fault("broker frozen", "F6: P1 P5 P6", freeze_broker),
    Fault("host killed", "F3: P1 P2 P6", kill_host),
    Fault("all hosts killed", "F3: P1 P2 P6", kill_all_hosts),
    Fault("host frozen", "F5: P1 P2", freeze_host),
    Fault("hosts restarted in turn", "F11: P1 P5 P6", restart_hosts),
    Fault("control plane killed", "F19: P1 P4", kill_control),
    Fault("shim killed", "F4: P1 P2", kill_shim),
    Fault("callers cut off", "F7: P1 P3 P5 P6", cut_callers),
    Fault("callers' links reset", "F8: P1 P3 P6", storm_callers),
)


class Nemesis:
    """Does one fault after the other, with quiet between them. The same seed does the same."""

    def __init__(self, world: World, seed: int) -> None:
        self._world = world
        self._dice = random.Random(seed)
        self.blows: list[Blow] = []

    async def strike(self, fault: Fault) -> None:
        """Do one fault. It is over when all that was hit is there again."""
        began_s = time.monotonic()
        await fault.act(self._world, self._dice)
        await until(self._world.is_whole, within_s=120)
        self.blows.append(Blow(fault.name, began_s, time.monotonic()))

    async def strike_for(self, for_s: float, quiet_s: float) -> AsyncIterator[Fault]:
        """Do every fault, in an order that the seed chooses, and again until the time is over.

        Each is done once at least, however short the time; yields when one is over.
        """
        ends_s = time.monotonic() + for_s
        while True:
            for fault in self._dice.sample(FAULTS, len(FAULTS)):
                if len(self.blows) >= len(FAULTS) and time.monotonic() >= ends_s:
                    return
                await self.strike(fault)
                await asyncio.sleep(quiet_s)
                yield fault
