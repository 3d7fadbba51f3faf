"""One delivery of a JetStream message to this process, and the ways to settle it.

Does not decide how to settle; `mesh.worker` does.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import orjson
from nats.aio.client import Client
from nats.aio.msg import Msg

from mesh.nats_client import post

_V1_TOKENS = 9
"""$JS.ACK.<stream>.<consumer>.<delivered>.<stream seq>.<consumer seq>.<time>.<pending>; the
second form puts the domain and the account hash behind `$JS.ACK` and a token at the end."""


# What is made once a message is not frozen, here and elsewhere: freezing takes a tenth of its time.
@dataclass(slots=True)
class Delivery:
    """A message that must be settled, with what its acknowledgement subject says about it."""

    client: Client
    subject: str
    body: bytes
    headers: Mapping[str, str] | None
    ack_subject: str
    sequence: int
    """Place in the stream."""
    attempt: int
    """1 on the first delivery."""
    stored_ns: int
    """When the broker stored it, by the broker's clock."""

    @classmethod
    def read(cls, client: Client, message: Msg) -> "Delivery":
        """Take a message of a pull consumer apart."""
        tokens = message.reply.split(".")
        first = 4 if len(tokens) == _V1_TOKENS else 6
        return cls(
            client=client,
            subject=message.subject,
            body=message.data,
            headers=message.headers,
            ack_subject=message.reply,
            sequence=int(tokens[first + 1]),
            attempt=int(tokens[first]),
            stored_ns=int(tokens[first + 3]),
        )

    @property
    def durable(self) -> str:
        """By which durable it came."""
        tokens = self.ack_subject.split(".")
        return tokens[3 if len(tokens) == _V1_TOKENS else 5]

    async def ack(self) -> None:
        """Say that the work is done. If it gets lost, the message comes again."""
        if not post(self.client, self.ack_subject, b"+ACK"):
            await self.client.publish(self.ack_subject, b"+ACK")

    async def in_progress(self) -> None:
        """Ask for another ack_wait."""
        await self.client.publish(self.ack_subject, b"+WPI")

    async def nak(self, delay_s: float) -> None:
        """Ask for redelivery after `delay_s`. Uses up one of the deliveries."""
        delay = orjson.dumps({"delay": int(delay_s * 1e9)})
        await self.client.publish(self.ack_subject, b"-NAK " + delay)

    async def term(self, reason: str) -> None:
        """Refuse the message for good. A work queue deletes it at once: copy it first."""
        await self.client.publish(self.ack_subject, b"+TERM " + reason.encode()[:200])
