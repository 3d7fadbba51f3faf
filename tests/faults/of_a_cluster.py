"""The faults of a mesh on three brokers: what no single server can be spared.

Numbers and promises as in `tests.faults.of_one_server`.
"""

import asyncio
import os
import random
import signal
from typing import Final

from tests.cluster import SIZE
from tests.faults.nemesis import Fault, replace
from tests.faults.sites import Cluster
from tests.faults.world import CONTROL, HOSTS, World

FREEZE_SERVER_S: Final = 12.0
"""Longer than an election takes: the others go on without it, and it comes back as a follower."""


async def kill_server(world: World[Cluster], dice: random.Random) -> None:
    await _kill(world, dice, [dice.randrange(SIZE)])


async def kill_two_servers(world: World[Cluster], dice: random.Random) -> None:
    """The third one stores nothing alone."""
    await _kill(world, dice, dice.sample(range(SIZE), 2))


async def kill_all_servers(world: World[Cluster], dice: random.Random) -> None:
    await _kill(world, dice, list(range(SIZE)))


async def _kill(world: World[Cluster], dice: random.Random, numbers: list[int]) -> None:
    servers = world.site.servers
    for number in numbers:
        await servers.end(number)
    await asyncio.sleep(dice.choice((0.0, 1.0, 5.0)))
    for number in numbers:
        await servers.start(number)


async def restart_servers(world: World[Cluster], dice: random.Random) -> None:
    """One after the other, each when the last is back, as a new version is rolled out."""
    servers = world.site.servers
    for number in dice.sample(range(SIZE), SIZE):
        await servers.end(number, signal.SIGUSR2)
        await servers.start(number)
        await servers.healthy()


async def freeze_server(world: World[Cluster], dice: random.Random) -> None:
    pid = world.site.servers.pid(dice.randrange(SIZE))
    os.kill(pid, signal.SIGSTOP)
    try:
        await asyncio.sleep(FREEZE_SERVER_S)
    finally:
        os.kill(pid, signal.SIGCONT)


async def kill_control(world: World[Cluster], dice: random.Random) -> None:
    await replace(world, signal.SIGKILL, CONTROL)


async def kill_host(world: World[Cluster], dice: random.Random) -> None:
    await replace(world, signal.SIGKILL, dice.choice(HOSTS))


FAULTS: Final = (
    Fault("server killed", "F1: P1 P2 P5 P6", kill_server),
    Fault("two servers killed", "F12: P1 P2 P6", kill_two_servers),
    Fault("all servers killed", "F12: P1 P2 P6", kill_all_servers),
    Fault("servers restarted in turn", "F11: P1 P5 P6", restart_servers, is_gentle=True),
    Fault("server frozen", "F6: P1 P5 P6", freeze_server),
    Fault("control plane killed", "F19: P1 P4", kill_control),
    Fault("host killed", "F3: P1 P2 P6", kill_host),
)
