"""Every error of the mesh, in one tree.

Our exception hierarchy:

    MeshError
    ├─ SettingsError               .variable
    ├─ LoadError                   .target
    ├─ InvalidInputError           .field
    │  ├─ InvalidIdError           .value
    │  └─ PayloadTooLargeError     .actual_bytes .limit_bytes
    ├─ ProtocolError               .subject
    ├─ TransportError
    │  ├─ BrokerUnreachableError   .servers
    │  ├─ StreamMissingError       .subject
    │  ├─ StreamConfigError        .differences
    │  ├─ PublishRefusedError      .subject .err_code
    │  │  └─ StorageFullError      .err_code
    │  ├─ AckLostError             .subject
    │  └─ NotPermittedError        .subject
    ├─ EmbeddedBrokerError
    │  ├─ ServerBinaryError        .path
    │  ├─ PortInUseError           .port
    │  └─ DataDirError             .path
    ├─ PartFailedError             .name .exit_code
    ├─ DoorBusyError
    ├─ RegistryError
    │  ├─ AgentNotFoundError       .agent .suggestions
    │  ├─ NodeNotFoundError        .node
    │  ├─ AgentNotOnNodeError      .agent .node
    │  └─ CardRefusedError         .agent
    ├─ AccessError
    │  ├─ UnauthenticatedError
    │  ├─ NotAllowedError          .agent
    │  ├─ PresenceRefusedError     .user
    │  └─ KeyNotFoundError         .key
    ├─ TrustError
    │  ├─ InvalidKeyError
    │  ├─ CredentialsError         .path
    │  └─ JoinRefusedError
    └─ CallError                   .agent .call_id
       ├─ CallNotFoundError
       ├─ DeadLetterError          .reason .dead_letter
       ├─ DeadLetterNotFoundError  .sequence
       ├─ AgentOfflineError
       ├─ MailboxFullError         .retry_after_s
       ├─ AgentBusyError
       ├─ CallTimeoutError         .timeout_s   (also a TimeoutError)
       ├─ CallCancelledError
       ├─ CallRefusedError         .source
       ├─ KeyReusedError
       ├─ HopLimitError            .hops
       ├─ StreamRestartedError     .attempt
       ├─ BodyLostError            .name .size_bytes
       └─ AgentFailedError         .remote_code

A constructor takes `(message, **fields)`. `code` is unique and travels on the wire, so that a
failure on another node is raised here as the same class. HTTP numbers stand in
`mesh.shim.status`, exit codes in `mesh.cli.exits`: nothing here knows either.
"""

from collections.abc import Iterator
from typing import Any, ClassVar


class MeshError(Exception):
    """Something the mesh could not do, with the facts as `fields`."""

    code: ClassVar[str] = "mesh_error"

    def __init__(self, message: str, **fields: Any) -> None:
        super().__init__(message)
        self.message = message
        self.fields = fields

    def __getattr__(self, name: str) -> Any:
        # Only reached for names that normal look-up misses: the declared fields. Special names
        # must miss, or copying and pickling would recurse through `fields`.
        if not name.startswith("_") and name in self.fields:
            return self.fields[name]
        raise AttributeError(name)

    def __str__(self) -> str:
        return self.message


class SettingsError(MeshError):
    """A setting has a value that cannot be used."""

    code = "settings"


class LoadError(MeshError):
    """`module:attribute` does not name an agent that can be loaded."""

    code = "load"


class InvalidInputError(MeshError):
    """What the caller sent is not a request."""

    code = "invalid_input"


class InvalidIdError(InvalidInputError):
    """An agent, node or caller id breaks the grammar of ids."""

    code = "invalid_id"


class PayloadTooLargeError(InvalidInputError):
    """It is over the broker's limit for a message, or over the mesh's for what lies beside one."""

    code = "payload_too_large"


class ProtocolError(MeshError):
    """Bytes from the wire do not fit the wire specification."""

    code = "protocol"


class TransportError(MeshError):
    """The broker could not be used."""

    code = "transport"


class BrokerUnreachableError(TransportError):
    """No connection to the broker, or it did not answer in time."""

    code = "broker_unreachable"


class StreamMissingError(TransportError):
    """The broker is up, but nobody has declared the mesh's streams on it."""

    code = "stream_missing"


class StreamConfigError(TransportError):
    """A stream exists with other settings than the mesh declares."""

    code = "stream_config"


class PublishRefusedError(TransportError):
    """JetStream answered a publish with an error; nothing was stored."""

    code = "publish_refused"


class StorageFullError(PublishRefusedError):
    """The broker has no room for another message of anybody."""

    code = "storage_full"


class AckLostError(TransportError):
    """A publish was not acknowledged in time: it may or may not be stored."""

    code = "ack_lost"


class NotPermittedError(TransportError):
    """The broker does not let this user publish there; nothing was stored."""

    code = "not_permitted"


class EmbeddedBrokerError(MeshError):
    """The broker that `mesh up` starts could not run."""

    code = "embedded_broker"


class ServerBinaryError(EmbeddedBrokerError):
    """nats-server is missing, does not run, or is too old."""

    code = "server_binary"


class PortInUseError(EmbeddedBrokerError):
    """Another program listens on a port we need."""

    code = "port_in_use"


class DataDirError(EmbeddedBrokerError):
    """The data directory cannot be written, or another mesh uses it."""

    code = "data_dir"


class PartFailedError(MeshError):
    """A process that `mesh up` supervises ended before it was ready."""

    code = "part_failed"


class DoorBusyError(MeshError):
    """The HTTP door holds as many large bodies as it has memory for."""

    code = "door_busy"


class RegistryError(MeshError):
    """The registry refuses."""

    code = "registry"


class AgentNotFoundError(RegistryError):
    """No agent of this id has ever been announced."""

    code = "agent_not_found"


class NodeNotFoundError(RegistryError):
    """No node of this id has ever been announced."""

    code = "node_not_found"


class AgentNotOnNodeError(RegistryError):
    """The agent is known, but has never run on the node asked for."""

    code = "agent_not_on_node"


class CardRefusedError(RegistryError):
    """The registrar does not accept an announcement."""

    code = "card_refused"


class AccessError(MeshError):
    """An API key of the HTTP door does not do what is asked of it."""

    code = "access"


class UnauthenticatedError(AccessError):
    """No API key was given where one is needed, or one that is not valid."""

    code = "unauthenticated"


class NotAllowedError(AccessError):
    """The API key is valid, and not for this agent."""

    code = "not_allowed"


class PresenceRefusedError(AccessError):
    """The Matrix homeserver does not take this user's token, or this door may not tell presence."""

    code = "presence_refused"


class KeyNotFoundError(AccessError):
    """There is no API key of this id."""

    code = "key_not_found"


class TrustError(MeshError):
    """Secure mode does not let this happen."""

    code = "trust"


class InvalidKeyError(TrustError):
    """A key, a token or a file of credentials is none, or was changed."""

    code = "invalid_key"


class CredentialsError(TrustError):
    """There are no credentials for what is to be done, or others can read them."""

    code = "credentials"


class JoinRefusedError(TrustError):
    """The hub does not take a join token: it has expired, was used, or was taken back."""

    code = "join_refused"


class CallError(MeshError):
    """A call did not end with an answer."""

    code = "call"


class CallNotFoundError(CallError):
    """Nothing is stored of a call of this id, or no longer."""

    code = "call_not_found"


class DeadLetterError(CallError):
    """The request was given up. It is kept among the dead letters, under the number there."""

    code = "dead"


class DeadLetterNotFoundError(CallError):
    """There is no dead letter of this number, or no longer."""

    code = "dead_letter_not_found"


class AgentOfflineError(CallError):
    """The agent is known, is not running, and the caller did not want to wait."""

    code = "agent_offline"


class MailboxFullError(CallError):
    """The agent's mailbox is at its limit; nothing was stored.

    `retry_after_s` is when half of it will be free, at the pace of the last half minute; None
    where that is not known yet.
    """

    code = "mailbox_full"


class AgentBusyError(CallError):
    """A ping found no free slot; a call would have waited for one."""

    code = "agent_busy"


class CallTimeoutError(CallError, TimeoutError):
    """The deadline passed without an answer."""

    code = "timeout"


class CallCancelledError(CallError):
    """The call was stopped on request."""

    code = "cancelled"


class CallRefusedError(CallError):
    """The agent does not take calls from this caller, or the caller has not proven who it is."""

    code = "call_refused"


class KeyReusedError(CallError):
    """An idempotency key names another request already."""

    code = "key_reused"


class HopLimitError(CallError):
    """Agents call each other in a loop, or too deep."""

    code = "hop_limit"


class StreamRestartedError(CallError):
    """The agent died while it streamed; a second attempt must not be glued to the first."""

    code = "stream_restarted"


class BodyLostError(CallError):
    """A body or a file that lay beside its message is gone, or is not what the message says."""

    code = "body_lost"


class AgentFailedError(CallError):
    """The agent's handler raised."""

    code = "agent_failed"


def _tree(root: type[MeshError]) -> Iterator[type[MeshError]]:
    yield root
    for child in root.__subclasses__():
        yield from _tree(child)


def error_from_wire(code: str, message: str, fields: dict[str, Any]) -> MeshError:
    """Rebuild the error that a peer sent.

    A code that this process does not know, because the peer is newer or defines its own errors,
    becomes an `AgentFailedError` whose `remote_code` keeps it.
    """
    for error_class in _tree(MeshError):
        if error_class.code == code:
            return error_class(
                message, **{k: v for k, v in fields.items() if k not in ("self", "message")}
            )
    return AgentFailedError(message, **{**fields, "remote_code": code})
