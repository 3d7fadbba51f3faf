"""What of the A2A protocol 1.0 the door reads. What it writes is made in `mesh.shim.a2a`.

JSON-RPC 2.0 over HTTP; names are those of the protocol's JSON form.
"""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

TaskId = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_-]{1,64}$")]
"""A task is a call: its id is the call's."""


class _Read(BaseModel):
    """A part of a request. Fields that are not known are ignored, as the protocol grows."""

    model_config = ConfigDict(extra="ignore", frozen=True)


class Part(_Read):
    """A piece of a message: text or data are taken."""

    text: str | None = None
    data: Any = None
    raw: str | None = None
    url: str | None = None


class Message(_Read):
    """What is said."""

    messageId: Annotated[str, StringConstraints(min_length=1, max_length=256)]  # noqa: N815
    contextId: str = ""  # noqa: N815
    taskId: str = ""  # noqa: N815
    role: Literal["ROLE_USER", "ROLE_AGENT"] = "ROLE_USER"
    parts: Annotated[tuple[Part, ...], Field(min_length=1)]


class Configuration(_Read):
    """How the answer is wanted."""

    returnImmediately: bool = False  # noqa: N815


class SendParams(_Read):
    """Of `SendMessage` and `SendStreamingMessage`."""

    message: Message
    configuration: Configuration = Configuration()


class TaskParams(_Read):
    """Of `GetTask`, `CancelTask` and `SubscribeToTask`."""

    id: TaskId


class RpcRequest(_Read):
    """The envelope of all of them."""

    jsonrpc: Literal["2.0"]
    id: str | int | None = None
    method: str
    params: dict[str, Any] = Field(default_factory=dict)
