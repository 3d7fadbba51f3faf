"""Frames: the messages that answer a call, on `agent.<caller>.reply.<instance>.<call>`.

The kind, sequence, attempt and place of a frame travel in headers (`mesh.headers`), so a body
is only ever what its kind says: an OpenAI object, plain text, or one of the models here.
"""

from enum import StrEnum
from typing import Any

from pydantic import Field

from schemas.base import Id, WireModel


class FrameKind(StrEnum):
    """What a frame is. `FINAL` and `ERROR` are terminal: a call has exactly one of them."""

    STORED = "stored"
    """The request is in the mailbox; written by the sender of a call that nobody waits for."""
    WORKING = "working"
    """A handler has been at it for 200 ms and goes on."""
    CHUNK = "chunk"
    """A part of a streamed answer: an OpenAI `chat.completion.chunk`."""
    FINAL = "final"
    """The whole answer: an OpenAI `chat.completion`, or text."""
    ERROR = "error"
    """The call failed; an `ErrorBody`."""

    @property
    def is_terminal(self) -> bool:
        """Whether nothing can follow this frame."""
        return self in (FrameKind.FINAL, FrameKind.ERROR)


class ErrorDetail(WireModel):
    """A typed error. `code` names a class of `mesh.errors`; `fields` are its arguments."""

    code: str
    message: str
    fields: dict[str, Any] = Field(default_factory=dict)


class ErrorBody(WireModel):
    """Body of an `error` frame."""

    error: ErrorDetail


class StoredBody(WireModel):
    """Body of a `stored` frame: what anybody needs to know of a call before an agent is at it.

    Written by the sender when nobody waits for the call, or when it waits longer than a moment.
    From it a reader on another machine can tell where the call stands.
    """

    agent: Id
    node: Id | None = None
    """The node that the call insists on."""
    sequence: int = Field(ge=1)
    """Place of the request in the stream `INBOX`: a request that is not there any more, and has no
    terminal frame, has expired."""
    timeout_ms: int = Field(ge=1)
    body_sha256: str = ""
    """Of the request's body, in hexadecimal: a retry with another body is another call."""


class WorkingBody(WireModel):
    """Body of a `working` frame: who is at it, where, and which attempt this is."""

    agent: Id
    node: Id
    instance: str
    attempt: int


class HistoryRequest(WireModel):
    """Body of `registry.history.<caller>`: what JetStream's batched direct get is asked for."""

    batch: int = Field(ge=1, le=1_000)
    seq: int = Field(ge=1)
    next_by_subj: str


class WaitingRequest(WireModel):
    """Body of `registry.waiting.<caller>`: is my request still in the mailbox?"""

    sequence: int = Field(ge=1)


class WaitingReceipt(WireModel):
    """The answer to a `WaitingRequest`; who asks for another's request is told no."""

    is_waiting: bool = False
    is_known: bool = True
    """False where that could not be read."""
    message: str = ""


class CancelBody(WireModel):
    """Body of `agent.<id>.cancel.<call>`: stop this call."""

    sequence: int = Field(default=0, ge=0)
    """Place of the request in the stream `INBOX`, as far as the sender knows it."""
