"""Who may use the HTTP door: API keys, as they stand in the bucket `access`.

Never published anywhere else: a hash is nobody's business, although no secret of 256 bits can be
found from it.
"""

from datetime import datetime
from typing import Annotated

from pydantic import AwareDatetime, StringConstraints

from schemas.base import Id, WireModel

KeyId = Annotated[str, StringConstraints(pattern=r"^[a-z0-9]{1,32}$")]
"""The public half of a token, and one token of a key in the bucket."""


class ApiKey(WireModel):
    """One key under `key.<id>`. Its secret is not in it."""

    id: KeyId
    name: Annotated[str, StringConstraints(min_length=1, max_length=100)]
    """What a person calls it. It need not be unique."""
    sha256: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
    """Of the secret, in hexadecimal."""
    agents: tuple[Id, ...] = ()
    """Whom it may call; empty: everybody."""
    created_at: AwareDatetime
    expires_at: AwareDatetime | None = None
    revoked_at: AwareDatetime | None = None

    def allows(self, agent: str) -> bool:
        """Tell whether it may be used to call `agent`."""
        return not self.agents or agent in self.agents

    def is_expired(self, now: datetime) -> bool:
        """Tell whether its time is over at `now`."""
        return self.expires_at is not None and self.expires_at <= now
