"""The client of somebody who has only nats-py, whom the broker has heard when he goes on."""

from typing import Any

from nats.aio.client import DEFAULT_FLUSH_TIMEOUT, Client
from nats.aio.subscription import Subscription


class BareClient(Client):
    """nats-py's client, with subscriptions that are there once they are made.

    Else what another connection publishes next may come before them: of 3,000 subscriptions 650
    did not hear it, and 530 with a `flush` in between.
    """

    async def flush(self, timeout: int = DEFAULT_FLUSH_TIMEOUT) -> None:
        """Wait until the broker has taken all that was said before."""
        # nats-py 2.16 writes the first PING before what still waits to be written.
        await super().flush(timeout)
        await super().flush(timeout)

    async def subscribe(self, subject: str, *args: Any, **options: Any) -> Subscription:
        """Subscribe, and wait until the broker knows."""
        subscription = await super().subscribe(subject, *args, **options)
        if not subject.startswith("_INBOX"):  # Of nats-py itself, which asks only after that.
            await self.flush()
        return subscription


async def connect_bare(servers: str | list[str], **options: Any) -> BareClient:
    """Connect as `nats.connect` does."""
    client = BareClient()
    await client.connect(servers, **options)
    return client
