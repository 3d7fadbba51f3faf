"""An agent: a card, and the functions that answer for it. Does no I/O of its own.

`mesh.runtime` puts agents on the mesh; in a unit test the decorated functions are called as they
are, the decorators return them unchanged.
"""

import inspect
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any, Final, TypeVar

import orjson

from mesh import subjects
from mesh.errors import InvalidInputError, MeshError
from schemas.card import AgentCard, Subscription

Function = TypeVar("Function", bound=Callable[..., Any])
EventOutlet = Callable[[str, bytes], Awaitable[None]]

_MAX_PARAMETERS: Final = 2


class HandlerKind(Enum):
    """How a handler answers."""

    COROUTINE = "async def"
    ASYNC_GENERATOR = "async def with yield"
    FUNCTION = "def"
    GENERATOR = "def with yield"

    @property
    def streams(self) -> bool:
        """Whether the answer comes in parts."""
        return self in (HandlerKind.ASYNC_GENERATOR, HandlerKind.GENERATOR)

    @property
    def needs_thread(self) -> bool:
        """Whether it would block the event loop."""
        return self in (HandlerKind.FUNCTION, HandlerKind.GENERATOR)


@dataclass(frozen=True, slots=True)
class Handler:
    """A user's function, and how to call it."""

    function: Callable[..., Any]
    kind: HandlerKind
    takes_context: bool
    """Whether it has a second parameter, for the `CallContext`."""

    @classmethod
    def inspect(cls, function: Callable[..., Any]) -> "Handler":
        """Find out what a function is.

        Raises:
            InvalidInputError: it takes neither one nor two positional arguments.
        """
        parameters = inspect.signature(function).parameters.values()
        positional = [
            one
            for one in parameters
            if one.kind in (one.POSITIONAL_ONLY, one.POSITIONAL_OR_KEYWORD)
        ]
        if not 1 <= len(positional) <= _MAX_PARAMETERS:
            raise InvalidInputError(
                f"{function.__qualname__} must take the request, and the call if it wants it",
                field="handler",
            )
        return cls(function, _kind(function), takes_context=len(positional) == _MAX_PARAMETERS)

    def __call__(self, subject: Any, context: Any) -> Any:
        """Call the function, with the context if it takes one."""
        return self.function(subject, context) if self.takes_context else self.function(subject)


def _kind(function: Callable[..., Any]) -> HandlerKind:
    if inspect.isasyncgenfunction(function):
        return HandlerKind.ASYNC_GENERATOR
    if inspect.iscoroutinefunction(function):
        return HandlerKind.COROUTINE
    if inspect.isgeneratorfunction(function):
        return HandlerKind.GENERATOR
    return HandlerKind.FUNCTION


class Agent:
    """An agent of the mesh, to be run by `mesh run module:attribute`.

    `max_choices` is the largest `n` that clients may ask with; it stands in `request.n`.
    `mailbox_max` requests may wait for it, those that it works on included; who comes then is told
    to come back later. The broker's own limit, for every agent, is MESH_MAILBOX_MAX.
    `callers` are those who may call it, everybody if it is empty: ids such as `daarwizz`, nodes as
    `node:node1`, roles as `role:person`. In an open mesh callers are who they say; there are no
    roles then.

    Raises:
        InvalidIdError: `agent_id` is not an id.
    """

    def __init__(
        self,
        agent_id: str,
        *,
        description: str = "",
        version: str = "",
        model: str = "",
        concurrency: int = 16,
        max_choices: int = 1,
        mailbox_max: int | None = None,
        callers: Sequence[str] = (),
    ) -> None:
        self.id = subjects.require_id(agent_id)
        self._description = description
        self._version = version
        self._model = model
        self._concurrency = concurrency
        self._max_choices = max_choices
        self._mailbox_max = mailbox_max
        self.callers = tuple(callers)
        self._handler: Handler | None = None
        self._subscriptions: dict[tuple[str, str], Handler] = {}
        self._outlet: EventOutlet | None = None

    @property
    def card(self) -> AgentCard:
        """What is announced about this agent."""
        return AgentCard(
            id=self.id,
            description=self._description,
            version=self._version,
            model=self._model,
            concurrency=self._concurrency,
            streams=self._handler is not None and self._handler.kind.streams,
            max_choices=self._max_choices,
            mailbox_max=self._mailbox_max,
            callers=self.callers,
            subscriptions=tuple(
                Subscription(source=source, name=name) for source, name in self._subscriptions
            ),
        )

    @property
    def handler(self) -> Handler | None:
        """What answers chat requests, if anything does."""
        return self._handler

    @property
    def subscriptions(self) -> dict[tuple[str, str], Handler]:
        """What is called for events, by source and name."""
        return dict(self._subscriptions)

    def chat(self, function: Function) -> Function:
        """Answer chat requests with `function`.

        It takes the `ChatRequest`, and the `CallContext` as a second argument if it wants it. It
        returns a string or a `ChatReply`; a generator of strings or `ChatDelta`s streams. `async`
        or not: a plain function runs in a thread.
        """
        if self._handler is not None:
            raise InvalidInputError(f"agent {self.id!r} has a chat handler already", field="chat")
        self._handler = Handler.inspect(function)
        return function

    def on(self, event: str) -> Callable[[Function], Function]:
        """Call the function for every event `agent.name`, each at least once.

        Both halves may be `*`. The subscription is durable: what happens while the agent is
        offline comes when it is back, for seven days. The function takes the `Event`, and a
        `CallContext` to ask others with if it wants it.

        Raises:
            InvalidInputError: `event` is not `agent.name`.
        """
        source, dot, name = event.partition(".")
        if not dot:
            raise InvalidInputError(
                f"{event!r} names no event: write agent.name, such as solarius.done", field="event"
            )
        subjects.event_filter(source, name)

        def register(function: Function) -> Function:
            self._subscriptions[source, name] = Handler.inspect(function)
            return function

        return register

    async def publish(self, name: str, payload: Any) -> None:
        """Publish the event `name` of this agent, and return when it is stored.

        `payload` is anything that JSON can hold.

        Raises:
            MeshError: the agent is not running.
            InvalidInputError: the name or the payload cannot be.
            BrokerUnreachableError: the broker does not acknowledge it.
        """
        if self._outlet is None:
            raise MeshError(f"agent {self.id!r} is not running: run it with `mesh run`")
        try:
            body = orjson.dumps(payload)
        except TypeError as error:
            raise InvalidInputError(f"not JSON: {error}", field="payload") from None
        await self._outlet(name, body)

    def bind(self, outlet: EventOutlet | None) -> None:
        """Give the agent its way to publish, or take it away. For the runtime."""
        self._outlet = outlet
