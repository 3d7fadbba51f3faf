"""Who may call an agent, and whether he is who he says.

In secure mode a request must be signed, with a key that the registry knows as one of its sender. In
an open mesh everybody is who he says. An agent may name whom it takes calls from.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256

from mesh import headers as h
from mesh import registry
from mesh.claims import Claim
from mesh.connection import Connection
from mesh.delivery import Delivery
from mesh.directory import Directory
from mesh.errors import CallRefusedError
from mesh.signatures import is_signed
from schemas.card import NODE_PREFIX, ROLE_PREFIX
from schemas.registry import Identity


@dataclass(slots=True)
class Asker:
    """Who asks."""

    agent: str
    """Empty where nobody says so."""
    node: str
    role: str = ""
    is_proven: bool = False

    def is_one_of(self, callers: Sequence[str]) -> bool:
        """Tell whether a list of callers names this one: by id, by node or by role."""
        names = {self.agent, f"{NODE_PREFIX}{self.node}", f"{ROLE_PREFIX}{self.role}"}
        return not names.isdisjoint(callers)


class Admission:
    """Looks at requests before an agent works on them."""

    def __init__(self, connection: Connection, directory: Directory) -> None:
        self._connection = connection
        self._directory = directory

    async def require(
        self,
        agent: str,
        callers: Sequence[str],
        delivery: Delivery,
        headers: h.RequestHeaders,
        source_agent: str,
    ) -> Asker:
        """Return who asks `agent`, which takes calls from `callers` alone, if there are any.

        A body that lies elsewhere need not be here yet: its claim is looked at.

        Raises:
            CallRefusedError: it is not proven who asks, or not from him.
            InvalidInputError: the claim is none.
            BrokerUnreachableError: a key is not known here, and the registry cannot be read.
        """
        if self._connection.credentials is None:
            asker = Asker(source_agent, headers.source_node)
        else:
            asker = await self._proven(agent, delivery, headers)
        if callers and not asker.is_one_of(callers):
            who = asker.agent or "who does not say who he is"
            raise CallRefusedError(
                f"agent {agent!r} takes no calls from {who}",
                agent=agent,
                source=asker.agent,
            )
        return asker

    async def _proven(self, agent: str, delivery: Delivery, headers: h.RequestHeaders) -> Asker:
        raw = delivery.headers or {}
        identity = await self._identity(raw.get(h.SIGNER, ""))
        is_proven = (
            identity is not None
            and headers.source_agent in identity.speaks_for
            and is_signed(delivery.subject, raw, _body_sha256(delivery))
        )
        if identity is None or not is_proven:
            raise CallRefusedError(
                f"it is not proven that {headers.source_agent or 'somebody'} asks agent {agent!r}: "
                "requests must be signed with a key that the mesh knows",
                agent=agent,
                source=headers.source_agent,
            )
        return Asker(headers.source_agent, identity.node or "", identity.role.value, is_proven=True)

    async def _identity(self, key: str) -> Identity | None:
        if not key:
            return None
        if (found := self._directory.identity(key)) is not None:
            return found
        # Made a moment ago, perhaps: what was written is read before its news come.
        for entry in await registry.read_registry(self._connection, registry.identity_key(key)):
            self._directory.apply(entry)
        return self._directory.identity(key)


def _body_sha256(delivery: Delivery) -> str:
    claimed = (delivery.headers or {}).get(h.BODY)
    if claimed is not None and not delivery.body:
        return Claim.read(claimed).sha256
    return sha256(delivery.body).hexdigest()
