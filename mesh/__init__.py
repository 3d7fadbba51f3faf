"""A NATS-native mesh for AI agents. What users import stands here; `mesh --help` is the command.

Names are loaded when they are used: the command line must start in a blink.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mesh.agent import Agent
    from mesh.attachments import Attachment
    from mesh.client import MeshClient, connect
    from mesh.context import CallContext
    from mesh.errors import MeshError
    from mesh.events import Event
    from schemas.chat import ChatDelta, ChatMessage, ChatReply, ChatRequest, Usage

__all__ = [
    "Agent",
    "Attachment",
    "CallContext",
    "ChatDelta",
    "ChatMessage",
    "ChatReply",
    "ChatRequest",
    "Event",
    "MeshClient",
    "MeshError",
    "Usage",
    "connect",
]

_HOMES = {
    "Agent": "mesh.agent",
    "Attachment": "mesh.attachments",
    "CallContext": "mesh.context",
    "Event": "mesh.events",
    "MeshClient": "mesh.client",
    "MeshError": "mesh.errors",
    "connect": "mesh.client",
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'mesh' has no attribute {name!r}")
    return getattr(import_module(_HOMES.get(name, "schemas.chat")), name)
