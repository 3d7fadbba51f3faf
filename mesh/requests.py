"""A request as it lies in a mailbox, taken apart: who is to be answered, how, until when.

Understands all forms of it: an OpenAI body, a legacy `{"message"}`, plain text, with headers and
without.
"""

from dataclasses import dataclass
from typing import Any

import orjson

from mesh import codec, subjects
from mesh import headers as h
from mesh.delivery import Delivery
from mesh.errors import InvalidInputError
from mesh.replies import ReplyAddress
from schemas.base import is_id
from schemas.chat import ChatRequest


@dataclass(slots=True)
class Question:
    """What is asked."""

    chat: ChatRequest
    wants_json: bool
    """Whether the answer is an OpenAI object: as the question, so the answer."""
    source_agent: str = ""
    """Who a legacy body says it is from."""


def read_question(delivery: Delivery, headers: h.RequestHeaders) -> Question:
    """Read the body of a request.

    Raises:
        InvalidInputError: it is empty, or says it is JSON and is no chat request.
    """
    body = delivery.body
    if headers.content_type == h.JSON:
        return _read_json(codec.loads(body), headers)
    if headers.content_type in ("", h.TEXT) and body.lstrip().startswith(b"{"):
        try:
            value = orjson.loads(body)
        except orjson.JSONDecodeError:
            value = None
        # Untyped JSON is a request only if it has the form of one; else it is the text.
        if isinstance(value, dict) and ("messages" in value or _legacy_text(value) is not None):
            return _read_json(value, headers)
    return Question(chat=_from_text(body), wants_json=False)


def _read_json(value: Any, headers: h.RequestHeaders) -> Question:
    if isinstance(value, str):
        return Question(chat=_from_text(value.encode()), wants_json=False)
    if not isinstance(value, dict):
        raise InvalidInputError("the body must be a JSON object with `messages`", field="body")
    named = value.get("source_agent")
    source = headers.source_agent or (named if isinstance(named, str) and is_id(named) else "")
    legacy = _legacy_text(value)
    if "messages" not in value and legacy is not None:
        return Question(_from_text(legacy.encode()), wants_json=False, source_agent=source)
    return Question(codec.validate(ChatRequest, value), wants_json=True, source_agent=source)


def _legacy_text(value: dict[str, Any]) -> str | None:
    text = value.get("message")
    return text if isinstance(text, str) else None


def _from_text(body: bytes) -> ChatRequest:
    try:
        text = body.decode()
    except UnicodeDecodeError:
        raise InvalidInputError("the body is not UTF-8 text", field="body") from None
    if not text.strip():
        raise InvalidInputError("the message is empty", field="body")
    return ChatRequest.from_text(text)


def read_address(
    delivery: Delivery,
    headers: h.RequestHeaders,
    *,
    agent: str,
    place: tuple[str, str],
    left_s: float,
) -> ReplyAddress | None:
    """Work out where the answer goes; `place` is this node and instance.

    None when the request names a subject that no answer may go to.
    """
    reply_to = headers.reply_to
    is_bare = not reply_to
    is_mesh = not is_bare and subjects.may_answer_on(reply_to, agent)
    is_core = not is_mesh and subjects.is_inbox_reply(reply_to)
    if not (is_bare or is_mesh or is_core):
        return None
    replies = _bare_subjects(delivery.body, agent) if is_bare else (reply_to,)
    node, instance = place
    return ReplyAddress(
        subjects=replies,
        call_id=headers.call_id or f"seq-{delivery.sequence}",
        attempt=delivery.attempt,
        node=node,
        instance=instance,
        lifetime_s=left_s + headers.keep_s,
        origin=_origin(delivery, headers),
        is_core=is_core,
        is_bare=is_bare,
    )


def _origin(delivery: Delivery, headers: h.RequestHeaders) -> dict[str, str]:
    """Return what lets a frame be traced to its request, when that is long gone."""
    found = {h.REQUEST: f"{delivery.sequence}/{delivery.stored_ns}"}
    if headers.traceparent:
        found[h.TRACE] = headers.traceparent
    if headers.parent:
        found[h.PARENT] = headers.parent
    return found


def _bare_subjects(body: bytes, agent: str) -> tuple[str, ...]:
    """The guide's two spellings: on the target's subject, and on the sender's when it is named."""
    own = subjects.bare_reply(agent)
    if not body.lstrip().startswith(b"{"):
        return (own,)
    try:
        source = orjson.loads(body).get("source_agent")
    except orjson.JSONDecodeError:
        return (own,)
    if isinstance(source, str) and is_id(source) and source != agent:
        return (own, subjects.bare_reply(source))
    return (own,)
