"""One connection to the broker, with the life cycle that the mesh needs.

Whoever opens it closes it. Reconnects for ever, tells its users when it did, and says when it is
closed for good, so that a process can end instead of living on deaf.
"""

import asyncio
import logging
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Final

import nats.errors
from nats.aio.client import Client

from mesh import metrics
from mesh.background import BackgroundTasks
from mesh.dispatch import dispatch
from mesh.elections import Elections, Hook
from mesh.errors import BrokerUnreachableError, CredentialsError, MeshError
from mesh.nats_client import MeshNatsClient, discard_pending, is_guarded
from mesh.publisher import Publisher
from mesh.settings import DEFAULT_BODY_MAX_BYTES
from mesh.subjects import PULL
from mesh.trust.credentials import Credentials
from mesh.trust.login import Login
from mesh.uplink import has_uplink, watch_uplink

logger = logging.getLogger(__name__)

PING_INTERVAL_S: Final = 5
"""With two outstanding pings, a half-open connection is seen after about ten seconds."""
_ANSWER_S: Final = 5.0
"""How long a broker may take to answer who has no patience."""

_REFUSED: Final = re.compile("authorization violation|authentication (revoked|expired)", re.I)
"""What nats-server says to who may not come in, or no longer."""
_ADVICE: Final = "start one with `mesh up`, or set MESH_NATS_URL"
_UNTRUSTED: Final = "CERTIFICATE_VERIFY_FAILED"
REFUSALS: Final = 3
"""So many in a row are no accident: a server that has just started may not know an account yet."""
_DENIED: Final = re.compile(r'permissions violation for publish to "(.+)"')
"""The broker names the subject, never the message."""


class Connection:
    """A nats-py client, its publisher, and the hooks that run after a reconnect or an election."""

    def __init__(
        self,
        client: Client,
        credentials: Credentials | None = None,
        *,
        body_max_bytes: int = DEFAULT_BODY_MAX_BYTES,
    ) -> None:
        self.client = client
        self.body_max_bytes = body_max_bytes
        """How large a body or a file may be that lies beside its message."""
        self.credentials = credentials
        """As whom it logged in; None where the broker asks nobody: an open mesh."""
        dispatch(client)
        self.publisher = Publisher(client)
        self.closed = asyncio.Event()
        self.losses = 0
        """How often it was lost: what was asked for on one connection is over on the next."""
        self._refusals = 0
        self._hooks: list[Hook] = []
        self.tasks = BackgroundTasks()
        """Work that may be lost with the connection, and only then."""
        self.elections = Elections(client, self.start_hook)

    def caller(self, name: str) -> str:
        """Return as whom to call who would be called `name` in an open mesh."""
        return self.credentials.caller(name) if self.credentials else name

    @property
    def is_secure(self) -> bool:
        """Whether the broker asks who comes: there are members who may not do everything."""
        return self.credentials is not None or is_guarded(self.client)

    def on_reconnect(self, hook: Hook) -> None:
        """Run `hook` after every reconnect."""
        self._hooks.append(hook)

    def drop_hook(self, hook: Hook) -> None:
        """Stop running `hook`."""
        if hook in self._hooks:
            self._hooks.remove(hook)

    async def start(self) -> None:
        """Begin to match acknowledgements. Once, on a client that is connected."""
        _open.add(self.client)
        await self.publisher.start()
        await self.elections.start()
        self.tasks.start(self.publisher.expire_forever())
        if has_uplink(self.client):
            self.tasks.start(watch_uplink(self.client, self.reconnected))

    async def require_connected(self, patience_s: float) -> None:
        """Wait for a lost connection to come back.

        Raises:
            BrokerUnreachableError: it did not, within `patience_s`, or is closed for good.
        """
        deadline = asyncio.get_running_loop().time() + patience_s
        while not self.client.is_connected:
            if self.client.is_closed:
                raise self.ending()
            if asyncio.get_running_loop().time() > deadline:
                raise BrokerUnreachableError(
                    "the broker is not reachable; nothing was sent", servers=""
                )
            await asyncio.sleep(0.05)

    def ending(self) -> MeshError:
        """Return why the connection is closed for good."""
        if self._refusals >= REFUSALS or _REFUSED.search(str(self.client.last_error)):
            who = self.credentials.name if self.credentials else "us"
            return CredentialsError(
                f"the broker lets {who} in no more: the credentials were revoked, made anew, or "
                "have expired",
                path="",
            )
        return BrokerUnreachableError("the connection to the broker is closed for good")

    def refused(self) -> None:
        """Count a refusal to let us in again, and close after too many."""
        self._refusals += 1
        if self._refusals == REFUSALS:
            self.tasks.start(_close(self.client))

    async def release(self) -> None:
        """Stop what runs beside the connection."""
        _open.discard(self.client)
        await self.tasks.cancel()

    def lost(self) -> None:
        """Note that the connection is gone; to be called before the next attempt to connect."""
        self.losses += 1
        # What is published meanwhile goes out when it is back; a pull would bring messages to an
        # inbox that is given up then, and nobody would hear them.
        discard_pending(self.client, PULL)

    async def reconnected(self) -> None:
        """Tell everybody that the connection is back: acknowledgements first, then the hooks."""
        logger.info("connected again")
        self._refusals = 0
        metrics.RECONNECTS.inc()
        self.publisher.forget_unacknowledged()
        for hook in list(self._hooks):
            self.start_hook(hook)

    def start_hook(self, hook: Hook) -> None:
        """Run a hook now, beside everything else."""
        self.tasks.start(_run_hook(hook))


_open: set[Client] = set()
metrics.CONNECTED.set(lambda: sum(one.is_connected for one in tuple(_open)))


async def _run_hook(hook: Hook) -> None:
    try:
        await hook()
    except (nats.errors.Error, BrokerUnreachableError) as error:
        # Gone again already: the next reconnect runs the hook again.
        logger.warning("after a reconnect or an election: %s", error)


class _Attempt:
    """The first attempt to connect, and what nats-py says is wrong, then and later."""

    def __init__(
        self, connection: Connection, login: Login, patience_s: float, advice: str
    ) -> None:
        self._connection = connection
        self._advice = advice
        self._login = login
        self._is_patient = bool(patience_s)
        self._limit_s = patience_s or _ANSWER_S
        self._failure: asyncio.Future[Exception] = asyncio.get_running_loop().create_future()
        self._misses = 0
        self._refusals = 0

    async def on_error(self, error: Exception) -> None:
        """Take in what nats-py says."""
        if self._failure.done():
            self._tell(error)
            return
        # A broker that is slow has not refused: there is a limit for it.
        self._misses += not isinstance(error, TimeoutError)
        self._refusals += bool(_REFUSED.search(str(error)))
        has_missed = self._misses >= len(self._login.servers)
        if self._refusals >= REFUSALS or (has_missed and not self._is_patient):
            self._failure.set_result(error)
        elif self._misses == len(self._login.servers):
            logger.warning("waiting for the broker at %s: %s", self._login, error)

    def _tell(self, error: Exception) -> None:
        denied = _DENIED.search(str(error))
        if denied and self._connection.publisher.deny(denied[1]):
            return  # Who has published knows.
        if _REFUSED.search(str(error)):
            self._connection.refused()
        logger.warning("broker: %s", error or type(error).__name__)

    async def wait(self, connecting: "asyncio.Future[None]") -> None:
        """Wait until nats-py is connected. Raises what `open_connection` raises."""
        either: set[asyncio.Future[Any]] = {connecting, self._failure}
        await asyncio.wait(either, timeout=self._limit_s, return_when=asyncio.FIRST_COMPLETED)
        if connecting.done() and not connecting.cancelled() and connecting.exception() is None:
            if not self._failure.done():
                self._failure.cancel()
            return
        reason = f"no answer within {self._limit_s:g} s"
        if self._failure.done():
            reason = str(self._failure.result())
        if connecting.done() and (error := connecting.exception()):
            reason = str(error) or type(error).__name__
        connecting.cancel()
        await asyncio.wait({connecting})
        await self._connection.client.close()
        if _REFUSED.search(reason):
            raise _refusal(self._login)
        advice = self._advice
        if _UNTRUSTED in reason:
            advice = (
                "its certificate is not good here: set MESH_TLS_CA to a copy of the hub's "
                "keys/tls/ca.pem, or make one for this name there, `mesh keys certificate NAME`"
            )
        raise BrokerUnreachableError(
            f"no broker at {self._login} ({reason}): {advice}", servers=str(self._login)
        )


@asynccontextmanager
async def open_connection(
    login: Login | str, *, name: str, patience_s: float = 0.0, advice: str = _ADVICE
) -> AsyncIterator[Connection]:
    """Connect to a broker, and close at the end. A URL alone is a login without credentials.

    With `patience_s` it goes on trying for so long; without, the first refusal is the answer, and a
    broker that says nothing has five seconds. `advice` is what its failure tells people to do.

    Raises:
        BrokerUnreachableError: there is no broker.
        SettingsError: WebSockets are mixed with plain connections.
        CredentialsError: it does not let us in, or its authority cannot be read.
    """
    login = Login(login) if isinstance(login, str) else login
    login.require_one_way()
    client = MeshNatsClient(must_encrypt=login.is_encrypted)
    connection = Connection(client, login.credentials, body_max_bytes=login.body_max_bytes)
    attempt = _Attempt(connection, login, patience_s, advice)

    async def on_closed() -> None:
        connection.closed.set()

    async def on_disconnected() -> None:
        connection.lost()
        if not client.is_closed:
            logger.warning("connection to the broker lost; trying again")

    connecting = client.connect(
        **login.options(),
        name=name,
        error_cb=attempt.on_error,
        closed_cb=on_closed,
        disconnected_cb=on_disconnected,
        reconnected_cb=connection.reconnected,
        max_reconnect_attempts=-1,
        reconnect_time_wait=1 if patience_s else 0.5,  # type: ignore[arg-type]
        ping_interval=PING_INTERVAL_S,
        max_outstanding_pings=2,
        pending_size=8 * 1024 * 1024,
        # `mesh.subjects` builds every subject from checked ids; a second look costs 5 % of a call.
        skip_subject_validation=True,
    )
    await attempt.wait(asyncio.ensure_future(connecting))
    try:
        await _begin(connection)
        yield connection
    finally:
        await connection.release()
        await _close(client)


async def _begin(connection: Connection) -> None:
    try:
        await connection.start()
    except nats.errors.Error as error:  # Closed again already.
        raise connection.ending() from error


async def _close(client: Client) -> None:
    try:
        await client.close()
    except ConnectionError as error:
        # nats-py 2.16 writes what it still has, also into a connection that is lost.
        logger.debug("closed without the last words: %s", error)


def _refusal(login: Login) -> CredentialsError:
    if login.credentials is None:
        return CredentialsError(
            f"the broker at {login} asks who we are: set MESH_CREDS to a file of credentials, or "
            "join with a token (`mesh join`)",
            path="",
        )
    return CredentialsError(
        f"the broker at {login} does not let {login.credentials.name} in: the credentials are "
        "revoked or of another mesh",
        path="",
    )
