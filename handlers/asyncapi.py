"""The mesh on NATS as an AsyncAPI 3.0 document.

FastStream's, of what the control plane answers, and beside it what agents, their callers and
JetStream say.

`python -m handlers.asyncapi` writes it to `schemas/asyncapi.json`, which every door serves; a test
compares the two.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from urllib.parse import unquote

from faststream.specification import AsyncAPI
from pydantic import BaseModel

import schemas
from handlers.control import create_app
from mesh import headers as h
from mesh.settings import Settings
from mesh.version import VERSION
from schemas.chat import ChatRequest
from schemas.completion import ChatCompletion, ChatCompletionChunk
from schemas.frame import CancelBody, ErrorBody, StoredBody, WorkingBody
from schemas.presence import PresenceHeartbeat
from schemas.registry import AgentRecord, Instance, NodeRecord, OpenQuestion, Placement

FILE: Final = Path(schemas.__file__).parent / "asyncapi.json"
ABOUT: Final = (
    "All traffic of a mesh of AI agents is messages on NATS JetStream. A call is a request in an "
    "agent's mailbox, and the frames that answer it. What each header means, and examples of every "
    "message as it travels, stand in `schemas/README.md`."
)
PARAMETERS: Final = {
    "agent": "Id of an agent: 1 to 32 of a-z, 0-9, - and _.",
    "caller": "Id of who calls: an agent, `http`, `cli`, a person.",
    "node": "Name of a machine in the mesh.",
    "instance": "A process.",
    "call": "Id of a call: 128 random bits in hexadecimal.",
    "event": "Name of an event.",
    "user": "A Matrix user id in base64url, without padding.",
    "client": "A tab of a browser, or another client of a person.",
    "invite": "Id of an invitation.",
    "key": "A key of the registry.",
    "upload": "A name that an upload has chosen for its chunks.",
    "object": "Name of an object, in base64url.",
    "reader": "Id of who reads it: an agent, or who called.",
    "nuid": "What names a parcel: 128 random bits in hexadecimal.",
    "place": "Which chunk, counted from 0.",
}
_REQUEST: Final = {
    h.REPLY_TO: "Where the answer goes; without it, to `agent.<id>.reply`.",
    h.CORRELATION_ID: "The call's id.",
    h.CONTENT_TYPE: "`application/json` or `text/plain`; as the question, so the answer.",
    h.MSG_ID: "The call's id: the same request is stored once.",
    h.TTL: "Whole seconds until nobody waits any more.",
    h.TIMEOUT_MS: "The deadline, from the moment the broker stored the request.",
    h.SOURCE_AGENT: "Who asks.",
    h.SOURCE_NODE: "On which node.",
    h.TRACEPARENT: "W3C Trace Context.",
    h.BODY: "Where the body is that fits into no message: name, size and digest of an object.",
    h.FILE: "The same of a file that comes with it.",
}
_FRAME: Final = {
    h.KIND: "`stored`, `working`, `chunk`, `final` or `error`.",
    h.CORRELATION_ID: "The call's id.",
    h.SEQ: "Place among the chunks; of a final frame, their number.",
    h.ATTEMPT: "The delivery that speaks; 1 is not written.",
    h.NODE: "Who speaks, where.",
    h.INSTANCE: "Who speaks, which process.",
    h.CODE: "Of an error.",
    h.REQUEST: "Which message is answered: its place, and when it was stored.",
    h.RAN_MS: "How long this attempt had been worked on.",
}


@dataclass(frozen=True, slots=True)
class Said:
    """A subject that no handler of the control plane listens on, and what is said there."""

    name: str
    subject: str
    about: str
    models: Sequence[type[BaseModel]]
    headers: Mapping[str, str]
    action: str
    """What an application does there: `send` or `receive`."""


SAID: Final = (
    Said(
        *(
            "request",
            "agent.{agent}.inbox",
            "A request to any instance of an agent.",
            (ChatRequest,),
        ),
        headers=_REQUEST,
        action="send",
    ),
    Said(
        "requestToNode",
        "agent.{agent}.inbox.{node}",
        "A request to the instance on one node.",
        (ChatRequest,),
        headers=_REQUEST,
        action="send",
    ),
    Said(
        "frame",
        "delivered.{caller}.reply.{instance}.{call}.{agent}",
        "Frames of an answer, as JetStream republishes what an agent has stored.",
        (ChatCompletion, ChatCompletionChunk, StoredBody, WorkingBody, ErrorBody),
        headers=_FRAME,
        action="receive",
    ),
    Said(
        "answer",
        "agent.{caller}.reply.{instance}.{call}.{agent}",
        "Where an agent stores the frames of its answer.",
        (ChatCompletion, ChatCompletionChunk, WorkingBody, ErrorBody),
        headers=_FRAME,
        action="send",
    ),
    Said(
        "bareAnswer",
        "agent.{agent}.reply",
        "Answers to messages that named no reply subject, as text.",
        (),
        headers=_FRAME,
        action="receive",
    ),
    Said(
        "cancelled",
        "delivered.{agent}.cancel.{call}",
        "What a process that runs an agent hears of calls to be stopped.",
        (CancelBody,),
        headers={},
        action="receive",
    ),
    Said(
        "event",
        "agent.{agent}.event.{event}",
        "Something that happened, kept for seven days.",
        (),
        headers={h.SOURCE_AGENT: _REQUEST[h.SOURCE_AGENT], h.CONTENT_TYPE: "Of the payload."},
        action="send",
    ),
    Said(
        "bodyChunk",
        "$O.bodies.C.{upload}",
        "A part of what fits into no message, as bytes.",
        (),
        headers={},
        action="send",
    ),
    Said(
        "body",
        "$O.bodies.M.{object}",
        "What the parts make up, as the object store of NATS describes it.",
        (),
        headers={},
        action="send",
    ),
    Said(
        "parcelChunk",
        "body.{reader}.{nuid}.{place}",
        "A part of what fits into no message of a secure mesh, as bytes, for the one who reads it.",
        (),
        headers={},
        action="send",
    ),
    Said(
        "openRequests",
        "registry.open.{instance}",
        "A process is asked which requests of an agent it has; it answers with OpenRequests.",
        (OpenQuestion,),
        headers={},
        action="receive",
    ),
    Said(
        "registryEvent",
        "registry.event.{key}",
        "Every change of the registry, as JetStream republishes it.",
        (AgentRecord, NodeRecord, Placement, Instance),
        headers={},
        action="receive",
    ),
    Said(
        "presenceEvent",
        "presence.event.{user}.{client}",
        "Every change of people's presence.",
        (PresenceHeartbeat,),
        headers={},
        action="receive",
    ),
    Said(
        "deadLetter",
        "dead.{agent}",
        "Requests that were given up, with why.",
        (),
        headers={h.REASON: "Why.", h.SUBJECT: "Where it was sent.", **_REQUEST},
        action="receive",
    ),
)


def make_document() -> dict[str, Any]:
    """Return the whole document."""
    broker = create_app(Settings(nats_url="nats://localhost:4222")).broker
    assert broker is not None
    specification = AsyncAPI(
        broker,
        title="Agent mesh on NATS",
        version=VERSION,
        description=ABOUT,
        schema_version="3.0.0",
    )
    document: dict[str, Any] = json.loads(specification.to_specification().to_json())
    document["info"]["license"] = {"name": "Apache-2.0"}
    _rename(document)
    for one in SAID:
        _add(document, one)
    for channel in document["channels"].values():
        named = re.findall(r"{(\w+)}", channel["address"])
        if named:
            channel["parameters"] = {name: {"description": PARAMETERS[name]} for name in named}
    components = document["components"]
    # FastStream's order is another one in each process.
    for group in (*(document["channels"], document["operations"]), *components.values()):
        ordered = dict(sorted(group.items()))
        group.clear()
        group.update(ordered)
    return document


def _rename(document: dict[str, Any]) -> None:
    """Give FastStream's channels and messages plain names: its subjects are no names of a key."""
    for group in (document["channels"], document["operations"], document["components"]["messages"]):
        renamed = {_plain(name): _with_plain_references(one) for name, one in group.items()}
        group.clear()
        group.update(renamed)


def _with_plain_references(value: Any) -> Any:
    if isinstance(value, list):
        return [_with_plain_references(one) for one in value]
    if not isinstance(value, dict):
        return value
    found = {name: _with_plain_references(one) for name, one in value.items()}
    if isinstance(reference := found.get("$ref"), str):
        found["$ref"] = "/".join(("#", *map(_plain, reference.split("/")[1:])))
    return found


def _plain(name: str) -> str:
    return re.sub(r"\W+", "_", unquote(name)).strip("_")


def _add(document: dict[str, Any], one: Said) -> None:
    components = document["components"]
    payloads = [_schema(components["schemas"], model) for model in one.models]
    message: dict[str, Any] = {"title": one.name, "summary": one.about}
    if payloads:
        message["payload"] = payloads[0] if len(payloads) == 1 else {"oneOf": payloads}
    if one.headers:
        properties = {
            name: {"type": "string", "description": about} for name, about in one.headers.items()
        }
        message["headers"] = {"type": "object", "properties": properties}
    components["messages"][one.name] = message
    document["channels"][one.name] = {
        "address": one.subject,
        "description": one.about,
        "messages": {one.name: {"$ref": f"#/components/messages/{one.name}"}},
    }
    document["operations"][f"{one.action}_{one.name}"] = {
        "action": one.action,
        "channel": {"$ref": f"#/channels/{one.name}"},
        "messages": [{"$ref": f"#/channels/{one.name}/messages/{one.name}"}],
    }


def _schema(known: dict[str, Any], model: type[BaseModel]) -> dict[str, str]:
    """Put the schema of a model, and those that it is made of, among the known ones."""
    schema = model.model_json_schema(ref_template="#/components/schemas/{model}")
    for name, part in schema.pop("$defs", {}).items():
        known.setdefault(name, part)
    known.setdefault(model.__name__, schema)
    return {"$ref": f"#/components/schemas/{model.__name__}"}


def encoded() -> str:
    """Return the document as its file has it."""
    return json.dumps(make_document(), indent=1, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    FILE.write_text(encoded())
