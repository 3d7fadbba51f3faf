"""Passes presence on to a Matrix homeserver, with the token of each user.

A homeserver takes one change in ten seconds of a user, and forgets one that is not repeated within
half a minute. So the newest state goes out at once where that is allowed, and else when it is. Only
who shows the token that the homeserver has just believed may wait for that: every other one it is
asked about. A token is kept for as long as its change has to wait.
"""

import asyncio
import logging
from dataclasses import dataclass
from enum import StrEnum
from hashlib import sha256
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
    """The turn of one user with one token: when the next change may go out, and which that is.

    It is kept only after the homeserver has believed the token.
    """

    free_at: float = 0.0
    newest: "_Change | None" = None
    is_busy: bool = False
    """Whether somebody waits to send the newest, or is sending."""


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
        self._turns: dict[tuple[str, bytes], _Turn] = {}
        """By user, and hash of the token."""
        self._tasks = BackgroundTasks()

    async def pass_on(self, user: str, token: str, state: PresenceState, message: str) -> Passed:
        """Tell the homeserver how a user is, now or as soon as it takes that.

        Raises:
            PresenceRefusedError: it does not take this token for this user.
        """
        now = asyncio.get_running_loop().time()
        self._turns = {
            key: one for key, one in self._turns.items() if one.is_busy or one.free_at > now
        }
        change = _Change(token, state, message)
        known = self._turns.get((user, _hash(token)))
        if known is None:
            turn = _Turn()
            passed = await self._send(user, turn, change)
            self._go_on(user, turn)
            return passed
        known.newest = change
        self._go_on(user, known)
        return Passed.LATER

    async def close(self) -> None:
        """Forget what has not been sent."""
        await self._tasks.cancel()

    def _go_on(self, user: str, turn: _Turn) -> None:
        if turn.newest is not None and not turn.is_busy:
            turn.is_busy = True
            self._tasks.start(self._send_later(user, turn))

    async def _send_later(self, user: str, turn: _Turn) -> None:
        try:
            while turn.newest is not None:
                await asyncio.sleep(max(0.0, turn.free_at - asyncio.get_running_loop().time()))
                change, turn.newest = turn.newest, None
                await self._send(user, turn, change)
        except PresenceRefusedError as error:
            logger.info("%s", error)
        finally:
            turn.is_busy = False

    async def _send(self, user: str, turn: _Turn, change: _Change) -> Passed:
        body: dict[str, Any] = {"presence": _WORDS[change.state]}
        if change.message:
            body["status_msg"] = change.message
        try:
            answer = await self._put(user, change.token, body)
        except httpx2.HTTPError as error:
            logger.warning("the homeserver cannot be reached: %s", error or type(error).__name__)
            return Passed.UNREACHABLE
        if answer.status_code in _REFUSED:
            raise PresenceRefusedError(
                f"the homeserver does not take this access token for {user} (it says "
                f"{answer.status_code} {_code(answer)}): log in again",
                user=user,
            )
        if answer.status_code not in (200, 429):
            return Passed.UNREACHABLE
        # Who is limited has been believed: a homeserver counts the changes of its users.
        wait_ms = _field(answer, "retry_after_ms")
        wait_s = wait_ms / 1_000 if isinstance(wait_ms, int) and wait_ms > 0 else self._pause_s
        turn.free_at = asyncio.get_running_loop().time() + wait_s
        self._turns[user, _hash(change.token)] = turn
        if answer.status_code == 200:
            return Passed.SENT
        turn.newest = turn.newest or change
        return Passed.LATER

    async def _put(self, user: str, token: str, body: dict[str, Any]) -> httpx2.Response:
        url = f"{self._url}/_matrix/client/v3/presence/{quote(user, safe='')}/status"
        headers = {"authorization": f"Bearer {token}"}
        async with httpx2.AsyncClient(timeout=TIMEOUT_S, trust_env=False) as http:
            return await http.put(url, json=body, headers=headers)


def _hash(token: str) -> bytes:
    return sha256(token.encode()).digest()


def _field(answer: httpx2.Response, name: str) -> Any:
    try:
        found = answer.json()
    except ValueError:
        return None
    return found.get(name) if isinstance(found, dict) else None


def _code(answer: httpx2.Response) -> str:
    code = _field(answer, "errcode")
    return code[:60] if isinstance(code, str) else ""
