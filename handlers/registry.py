"""The registry's subjects, as FastStream handlers: announcements, heartbeats, look-ups, expiry.

Translates, and keeps replies where they belong; what is done is done by `handlers.registrar`.
"""

import logging
from typing import Annotated, Any, Final

from faststream import AckPolicy, BaseMiddleware, Context, ExceptionMiddleware, Path
from faststream.nats import JStream, NatsMessage, NatsRouter, PullSub
from nats.js.errors import APIError
from pydantic import ValidationError

from handlers.registrar import Registrar, refusal
from mesh import headers as h
from mesh import registry, streams, subjects
from mesh.errors import BrokerUnreachableError, MeshError
from mesh.provision import UNAVAILABLE
from schemas.frame import ErrorBody, ErrorDetail
from schemas.registry import (
    AgentView,
    Announcement,
    Heartbeat,
    Receipt,
    RegistryView,
    Withdrawal,
)

logger = logging.getLogger(__name__)

failures = ExceptionMiddleware()


@failures.add_handler(ValidationError, publish=True)
def refuse_body(error: ValidationError) -> Receipt:
    """Tell a caller whose message does not fit its model."""
    first = error.errors(include_url=False)[0]
    place = ".".join(str(part) for part in first["loc"])
    return refusal("protocol", f"{place}: {first['msg']}")


@failures.add_handler(MeshError, publish=True)
def refuse(error: MeshError) -> Receipt:
    """Tell a caller what the registrar cannot do for it."""
    return refusal(error.code, error.message)


@failures.add_handler(APIError, publish=True)
def refuse_mailbox(error: APIError) -> Receipt:
    """Tell a host why its mailbox cannot be made."""
    if error.code == UNAVAILABLE:
        return refusal(BrokerUnreachableError.code, f"the broker is not ready: {error.description}")
    return refusal("card_refused", f"the broker refuses the mailbox: {error.description}")


class OwnReplies(BaseMiddleware):
    """Answers announcements only where the announcer itself is answered.

    FastStream publishes a handler's return value wherever a `reply_to` header says, with the
    registrar's rights: `$KV.registry.victim` would do.
    """

    async def consume_scope(self, call_next: Any, msg: Any) -> Any:
        """Forget a `reply_to` header that points elsewhere."""
        reply_to = msg.headers.get(h.REPLY_TO)
        if reply_to and not (
            subjects.is_inbox_reply(reply_to)
            or subjects.is_reply_to(reply_to, msg.path.get("agent", ""))
        ):
            logger.warning("refused to answer on %r", reply_to[:120])
            msg.reply_to = ""
        return await call_next(msg)


router = NatsRouter(middlewares=(failures, OwnReplies))
RegistrarInstance = Annotated[Registrar, Context("registrar")]
PULL_TIMEOUT_S: Final = 5.0
"""A pull that a broker restart has swallowed is noticed no sooner."""

_CONTROL: Final = JStream(streams.CONTROL, declare=False)
_PULL: Final = PullSub(batch_size=1, timeout=PULL_TIMEOUT_S)


# The durables are ours (`mesh.streams`); FastStream binds to them as they are.


@router.subscriber(
    "registry.announce.{agent}.{node}",
    stream=_CONTROL,
    durable=streams.REGISTRAR_ANNOUNCE,
    pull_sub=_PULL,
    ack_policy=AckPolicy.NACK_ON_ERROR,
)
async def on_announce(
    announcement: Announcement,
    registrar: RegistrarInstance,
    agent: Annotated[str, Path()],
    node: Annotated[str, Path()],
) -> Receipt:
    """A host announces an agent."""
    return await registrar.announce(agent, node, announcement)


@router.subscriber(
    "registry.withdraw.{agent}",
    stream=_CONTROL,
    durable=streams.REGISTRAR_WITHDRAW,
    pull_sub=_PULL,
    ack_policy=AckPolicy.NACK_ON_ERROR,
)
async def on_withdraw(
    withdrawal: Withdrawal, registrar: RegistrarInstance, agent: Annotated[str, Path()]
) -> None:
    """A host stops an agent."""
    await registrar.withdraw(agent, withdrawal)


@router.subscriber("registry.heartbeat.{node}.{instance}", queue="registrar")
async def on_heartbeat(
    heartbeat: Heartbeat, registrar: RegistrarInstance, node: Annotated[str, Path()]
) -> Receipt:
    """A process is alive, or leaves."""
    return await registrar.heartbeat(node, heartbeat)


@router.subscriber("registry.get.{agent}", queue="registrar")
async def on_lookup(
    registrar: RegistrarInstance, agent: Annotated[str, Path()]
) -> AgentView | ErrorBody:
    """Anybody asks about one agent."""
    try:
        return registrar.lookup(agent)
    except MeshError as error:
        return ErrorBody(
            error=ErrorDetail(code=error.code, message=error.message, fields=error.fields)
        )


@router.subscriber(subjects.REGISTRY_LIST, queue="registrar")
async def on_list(registrar: RegistrarInstance) -> RegistryView:
    """Anybody asks for the whole registry."""
    return registrar.list()


@router.subscriber(subjects.ALL_INSTANCE_EVENTS)
async def on_instance_event(message: NatsMessage, registrar: RegistrarInstance) -> None:
    """A process has expired: what it hosted is nowhere now."""
    subject = message.raw_message.subject
    key = subject.removeprefix(registry.EVENT_PREFIX)
    entry = registry.Entry.read(key, message.headers, message.body, 0)
    if entry.value is None:
        await registrar.forget(key.partition(".")[2])
