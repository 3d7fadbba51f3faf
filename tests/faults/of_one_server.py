"""The faults of a mesh with one broker.

Numbers (F1 …) are those of the list of fault tests that the project was planned with; promises
(P1 …) those of the README.
"""

import asyncio
import random
import signal
from typing import Final

from tests.conftest import until
from tests.faults.nemesis import Fault, replace
from tests.faults.sites import OneServer
from tests.faults.world import CONTROL, HOSTS, SHIMS, World

FREEZE_HOST_S: Final = 12.0
"""Longer than the ack_wait of 10 s: what a frozen host holds is given to another one."""


async def kill_broker(world: World[OneServer], dice: random.Random) -> None:
    await world.site.broker.kill(down_s=dice.choice((0.0, 1.0, 3.0)))


async def freeze_broker(world: World[OneServer], dice: random.Random) -> None:
    await world.site.broker.freeze(dice.choice((0.5, 2.0, 5.0)))


async def kill_host(world: World[OneServer], dice: random.Random) -> None:
    await replace(world, signal.SIGKILL, dice.choice(HOSTS))


async def kill_all_hosts(world: World[OneServer], dice: random.Random) -> None:
    await replace(world, signal.SIGKILL, *HOSTS)


async def freeze_host(world: World[OneServer], dice: random.Random) -> None:
    await world.freeze(dice.choice(HOSTS), FREEZE_HOST_S)


async def restart_hosts(world: World[OneServer], dice: random.Random) -> None:
    """One after the other, as a new version is rolled out."""
    for host in HOSTS:
        await replace(world, signal.SIGTERM, host)
        await until(world.is_whole, within_s=60)


async def kill_control(world: World[OneServer], dice: random.Random) -> None:
    await replace(world, signal.SIGKILL, CONTROL)


async def kill_shim(world: World[OneServer], dice: random.Random) -> None:
    await replace(world, signal.SIGKILL, dice.choice(SHIMS))


async def cut_callers(world: World[OneServer], dice: random.Random) -> None:
    world.site.proxy.cut()
    await asyncio.sleep(dice.choice((0.2, 1.0, 3.0)))
    world.site.proxy.heal()


async def storm_callers(world: World[OneServer], dice: random.Random) -> None:
    """Their connections are reset again and again."""
    for _ in range(6):
        world.site.proxy.cut()
        world.site.proxy.heal()
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
