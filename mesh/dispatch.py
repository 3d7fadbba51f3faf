"""How messages go from the socket to who wants them, without the way through a queue.

nats-py puts every message into a queue of its subscription and wakes a task for it. Whoever does
not wait for anything with a message, and what a call goes through does not, is called where the
message is read: a `Prompt` in the place of a callback. Everybody else is served as by nats-py.
"""

import logging
from collections.abc import Callable
from typing import Final

from nats.aio.client import Client
from nats.aio.msg import Msg

logger = logging.getLogger(__name__)

PLAIN: Final = b"NATS/1.0\r\n"
"""How headers begin before which no status stands."""


class Prompt:
    """A callback of a subscription that takes each message at once, in the order of arrival.

    It must be quick, and holds up everything else that comes over the connection. What it raises
    goes to the client's `error_cb`, as of any callback. On a client that `dispatch` does not know
    it is an ordinary callback.
    """

    def __init__(self, take: Callable[[Msg], None]) -> None:
        self.take: Final = take

    async def func(self, message: Msg) -> None:
        """Take a message; nats-py looks for a coroutine function under this name."""
        self.take(message)

    __call__ = func


def dispatch(client: Client) -> None:
    """Call each `Prompt` of a client where its messages are read.

    A message that nats-py cannot take apart is dropped: a subject or a status that is not UTF-8, a
    header block without its line end. It would end nats-py 2.16's read loop, and leave the process
    deaf until its pings are overdue, at every delivery again.
    """
    process, read, read_status = (
        client._process_msg,
        client._parse_header_lines,
        client._process_headers,
    )

    async def process_msg(
        sid: int, subject: bytes, reply: bytes, data: bytes, headers: bytes | None
    ) -> None:
        subscription = client._subs.get(sid)
        prompt = None if subscription is None else subscription._cb
        try:
            if subscription is None or type(prompt) is not Prompt:
                await process(sid, subject, reply, data, headers)  # type: ignore[arg-type]
                return
            client.stats["in_msgs"] += 1
            client.stats["in_bytes"] += len(data)
            subscription._received += 1
            found: dict[str, str] | None = None
            if headers:
                if headers.startswith(PLAIN):
                    found = read(headers[len(PLAIN) :]) or None
                else:
                    found = await read_status(headers)
            message = Msg(client, subject.decode(), reply.decode(), data, found, _sid=sid)
        except (IndexError, ValueError) as error:
            logger.warning("dropped a message that cannot be read: %s", error)
            return
        try:
            prompt.take(message)
        except Exception as error:  # noqa: BLE001, of whoever has written the callback
            await client._error_cb(error)

    client._process_msg = process_msg  # type: ignore[method-assign]
