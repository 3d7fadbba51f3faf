"""Messages that report what happened, rather than ask for something."""

from schemas.base import WireModel


class DeadLetter(WireModel):
    """Headers of `dead.<id>` as a model: why a request could not be answered.

    The body of the message is the request's own body, byte for byte.
    """

    reason: str
    subject: str
    stream_sequence: int
    call_id: str = ""
