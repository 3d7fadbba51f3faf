"""The faults of a mesh with one broker.

Numbers (F1 …) are those of the list of fault tests that the project was planned with; promises
(P1 …) those of the README. Three hosts of one agent are F26. A full disk (F15) is in
`tests/acceptance/test_disk.py`, a full mailbox (F21) in `tests/integration/test_pressure.py`.
"""

import asyncio
import random
import signal
from contextlib import AsyncExitStack
from typing import Final

from mesh.connection import open_connection
from mesh.dead_letters import read_letters
from mesh.directory import load_directory
from mesh.questions import encode_question
from mesh.streams import REGISTRY
from tests.conftest import until
from tests.faults.nemesis import Fault, replace
from tests.faults.sites import AGENT, OneServer
from tests.faults.world import CONTROL, HOSTS, SHIMS, World

FREEZE_HOST_S: Final = 12.0
"""Longer than the ack_wait of 10 s: what a frozen host holds is given to another one."""
AWAY_S: Final = 45.0
CROWD: Final = 100


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


async def restart_all(world: World[OneServer], dice: random.Random) -> None:
    """One after the other, as a new version is rolled out."""
    for part in (*HOSTS, *SHIMS, CONTROL):
        await replace(world, signal.SIGTERM, part)
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


async def slow_callers(world: World[OneServer], dice: random.Random) -> None:
    """A link with 0.2 s and 10 kB/s each way, for a while."""
    world.site.proxy.slow(dice.choice((0.05, 0.2)))
    await asyncio.sleep(5.0)
    world.site.proxy.slow(0)


async def send_nothing(world: World[OneServer], dice: random.Random) -> None:
    """Messages without a body, and without headers: to nobody's address."""
    for _ in range(20):
        await world.reader.client.publish(f"agent.{AGENT}.inbox", b"")
    await world.reader.client.flush()


async def repeat_requests(world: World[OneServer], dice: random.Random) -> None:
    """What was asked a moment ago is asked again, in another order, as it is and under a new id."""
    requests = list(world.requests)
    dice.shuffle(requests)
    for subject, body, headers in requests:
        again = {**headers, "Nats-Msg-Id": dice.randbytes(16).hex()}
        for sent in (headers, again):
            await world.reader.publisher.publish(subject, body, sent)


async def reconnect_crowd(world: World[OneServer], dice: random.Random) -> None:
    """A hundred clients more lose the broker together, and are all back in half a minute."""
    async with AsyncExitStack() as stack:
        crowd = [
            await stack.enter_async_context(
                open_connection(world.site.reader, name="crowd", patience_s=30)
            )
            for _ in range(CROWD)
        ]
        await world.site.broker.kill(down_s=1.0)
        await until(lambda: all(one.client.is_connected for one in crowd), within_s=30)


async def wipe_registry(world: World[OneServer], dice: random.Random) -> None:
    await world.reader.client.jsm().purge_stream(REGISTRY)

    async def is_back() -> bool:
        read = await load_directory(world.reader)
        known = read.agent_record(AGENT) is not None
        return known and len(read.standing(AGENT).instances) == len(HOSTS)

    await until(is_back, within_s=60)


async def take_broker_away(world: World[OneServer], dice: random.Random) -> None:
    """For longer than anybody's patience."""
    await world.site.broker.kill(down_s=AWAY_S)


async def poison_hosts(world: World[OneServer], dice: random.Random) -> None:
    """A request that kills whoever works on it, until it is a dead letter."""
    text = f"poison-{dice.randrange(10**9)}"
    body = encode_question(AGENT, text, stream=False)
    sent = await world.client.submit(AGENT, body, timeout_s=600)

    async def is_dead() -> bool:
        return sent.id in {one.call_id async for one in read_letters(world.reader)}

    await until(is_dead, within_s=240)


FAULTS: Final = (
    Fault("broker killed", "F1: P1 P2 P5 P6", kill_broker),
    Fault("broker frozen", "F6: P1 P5 P6", freeze_broker),
    Fault("host killed", "F3: P1 P2 P6", kill_host),
    Fault("all hosts killed", "F3: P1 P2 P6", kill_all_hosts),
    Fault("host frozen", "F5: P1 P2", freeze_host),
    Fault("all restarted in turn", "F11: P1 P5 P6", restart_all, is_gentle=True),
    Fault("control plane killed", "F19: P1 P4", kill_control),
    Fault("shim killed", "F4: P1 P2", kill_shim),
    Fault("callers cut off", "F7: P1 P3 P5 P6", cut_callers),
    Fault("callers' links reset", "F8: P1 P3 P6", storm_callers),
    Fault("callers' links slow", "F9: P2 P5", slow_callers),
    Fault("empty messages", "F20: P1", send_nothing),
    Fault("requests repeated", "F28: P2", repeat_requests),
    Fault("registry wiped", "F25: P4 P6", wipe_registry),
)
SECURE_FAULTS: Final = tuple(
    one
    for one in FAULTS
    if one.act in (kill_broker, kill_all_hosts, kill_control, kill_shim, cut_callers, wipe_registry)
)
"""What is different behind a border: keys and rights come back, and pulls across it."""
LONG_FAULTS: Final = (
    Fault("broker away", "F2: P1 P5 P6 P7", take_broker_away),
    Fault("hosts poisoned", "F18: P1 P2", poison_hosts),
    Fault("crowd reconnects", "F22: P1 P6", reconnect_crowd),
)
"""Only `scripts/soak` takes the time for these."""
