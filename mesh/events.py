"""Events on the agent's side: one durable subscription, and the handler behind it."""

import asyncio
import logging
from dataclasses import dataclass
from typing import Any, Final

import nats.errors

from mesh import codec
from mesh.agent import Handler
from mesh.background import BackgroundTasks
from mesh.context import CallContext
from mesh.delivery import Delivery
from mesh.invocation import call
from mesh.place import Place
from mesh.pulls import PullLoop
from mesh.streams import ACK_BACKOFF_S, EVENT, event_durable

logger = logging.getLogger(__name__)

SLOTS: Final = 8
TICK_S: Final = 1.0


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened, as an `@agent.on` handler gets it: at least once."""

    source: str
    """The agent it is an event of."""
    name: str
    body: bytes
    sequence: int
    """Its place in the stream of events; the same when it comes again."""
    attempt: int

    def json(self) -> Any:
        """Return the payload.

        Raises:
            InvalidInputError: it is not JSON.
        """
        return codec.loads(self.body)

    @property
    def text(self) -> str:
        """The payload as text."""
        return self.body.decode(errors="replace")

    @classmethod
    def read(cls, delivery: Delivery) -> "Event":
        """Read a delivery of `agent.<source>.event.<name>`."""
        _, source, _, name = delivery.subject.split(".", 3)
        return cls(source, name, delivery.body, delivery.sequence, delivery.attempt)


class EventWorker:
    """Calls one handler for the events of one subscription."""

    def __init__(
        self, agent_id: str, subscription: tuple[str, str], handler: Handler, place: Place
    ) -> None:
        self._agent_id = agent_id
        self._handler = handler
        self._place = place
        self._running: dict[str, Delivery] = {}
        self._tasks = BackgroundTasks()
        durable = event_durable(agent_id, *subscription)
        self._pull = PullLoop(place.connection, EVENT, durable, self._on_delivery)

    @property
    def running(self) -> int:
        """How many events are being worked on."""
        return len(self._running)

    async def start(self) -> None:
        """Begin to pull."""
        await self._pull.start()
        self._pull.want(SLOTS)

    async def stop(self, grace_s: float) -> None:
        """Stop pulling, and let running handlers finish for `grace_s`."""
        await self._pull.stop()
        deadline = asyncio.get_running_loop().time() + grace_s
        while self._running and (left_s := deadline - asyncio.get_running_loop().time()) > 0:
            await self._tasks.join(min(left_s, TICK_S))
            await self.tick()
        await self._tasks.cancel()

    async def tick(self) -> None:
        """Renew what is being worked on."""
        for delivery in list(self._running.values()):
            try:
                await delivery.in_progress()
            except nats.errors.Error as error:
                logger.debug("cannot renew %s: %s", delivery.ack_subject, error)
        await self._pull.tick()

    def _on_delivery(self, delivery: Delivery) -> None:
        self._running[delivery.ack_subject] = delivery
        self._tasks.start(self._work(delivery))

    async def _work(self, delivery: Delivery) -> None:
        event = Event.read(delivery)
        try:
            await call(self._handler, event, self._context(event), self._place.threads)
            await delivery.ack()
        except Exception:
            # The user's handler may raise anything. The event comes again, up to the limit.
            logger.exception("%s: the handler failed on %s", self._agent_id, delivery.subject)
            step = min(delivery.attempt, len(ACK_BACKOFF_S)) - 1
            await delivery.nak(ACK_BACKOFF_S[step])
        finally:
            self._running.pop(delivery.ack_subject, None)
            self._pull.want(SLOTS - len(self._running))

    def _context(self, event: Event) -> CallContext:
        return CallContext(
            id=f"event-{event.sequence}",
            agent=self._agent_id,
            source_agent=event.source,
            source_node="",
            # Nobody else may publish under an agent's subject there.
            is_proven=self._place.connection.credentials is not None,
            attempt=event.attempt,
            hops=(),
            traceparent="",
            open_client=self._place.open_client,
        )
