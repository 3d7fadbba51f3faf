"""Calls a user's handler, whatever kind of function it is, and puts its answer together.

A plain function runs in a thread, so that a blocking one stops neither renewal nor its
neighbours. Knows nothing of NATS.
"""

import asyncio
from collections.abc import AsyncGenerator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from contextvars import copy_context
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final

from mesh.agent import Handler, HandlerKind
from mesh.errors import AgentFailedError
from mesh.tool_calls import ToolCallParts
from schemas.chat import ChatDelta, ChatReply, FinishReason, Usage

_END: Final = object()


@dataclass(slots=True)
class StreamedAnswer:
    """What a streaming handler has said so far."""

    parts: list[str] = field(default_factory=list)
    tool_calls: ToolCallParts = field(default_factory=ToolCallParts)
    finish_reason: FinishReason | None = None
    usage: Usage | None = None

    def add(self, delta: ChatDelta) -> ChatDelta:
        """Take in one part, and return it as clients read it.

        Raises:
            TypeError: a tool call in it is none.
        """
        if delta.content:
            self.parts.append(delta.content)
        self.finish_reason = delta.finish_reason or self.finish_reason
        self.usage = delta.usage or self.usage
        if not delta.tool_calls:
            return delta
        pieces = [self.tool_calls.add(one) for one in delta.tool_calls]
        return delta.model_copy(update={"tool_calls": pieces})

    def reply(self) -> ChatReply:
        """Return the whole answer."""
        text, tool_calls = "".join(self.parts), self.tool_calls.whole()
        named: dict[str, Any] = {"finish_reason": self.finish_reason} if self.finish_reason else {}
        return ChatReply(
            content=text if text or not tool_calls else None,
            tool_calls=tool_calls or None,
            usage=self.usage or Usage(),
            **named,
        )


async def call(handler: Handler, subject: Any, context: Any, threads: ThreadPoolExecutor) -> Any:
    """Call a handler that answers at once, and return what it returns."""
    if handler.kind is HandlerKind.COROUTINE:
        return await handler(subject, context)
    loop = asyncio.get_running_loop()
    # What a thread logs, and whom it asks, is of the same call and trace.
    run = copy_context().run
    result = await loop.run_in_executor(threads, run, _in_thread, handler, subject, context)
    # A lambda or a partial may hide a coroutine function.
    return await result if asyncio.iscoroutine(result) else result


def _in_thread(handler: Handler, subject: Any, context: Any) -> Any:
    """A future cannot hold a StopIteration: it would never end (CPython before 3.12)."""
    try:
        return handler(subject, context)
    except StopIteration as error:
        raise RuntimeError("the handler raised StopIteration") from error


async def parts(
    handler: Handler, subject: Any, context: Any, threads: ThreadPoolExecutor
) -> AsyncGenerator[ChatDelta, None]:
    """Call a handler that streams, and yield its parts.

    Raises:
        AgentFailedError: it yields something that is no part of an answer.
    """
    if handler.kind is HandlerKind.ASYNC_GENERATOR:
        # Closed at once when the caller is gone: a relay hangs up on its backend then.
        async with aclosing(handler(subject, context)) as answer:
            async for part in answer:
                yield _to_delta(part)
        return
    loop = asyncio.get_running_loop()
    generator: Iterator[Any] = handler(subject, context)
    step = partial(copy_context().run, _next_in_thread, generator)
    while (part := await loop.run_in_executor(threads, step)) is not _END:
        yield _to_delta(part)


def _next_in_thread(generator: Iterator[Any]) -> Any:
    return next(generator, _END)


def to_reply(value: Any) -> ChatReply:
    """Return what a handler returned as a reply.

    Raises:
        AgentFailedError: it is none.
    """
    if isinstance(value, str):
        return ChatReply(content=value)
    if isinstance(value, ChatReply):
        return value
    raise AgentFailedError(
        f"the handler returned {type(value).__name__}; return a string or a ChatReply",
        error_type="TypeError",
    )


def _to_delta(part: Any) -> ChatDelta:
    if isinstance(part, str):
        return ChatDelta(content=part)
    if isinstance(part, ChatDelta):
        return part
    raise AgentFailedError(
        f"the handler yielded {type(part).__name__}; yield strings or ChatDeltas",
        error_type="TypeError",
    )
