"""Retries of one request as one call: a client's own key becomes the call's id.

The ledger is in JetStream, so that a retry may come to another replica of the shim, or after a
restart of everything. It reaches back as far as frames are kept: a day.
"""

import hmac
from hashlib import sha256

from mesh import subjects
from mesh.calls import StoredCall
from mesh.errors import CallNotFoundError
from mesh.ledger import read_record
from mesh.outbox import fingerprint
from mesh.retries import is_record_of, require_same
from mesh.shim.door import Door
from mesh.shim.target import Target


async def call_id_of(door: Door, owner: str, key: str) -> str:
    """Return the id of the call that `owner` names `key`.

    An id is a capability, so it is made with a secret of the mesh: a key can be guessed.

    Raises:
        BrokerUnreachableError: the secret cannot be read.
    """
    secret = await door.access.idempotency_secret()
    name = b"\0".join((owner.encode(), key.encode()))
    return hmac.new(secret, name, sha256).hexdigest()[:32]


async def find_call(door: Door, call_id: str, target: Target, body: bytes) -> StoredCall | None:
    """Return the call of an earlier request with the same key, running or finished.

    Raises:
        KeyReusedError: that was another request.
        BrokerUnreachableError: no answer in time.
    """
    try:
        record = await read_record(door.connection, call_id, caller=door.caller.id)
    except CallNotFoundError:
        return None
    subject = subjects.inbox(target.agent, target.node)
    require_same(is_record_of(record, subject, fingerprint(body)))
    return record.call
