"""One run of the fault tests: a world, a load, a nemesis, and what the checker says in the end."""

import asyncio
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import AbstractAsyncContextManager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from mesh.connection import Connection
from mesh.dead_letters import read_letters
from mesh.errors import MeshError
from mesh.history import read_history, read_next
from mesh.streams import INBOX, REPLY
from mesh.subjects import ALL_INBOXES, ALL_REPLIES
from tests.calls import TERMINAL
from tests.conftest import until
from tests.faults.checker import Evidence, Verdict, check
from tests.faults.footprint import Footprint
from tests.faults.load import Load
from tests.faults.nemesis import Blow, Fault, Nemesis
from tests.faults.report import Recovery, broken_gently, counts, failures, recoveries, table
from tests.faults.world import S, World, open_world
from tests.pace import stopwatch

ENOUGH: Final = 5
TRIED_S: Final = 10.0
TRIED_AT_MOST_S: Final = 60.0
LOOK_S: Final = 20.0
"""How often the reply stream is read: well within the two minutes that a frame lives."""


class Ledger:
    """Counts the terminal frames of each call, before they expire."""

    def __init__(self, reader: Connection) -> None:
        self._reader = reader
        self._next = 1
        self.terminals: Counter[str] = Counter()

    async def read(self) -> None:
        """Count what is new."""
        for one in await read_history(self._reader, REPLY, ALL_REPLIES, from_sequence=self._next):
            self._next = one.sequence + 1
            if one.headers.get("mesh-kind") in TERMINAL:
                self.terminals[one.subject] += 1

    async def read_forever(self) -> None:
        """Count until cancelled; a broker that is away is asked again."""
        while True:
            with suppress(MeshError):
                await self.read()
            await asyncio.sleep(LOOK_S)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of a run."""

    verdict: Verdict
    recoveries: Mapping[str, Recovery]
    broken_gently: Sequence[str]
    """Calls that failed of a restart in good order."""
    story: str
    """The faults in their order, and each call that was not answered."""
    footprint: str

    def __str__(self) -> str:
        numbers = table(self.verdict, self.recoveries)
        return f"{self.story}\n\n{self.footprint}\n\n{numbers}"


async def run(
    folder: Path,
    opening: AbstractAsyncContextManager[S],
    faults: Sequence[Fault[S]],
    seed: int,
    *,
    for_s: float,
    quiet_s: float,
    work_s: float = 0.5,
    callers: int = 8,
    timeout_s: float = 60.0,
) -> Outcome:
    """Do every fault to a mesh under load, and again until `for_s` seconds are over, and judge it.

    With `seed`, the faults and their order are the same again; what meets them is not.
    """
    footprint = Footprint()
    async with open_world(folder, opening, work_s=work_s) as world:
        ledger, load = Ledger(world.reader), Load(world, timeout_s=timeout_s)
        counting = asyncio.create_task(ledger.read_forever())
        nemesis = Nemesis(world, faults, seed)
        try:
            quarter = callers // 4
            async with load.running(waiting=2 * quarter, detached=quarter, http=quarter):
                await asyncio.sleep(quiet_s)
                async for _ in nemesis.strike_for(for_s, quiet_s):
                    world.take_footprint(footprint)
                    await _tried(load, nemesis.blows[-1])
            await ledger.read()
        finally:
            counting.cancel()
        evidence = Evidence(
            attempts=load.attempts,
            terminals=ledger.terminals,
            waiting=await _waiting(world),
            letters={one.call_id async for one in read_letters(world.reader)},
            # Last: what left the mailbox meanwhile has been done.
            begun=world.effects("begun"),
            done=world.effects("done"),
        )
    return Outcome(
        verdict=check(evidence),
        recoveries=recoveries(load.attempts, nemesis.blows),
        broken_gently=broken_gently(load.attempts, nemesis.blows),
        story=f"seed {seed}: {', '.join(one.fault for one in nemesis.blows)}\n"
        f"{failures(load.attempts, nemesis.blows)}",
        footprint=footprint.table(),
    )


async def _tried(load: Load, blow: Blow) -> None:
    """Wait until enough calls have shown what became of the mesh after a fault.

    For ten seconds, without those in which the machine stood still; the table says how many calls
    there were by then.
    """
    began_s = time.monotonic()

    def is_enough() -> bool:
        took_s = time.monotonic() - began_s
        is_tried = sum(counts(one, blow) for one in load.attempts) >= ENOUGH
        return is_tried or took_s - taken.lost_s > TRIED_S or took_s > TRIED_AT_MOST_S

    with stopwatch() as taken:
        await until(is_enough, within_s=2 * TRIED_AT_MOST_S)


async def _waiting(world: World[S]) -> set[str]:
    found, sequence = set[str](), 1
    while (one := await read_next(world.reader, INBOX, ALL_INBOXES, sequence)) is not None:
        found.add(one.headers.get("correlation_id", ""))
        sequence = one.sequence + 1
    return found
