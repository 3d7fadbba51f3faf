"""Passes presence on to a Matrix homeserver, with the token of each user.

A homeserver takes one change in ten seconds of a user, and forgets one that is not repeated within
half a minute. So the newest state goes out at once where that is allowed, and else when it is; and
no token is kept longer than that takes.
"""

import asyncio
import logging
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final
from urllib.parse import quote

import httpx2

from mesh.background import BackgroundTasks
from mesh.errors import PresenceRefusedError
from schemas.presence import PresenceState

logger = logging.getLogger(__name__)

PAUSE_S: Final = 10.0
TIMEOUT_S: Final = 5.0
_WORDS: Final = {
    PresenceState.ONLINE: "online",
    PresenceState.AWAY: "unavailable",
    PresenceState.OFFLINE: "offline",
}
_REFUSED: Final = frozenset({400, 401, 403, 404})


class Passed(StrEnum):
    """What became of a state at the homeserver."""

    OFF = "off"
    SENT = "sent"
    LATER = "later"
    UNREACHABLE = "unreachable"


@dataclass(slots=True)
class _Turn:
    """The turn of one user: when the next change may go out, and which that is."""

    free_at: float = 0.0
    newest: "_Change | None" = None


@dataclass(frozen=True, slots=True)
class _Change:
    token: str
    state: PresenceState
    message: str


class MatrixBridge:
    """The way to one homeserver."""

    def __init__(self, url: str, *, pause_s: float = PAUSE_S) -> None:
        self._url = url
        self._pause_s = pause_s
        self._turns: dict[str, _Turn] = {}
        self._tasks = BackgroundTasks()

    async def pass_on(self, user: str, token: str, state: PresenceState, message: str) -> Passed:
        """Tell the homeserver how a user is, now or as soon as it takes that.

        Raises:
            PresenceRefusedError: it does not take this token for this user.
        """
        turn = self._turns.setdefault(user, _Turn())
        change = _Change(token, state, message)
        wait_s = turn.free_at - asyncio.get_running_loop().time()
        if turn.newest is not None or wait_s > 0:
            is_waiting, turn.newest = turn.newest is not None, change
            if not is_waiting:
                self._tasks.start(self._send_later(user, turn, wait_s))
            return Passed.LATER
        return await self._send(user, turn, change)

    async def close(self) -> None:
        """Forget what has not been sent."""
        await self._tasks.cancel()

    async def _send_later(self, user: str, turn: _Turn, wait_s: float) -> None:
        await asyncio.sleep(max(0.0, wait_s))
        change, turn.newest = turn.newest, None
        if change is None:
            return
        try:
            await self._send(user, turn, change)
        except PresenceRefusedError as error:
            logger.info("%s", error)

    async def _send(self, user: str, turn: _Turn, change: _Change) -> Passed:
        now = asyncio.get_running_loop().time()
        self._turns = {
            known: one
            for known, one in self._turns.items()
            if one is turn or one.newest is not None or one.free_at > now
        }
        turn.free_at = now + self._pause_s
        body: dict[str, Any] = {"presence": _WORDS[change.state]}
        if change.message:
            body["status_msg"] = change.message
        try:
            answer = await self._put(user, change.token, body)
        except httpx2.HTTPError as error:
            logger.warning("the homeserver cannot be reached: %s", error or type(error).__name__)
            return Passed.UNREACHABLE
        if answer.status_code == 429:
            return self._wait_again(user, turn, change, answer)
        if answer.status_code in _REFUSED:
            raise PresenceRefusedError(
                f"the homeserver does not take this access token for {user} (it says "
                f"{answer.status_code} {_code(answer)}): log in again",
                user=user,
            )
        return Passed.SENT if answer.status_code == 200 else Passed.UNREACHABLE

    def _wait_again(
        self, user: str, turn: _Turn, change: _Change, answer: httpx2.Response
    ) -> Passed:
        wait_ms = _field(answer, "retry_after_ms")
        wait_s = wait_ms / 1_000 if isinstance(wait_ms, int) and wait_ms > 0 else self._pause_s
        turn.free_at = asyncio.get_running_loop().time() + wait_s
        turn.newest = change
        self._tasks.start(self._send_later(user, turn, wait_s))
        return Passed.LATER

    async def _put(self, user: str, token: str, body: dict[str, Any]) -> httpx2.Response:
        url = f"{self._url}/_matrix/client/v3/presence/{quote(user, safe='')}/status"
        headers = {"authorization": f"Bearer {token}"}
        async with httpx2.AsyncClient(timeout=TIMEOUT_S, trust_env=False) as http:
            return await http.put(url, json=body, headers=headers)


def _field(answer: httpx2.Response, name: str) -> Any:
    try:
        found = answer.json()
    except ValueError:
        return None
    return found.get(name) if isinstance(found, dict) else None


def _code(answer: httpx2.Response) -> str:
    code = _field(answer, "errcode")
    return code[:60] if isinstance(code, str) else ""
