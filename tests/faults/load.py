"""Callers that never stop asking, and note what they were told: the history of a fault test.

Some wait for each answer, some detach and come back, some use HTTP.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from itertools import count
from typing import Any, Final

import httpx2

from mesh.calls import Call, StoredCall
from mesh.errors import MeshError
from mesh.followers import follow_call
from mesh.questions import encode_question
from tests.faults.checker import ANSWERED, GRACE_S, Attempt
from tests.faults.sites import AGENT
from tests.faults.world import World
from tests.pace import stopwatch

REFUSED_PAUSE_S: Final = 0.2
"""After an error at once, as from a broker that is away: a caller is no flood."""
LOOK_S: Final = 2.0
"""How often `mesh.followers` looks whether a request that nobody answered has expired."""
_OF_THE_READER: Final = frozenset({"broker_unreachable", "stream_missing", "transport"})


class Load:
    """The callers of one run."""

    def __init__(self, world: World[Any], *, timeout_s: float) -> None:
        self._world = world
        self._timeout_s = timeout_s
        self._numbers = count(1)
        self._is_over = False
        self.attempts: list[Attempt] = []

    @asynccontextmanager
    async def running(self, *, waiting: int, detached: int, http: int) -> AsyncIterator[None]:
        """Run so many callers of each kind; at the end every call that was begun has ended."""
        async with asyncio.TaskGroup() as group:
            for _ in range(waiting):
                group.create_task(self._repeat("ask", self._ask))
            for _ in range(detached):
                group.create_task(self._repeat("detach", self._detach))
            for number in range(http):
                first = number % len(self._world.shims)
                group.create_task(self._http(self._world.shims[first:] + self._world.shims[:first]))
            try:
                yield
            finally:
                self._is_over = True

    async def ask_once(self, text: str) -> Attempt:
        """Ask one question and wait for the answer."""
        return await self._ask(text)

    async def _repeat(self, name: str, way: Callable[[str], Awaitable[Attempt]]) -> None:
        while not self._is_over:
            attempt = await way(f"{name}-{next(self._numbers)}")
            if attempt.outcome != ANSWERED:
                await asyncio.sleep(REFUSED_PAUSE_S)

    async def _ask(self, text: str) -> Attempt:
        call: Call | None = None
        with stopwatch() as taken:
            started_s = time.monotonic()
            try:
                body = encode_question(AGENT, text, stream=False)
                call = await self._world.client.start(AGENT, body, timeout_s=self._timeout_s)
                outcome, answer = ANSWERED, (await call.reply()).text
            except MeshError as error:
                outcome, answer = error.code, ""
            ended_s = time.monotonic()
        return self._note(
            Attempt(
                call_id=call.id if call else f"never-{text}",
                text=text,
                started_s=started_s,
                ended_s=ended_s,
                timeout_s=self._timeout_s,
                outcome=outcome,
                answer=answer,
                is_stored=call is not None and call.sequence > 0,
                lost_s=taken.lost_s,
            )
        )

    async def _detach(self, text: str) -> Attempt:
        stored: StoredCall | None = None
        with stopwatch() as taken:
            started_s = time.monotonic()
            try:
                body = encode_question(AGENT, text, stream=False)
                stored = await self._world.client.submit(AGENT, body, timeout_s=self._timeout_s)
                outcome, answer = ANSWERED, await self._result(stored)
            except MeshError as error:
                outcome, answer = error.code, ""
            ended_s = time.monotonic()
        return self._note(
            Attempt(
                call_id=stored.id if stored else f"never-{text}",
                text=text,
                started_s=started_s,
                ended_s=ended_s,
                timeout_s=self._timeout_s,
                outcome=outcome,
                answer=answer,
                is_stored=stored is not None,
                lost_s=taken.lost_s,
                # Who looks for an answer that nobody waits for looks every two seconds.
                grace_s=GRACE_S + LOOK_S,
            )
        )

    async def _result(self, stored: StoredCall) -> str:
        """Come back for an answer until the call has ended, whatever happens to the reader."""
        while True:
            try:
                async with follow_call(self._world.reader, stored) as call:
                    return (await call.reply()).text
            except MeshError as error:
                if error.code not in _OF_THE_READER:
                    raise
            await asyncio.sleep(REFUSED_PAUSE_S)

    async def _http(self, shims: tuple[str, ...]) -> None:
        timeout = httpx2.Timeout(self._timeout_s + 5, connect=5)
        async with httpx2.AsyncClient(timeout=timeout) as http:
            await self._repeat("http", partial(self._post, http, shims))

    async def _post(self, http: httpx2.AsyncClient, shims: tuple[str, ...], text: str) -> Attempt:
        body = {
            "model": AGENT,
            "messages": [{"role": "user", "content": text}],
            "timeout": self._timeout_s,
            "wait": True,
        }
        call_id = f"never-{text}"
        with stopwatch() as taken:
            started_s = time.monotonic()
            try:
                answered = await _post_to_any(http, shims, body)
                call_id = answered.headers.get("mesh-call-id", call_id)
                found = answered.json()
                if answered.status_code == 200:
                    outcome, answer = ANSWERED, found["choices"][0]["message"]["content"]
                else:
                    outcome, answer = found["error"]["code"], ""
            except httpx2.HTTPError as error:  # Its shim was killed.
                outcome, answer = type(error).__name__, ""
            ended_s = time.monotonic()
        return self._note(
            Attempt(
                call_id=call_id,
                text=text,
                started_s=started_s,
                ended_s=ended_s,
                timeout_s=self._timeout_s,
                outcome=outcome,
                answer=answer,
                is_stored=outcome == ANSWERED,
                lost_s=taken.lost_s,
            )
        )

    def _note(self, attempt: Attempt) -> Attempt:
        self.attempts.append(attempt)
        return attempt


async def _post_to_any(
    http: httpx2.AsyncClient, shims: tuple[str, ...], body: dict[str, Any]
) -> httpx2.Response:
    """Ask the first shim that listens, as a load balancer would."""
    *others, last = [f"{one}/v1/chat/completions" for one in shims]
    for url in others:
        try:
            return await http.post(url, json=body)
        except httpx2.ConnectError:
            continue
    return await http.post(last, json=body)
