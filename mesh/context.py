"""What a handler may know and do about the call it works on."""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from dataclasses import dataclass

from mesh import headers as h
from mesh.attachments import Attachment, FileSource
from mesh.callers import Lineage
from mesh.client import MeshClient
from mesh.errors import CallTimeoutError, InvalidInputError
from mesh.questions import Question
from mesh.replies import ReplyWriter
from mesh.settings import DEFAULT_TIMEOUT_S
from mesh.tracing import SpanContext
from schemas.chat import ChatReply


@dataclass(slots=True)
class CallContext:
    """The second parameter of a chat handler."""

    id: str
    """The call's id; the same on every attempt."""
    agent: str
    source_agent: str
    """Who asks; empty when nobody says so. See `is_proven`."""
    source_node: str
    is_proven: bool
    """Whether that is proven by a signature: always in secure mode, never in an open mesh."""
    attempt: int
    """1, or more when an earlier attempt died."""
    hops: tuple[str, ...]
    """The agents above this one."""
    traceparent: str
    open_client: Callable[[str], Awaitable[MeshClient]]
    """Gives the client with which this process calls as an agent."""
    deadline: float | None = None
    """By the event loop's clock; None when the caller named none."""
    cancelled: bool = False
    """Set when the caller no longer waits. An async handler is cancelled; one in a thread looks."""
    file: Attachment | None = None
    """The file that came with the question, if one did."""
    writer: ReplyWriter | None = None
    """Writes the answer; None where nobody asked, as with an event."""

    @property
    def remaining_s(self) -> float:
        """Seconds until the deadline."""
        if self.deadline is None:
            return h.MAX_TIMEOUT_S
        return max(0.0, self.deadline - asyncio.get_running_loop().time())

    @property
    def lineage(self) -> Lineage:
        """What a nested call is told of this one."""
        hops = (*self.hops, self.agent)
        context = SpanContext.read(self.traceparent)
        if context is None:
            return Lineage(hops)
        return Lineage(hops, context.trace_id, context.is_sampled, context.span_id)

    async def attach(self, source: FileSource, name: str = "") -> None:
        """Let a file come with the answer: a path, bytes, or pieces as they come.

        It is stored when this returns, and the caller is told of it with the final frame. What it
        takes of memory does not grow with the file. Of one that was received, `call.file` say, a
        copy is made.

        Raises:
            InvalidInputError: it cannot be read; there is one already; or who asked can be given
                none, as it did not name a reply subject of the mesh.
            PayloadTooLargeError: it is over MESH_BODY_MAX.
            StorageFullError: the broker has no room for it.
            BrokerUnreachableError: the broker does not acknowledge it.
        """
        if self.writer is None:
            raise InvalidInputError("nobody asked, so there is no answer", field="file")
        await self.writer.attach(source, name)

    async def ask(
        self,
        agent: str,
        question: Question,
        *,
        file: FileSource | None = None,
        node: str | None = None,
        timeout_s: float | None = None,
    ) -> ChatReply:
        """Ask another agent, as this one, within the time that is left.

        When this call is stopped meanwhile, so is the other. Raises what `MeshClient.ask` raises,
        and `HopLimitError` when an agent above this call would be asked again.
        """
        client = await self.open_client(self.agent)
        return await client.ask(
            agent,
            question,
            file=file,
            node=node,
            timeout_s=self._limit_s(timeout_s),
            lineage=self.lineage,
        )

    async def stream(
        self,
        agent: str,
        question: Question,
        *,
        node: str | None = None,
        timeout_s: float | None = None,
    ) -> AsyncGenerator[str, None]:
        """Ask another agent and yield the text of its answer as it comes.

        Raises what `MeshClient.stream` raises, and `HopLimitError`.
        """
        client = await self.open_client(self.agent)
        limit_s = self._limit_s(timeout_s)
        answer = client.stream(agent, question, node=node, timeout_s=limit_s, lineage=self.lineage)
        async with aclosing(answer) as parts:
            async for text in parts:
                yield text

    def _limit_s(self, timeout_s: float | None) -> float:
        limit_s = min(timeout_s or DEFAULT_TIMEOUT_S, self.remaining_s)
        if limit_s <= 0:
            raise CallTimeoutError("no time is left to ask another agent", timeout_s=0)
        return limit_s
