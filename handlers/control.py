"""The control plane as one FastStream application: registrar, cancels and dead letters.

Declares the streams, gives the handlers what they work with, and ends the process rather than
living on deaf. `python -m handlers.app` and `mesh up control` run it.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Final

import nats.errors
from faststream import ContextRepo, FastStream
from faststream.nats import NatsBroker
from faststream.nats.security import NatsJWT, NatsSecurity
from nats.aio.client import Client

from handlers.cancel import LINK
from handlers.cancel import router as cancel_router
from handlers.dead_letters import DIRECTORY, Undertaker
from handlers.dead_letters import router as dead_letters_router
from handlers.history import router as history_router
from handlers.joins import KEYRING
from handlers.joins import router as joins_router
from handlers.mailboxes import Mailboxes
from handlers.parcels import router as parcels_router
from handlers.presence import PEOPLE
from handlers.presence import router as presence_router
from handlers.registrar import Registrar
from handlers.registry import router as registry_router
from handlers.sweeper import Sweeper
from handlers.watchdog import Watchdog
from mesh.background import BackgroundTasks
from mesh.connection import PING_INTERVAL_S, Connection
from mesh.directory import follow_directory
from mesh.errors import BrokerUnreachableError, TransportError
from mesh.exposition import exposing
from mesh.nats_client import insist_on_tls
from mesh.presence import follow_people
from mesh.provision import ensure_streams
from mesh.runtime import describe_process
from mesh.settings import Settings
from mesh.trust.credentials import Credentials
from mesh.trust.keyring import Keyring
from mesh.trust.login import Login
from schemas.registry import Role

logger = logging.getLogger(__name__)

CONNECT_LIMIT_S: Final = 10.0


def create_app(
    settings: Settings | None = None, *, on_ready: Callable[[], object] | None = None
) -> FastStream:
    """Make the control plane. `on_ready` is called when it serves.

    Raises:
        SettingsError: the environment holds a setting that cannot be used.
        TrustError: the credentials that it names cannot be used.
    """
    settings = settings or Settings.from_env()
    login = Login.of(settings)
    control = _Control(settings, login.credentials)
    broker = NatsBroker(
        login.servers,
        security=_security(login),
        inbox_prefix=login.inbox_prefix,
        name=f"mesh control {settings.node}",
        max_reconnect_attempts=-1,
        reconnect_time_wait=1,
        ping_interval=PING_INTERVAL_S,
        max_outstanding_pings=2,
        drain_timeout=3,
        reconnected_cb=control.reconnected,
        routers=(
            *(registry_router, cancel_router, dead_letters_router),
            *(history_router, parcels_router, joins_router, presence_router),
        ),
        logger=logging.getLogger("mesh.faststream"),
        log_level=logging.DEBUG,
    )

    @asynccontextmanager
    async def lifespan(context: ContextRepo) -> AsyncIterator[None]:
        await _connect(broker)
        if login.is_encrypted:
            _insist_on_tls(broker.connection)
        async with control.running(broker.connection, context):
            yield

    async def ready() -> None:
        control.reign()
        if on_ready is not None:
            on_ready()

    return FastStream(
        broker,
        logger=logging.getLogger("mesh.faststream"),
        lifespan=lifespan,
        after_startup=[ready],
        on_shutdown=[control.leave],
    )


def _security(login: Login) -> NatsSecurity | None:
    context, credentials = login.tls_context(), login.credentials
    if credentials is None:
        return NatsSecurity(ssl_context=context) if context else None
    return NatsJWT(credentials.show_token, credentials.answer, ssl_context=context)


async def _connect(broker: NatsBroker) -> None:
    """Connect, or end: nats-py would try for ever, and FastStream is deaf to signals till then."""
    try:
        await asyncio.wait_for(broker.connect(), CONNECT_LIMIT_S)
    except TimeoutError:
        raise BrokerUnreachableError(
            f"no broker answered within {CONNECT_LIMIT_S:g} s: start one with `mesh up`, "
            "or set MESH_NATS_URL"
        ) from None


def _insist_on_tls(client: Client) -> None:
    try:
        insist_on_tls(client)
    except nats.errors.Error as error:
        raise BrokerUnreachableError(str(error)) from error


class _Control:
    """What lives as long as the application."""

    def __init__(self, settings: Settings, credentials: Credentials | None) -> None:
        self._settings = settings
        self._credentials = credentials
        is_hub = Keyring.exists(settings.keys_dir)
        self._keyring = Keyring.open(settings.keys_dir) if is_hub else None
        self._tasks = BackgroundTasks()
        self._connection: Connection | None = None
        self._registrar: Registrar | None = None
        self._undertaker: Undertaker | None = None

    async def reconnected(self) -> None:
        """Pass FastStream's reconnect on to what hangs on the connection."""
        if self._connection is not None:
            await self._connection.reconnected()

    @asynccontextmanager
    async def running(self, client: Client, context: ContextRepo) -> AsyncIterator[None]:
        """Set up everything that the handlers ask the context for."""
        async with AsyncExitStack() as stack:
            connection = self._connection = Connection(client, self._credentials)
            await connection.start()
            for difference in await ensure_streams(connection, self._settings):
                logger.warning("left as it is: %s", difference)
            directory = await stack.enter_async_context(follow_directory(connection))
            people = await stack.enter_async_context(follow_people(connection, directory.clock))
            instance = describe_process(self._settings.node, Role.REGISTRAR)
            registrar = Registrar(connection, directory, self._settings, instance, self._keyring)
            self._registrar = registrar
            self._undertaker = Undertaker(
                connection, directory, self._settings, registrar.groups.pin
            )
            context.set_global("registrar", registrar)
            context.set_global(LINK, connection)
            context.set_global(DIRECTORY, directory)
            context.set_global(KEYRING, self._keyring)
            context.set_global(PEOPLE, people)
            await stack.enter_async_context(exposing(self._settings))
            if self._settings.metrics_port:
                self._tasks.start(Mailboxes(connection, directory).watch_forever())
            self._tasks.start(Sweeper(connection, directory.clock).sweep_forever())
            watchdog = Watchdog(lambda: client.is_connected)
            self._tasks.start(watchdog.tick_forever())
            stack.push_async_callback(connection.release)
            stack.push_async_callback(self._tasks.cancel)
            yield

    def reign(self) -> None:
        """Begin what runs beside the handlers."""
        if self._registrar is not None and self._undertaker is not None:
            self._tasks.start(self._registrar.reign())
            self._tasks.start(self._undertaker.scan_forever())

    async def leave(self) -> None:
        """Say goodbye while there is still a connection."""
        await self._tasks.cancel()
        if self._registrar is not None:
            try:
                await self._registrar.abdicate()
            except TransportError as error:
                logger.info("left without a word: %s", error)
