"""What JetStream tells of requests that will not be delivered again.

Source: the `io.nats.jetstream.advisory.v1` schemas of nats-server; only what we use of them.
"""

from typing import Final

from schemas.base import WireModel

DELETION: Final = "Unacknowledged message was deleted"
"""What nats-server gives as the reason when a message vanished in other ways than by `+TERM`."""


class Exhausted(WireModel):
    """`MAX_DELIVERIES`: a message was delivered as often as may be, and not acknowledged.

    It stays in its stream. Sent once, when somebody pulls after the last ack_wait.
    """

    stream_seq: int
    consumer: str
    deliveries: int = 0


class Terminated(WireModel):
    """`MSG_TERMINATED`: a message was refused, or was deleted while somebody worked on it."""

    stream_seq: int
    consumer: str
    reason: str = ""

    @property
    def is_deletion(self) -> bool:
        """Whether nobody refused it."""
        return self.reason == DELETION
