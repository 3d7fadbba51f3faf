"""One run of an agent's handler: what it says, streamed or at once, and that it takes long.

Settles nothing and writes no last frame: that is `mesh.execution`.
"""

import asyncio
import logging
from collections.abc import Iterator
from contextlib import aclosing
from functools import partial
from typing import Any, Final

from mesh import codec
from mesh.agent import Agent, Handler
from mesh.completions import ChunkWriter
from mesh.context import CallContext
from mesh.errors import AgentFailedError, MeshError
from mesh.invocation import StreamedAnswer, call, parts, to_reply
from mesh.place import Place
from mesh.replies import ReplyWriter
from mesh.requests import Question
from mesh.runs import Run
from mesh.shared_timer import SharedTimer
from schemas.chat import ChatDelta, ChatReply, ChatRequest
from schemas.frame import WorkingBody

logger = logging.getLogger(__name__)

WORKING_AFTER_S: Final = 0.2
"""Fast calls pay nothing; a slow one says once that it is being worked on."""
PIECE_CHARS: Final = 100_000
"""Of one part of a streamed answer: a chunk must fit into a message, and in JSON a character may
have six bytes."""


class Handling:
    """Runs the handler for one call."""

    def __init__(
        self, agent: Agent, place: Place, slow: SharedTimer, writer: ReplyWriter, run: Run
    ) -> None:
        self._agent = agent
        self._place = place
        self._slow = slow
        self._writer = writer
        self._run = run

    async def reply(self, question: Question, context: CallContext) -> ChatReply:
        """Run the handler on a question; its parts are written as they come, if it streams.

        Raises:
            AgentFailedError: there is none, or it raised something else than a MeshError.
            MeshError: it raised that.
        """
        handler = self._agent.handler
        if handler is None:
            raise AgentFailedError(f"agent {self._agent.id!r} answers no chat requests")
        # The deadline is only set when it turns out slow.
        self._slow.begin(self, WORKING_AFTER_S, partial(self._turn_slow, context))
        try:
            if handler.kind.streams:
                return await self._stream(handler, question.chat, context)
            return to_reply(await call(handler, question.chat, context, self._place.threads))
        except MeshError as error:
            context.cancelled = True
            logger.warning("%s: call %s failed: %s", self._agent.id, context.id, error)
            raise
        except asyncio.CancelledError as error:
            context.cancelled = True
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise
            # Nobody cancelled us: something inside the handler was, and it let that through.
            raise AgentFailedError("the handler was cancelled from inside") from error
        except Exception as error:
            # The user's handler may raise anything: the caller is told, and the log has it whole.
            logger.exception("%s: the handler failed on call %s", self._agent.id, context.id)
            raise AgentFailedError(
                f"{type(error).__name__}: {error}", error_type=type(error).__name__
            ) from error
        finally:
            self._slow.end(self)

    def _turn_slow(self, context: CallContext) -> None:
        run = self._run
        if not run.is_running:
            return
        if context.deadline is not None:
            run.stop_at(context.deadline)
        if run.span is not None:
            run.span.turn_slow()
        body = WorkingBody(
            agent=self._agent.id,
            node=self._place.node,
            instance=self._place.instance,
            attempt=context.attempt,
        )
        self._place.connection.tasks.start(self._writer.working(codec.encode(body)))

    async def _stream(
        self, handler: Handler, request: ChatRequest, context: CallContext
    ) -> ChatReply:
        writer = self._writer
        shows = request.stream and writer.takes_chunks
        chunks = ChunkWriter(context.id, self._agent.id, include_usage=request.include_usage)
        answer = StreamedAnswer()
        if shows:
            await writer.chunk(chunks.role())
        async with aclosing(parts(handler, request, context, self._place.threads)) as said:
            async for part in said:
                delta = answer.add(part)
                if shows and (delta.content or delta.tool_calls):
                    is_large = delta.content is not None and len(delta.content) > PIECE_CHARS
                    for piece in _pieces(delta) if is_large else (delta,):
                        await writer.chunk(chunks.delta(piece))
        reply = answer.reply()
        if shows:
            await writer.chunk(chunks.finish(reply.finish_reason))
            if request.include_usage:
                await writer.chunk(chunks.usage(reply.usage))
        return reply


def _pieces(delta: ChatDelta) -> Iterator[ChatDelta]:
    """Cut a part of an answer that may not fit into a message."""
    text = delta.content or ""
    for start in range(0, len(text), PIECE_CHARS):
        update: dict[str, Any] = {"content": text[start : start + PIECE_CHARS]}
        yield delta.model_copy(update=update | ({"tool_calls": None} if start else {}))
