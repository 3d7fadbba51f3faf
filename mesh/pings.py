"""Pings: requests that take the whole way of a call, and stop short of the agent's handler.

A handler may be slow, cost money, or have effects; the way to it is tried without it. Who sends a
ping sets the header `mesh-ping`; what is tried with it stands in `mesh.probes`.
"""

from typing import Final

from mesh import headers as h
from mesh.completions import completion
from mesh.replies import ReplyWriter
from schemas.chat import ChatReply

PONG: Final = "pong"
LONGEST_PONG: Final = 1_000


def is_pong(body: bytes) -> bool:
    """Tell whether a final frame answers a ping, or says the same."""
    return len(body) < LONGEST_PONG and f'"{PONG}"'.encode() in body


async def write_pong(writer: ReplyWriter, agent: str) -> None:
    """Answer a ping for `agent`, and return when the answer is stored.

    A completion, so that whoever waits for the answer of a call understands it; text for a
    message that named no reply subject. Raises what `ReplyWriter.final` raises.
    """
    address = writer.address
    if address.is_bare:
        await writer.final(PONG.encode(), h.TEXT)
        return
    body = completion(address.call_id, agent, address.node, ChatReply(content=PONG))
    await writer.final(body, h.JSON)
