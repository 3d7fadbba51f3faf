"""The relay agent: any OpenAI-compatible backend (Ollama, vLLM, LiteLLM, ...) behind an agent id.

    RELAY_AGENT_ID=llama RELAY_BASE_URL=http://127.0.0.1:11434/v1 RELAY_MODEL=llama3.2 \\
        mesh run handlers.relay:from_env

Forwards a request as it came, under the backend's name of the model, and yields the answer as it
comes. Retries nothing, hides no failure, and keeps nothing between two calls. Knows nothing of
NATS; `mesh.runtime` puts the agent on the mesh.
"""

import logging
import os
from collections.abc import AsyncIterator, Mapping
from contextlib import AbstractAsyncContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any, Final, get_args

import httpx2
import orjson

from mesh import tracing
from mesh.agent import Agent
from mesh.context import CallContext
from mesh.errors import AgentFailedError, InvalidInputError, SettingsError
from schemas.chat import ChatDelta, ChatRequest, FinishReason, Usage
from schemas.terms import MESH_FIELDS

logger = logging.getLogger(__name__)

TIMEOUT: Final = httpx2.Timeout(300.0, connect=10.0)
"""Silence, in seconds. Long, as a big model may think; the call's own deadline ends it sooner."""
MAX_ERROR_BYTES: Final = 65_536
MAX_ERROR_CHARS: Final = 300

_REASONS: Final = frozenset(get_args(FinishReason))
_HINTS: Final = {
    401: "check the relay's key",
    403: "check the relay's key",
    404: "check the relay's model and base URL",
    429: "it has too much to do; try again later",
}


@dataclass(frozen=True, slots=True)
class Backend:
    """What is relayed to."""

    base_url: str
    model: str
    api_key: str = field(default="", repr=False)

    @classmethod
    def checked(cls, base_url: str, model: str, api_key: str) -> "Backend":
        """Make a backend of what a person set.

        Raises:
            SettingsError: a value cannot be used. The key is never shown.
        """
        if not model:
            raise _unset("RELAY_MODEL", "the backend's name of the model, such as llama3.2")
        key = api_key.strip()
        if not key.isascii() or not key.isprintable() or " " in key:
            raise SettingsError(
                "RELAY_API_KEY has a character that no HTTP header can carry: copy it again",
                variable="RELAY_API_KEY",
            )
        return cls(_checked_url(base_url), model, key)

    @property
    def headers(self) -> dict[str, str]:
        """Headers of every request. Not compressed: compression holds tokens back."""
        headers = {
            "content-type": "application/json",
            "accept": "text/event-stream",
            "accept-encoding": "identity",
        }
        if self.api_key:
            headers["authorization"] = f"Bearer {self.api_key}"
        return headers

    def body(self, request: ChatRequest) -> bytes:
        """Encode a request: every field that came, but those that are about routing.

        Raises:
            InvalidInputError: it asks for more than one answer.
        """
        if request.n > 1:
            raise InvalidInputError("an agent gives one answer: leave `n` out", field="n")
        body = request.model_dump(mode="json", exclude_unset=True, exclude=set(MESH_FIELDS))
        options = body.get("stream_options") or {}
        body["model"] = self.model
        body["stream"] = True
        body["stream_options"] = {**options, "include_usage": True}
        return orjson.dumps(body)

    def quote(self, body: bytes) -> str:
        """Return what the backend says about an error: short, on one line, without the key."""
        words = " ".join(_complaint(body).split())
        if self.api_key:  # Before the cut, which might leave half of it.
            words = words.replace(self.api_key, "***")
        return words[:MAX_ERROR_CHARS]

    def failure(self, message: str, **fields: Any) -> AgentFailedError:
        """Make the error that the caller gets, and tell the log which backend it was.

        The caller may be anybody: the address of the backend is not for them.
        """
        logger.warning("the backend at %s failed: %s", self.base_url, message)
        return AgentFailedError(message, **fields)

    def refusal(self, status: int, body: bytes) -> AgentFailedError:
        """Make the error of an HTTP status that is no success."""
        hint = _HINTS.get(status, "see the backend's log")
        message = f"the backend answered {status} ({hint}): {self.quote(body)}"
        return self.failure(message, status=status)

    def outage(self, error: httpx2.HTTPError) -> AgentFailedError:
        """Make the error of a connection that failed."""
        if isinstance(error, httpx2.ConnectError | httpx2.ConnectTimeout):
            return self.failure(f"the backend cannot be reached ({error}): start it")
        if isinstance(error, httpx2.TimeoutException):
            return self.failure("the backend was silent for too long: see its log")
        return self.failure(f"the connection to the backend broke: {error}")


def relay_agent(
    agent_id: str,
    *,
    base_url: str,
    model: str,
    api_key: str = "",
    description: str = "",
    client: httpx2.AsyncClient | None = None,
) -> Agent:
    """Make the agent `agent_id` of a backend.

    `base_url` is what OpenAI clients call so, usually ending in `/v1`. A `client` that is given
    is used and stays open; without one, each call opens its own and closes it.

    Raises:
        SettingsError: the base URL, the model or the key cannot be used.
        InvalidIdError: `agent_id` is not an id.
    """
    backend = Backend.checked(base_url, model, api_key)
    agent = Agent(agent_id, description=description or f"Relays to {model}.", model=model)
    tls = httpx2.create_ssl_context()  # 15 ms: once, not for each call.

    def borrow() -> AbstractAsyncContextManager[httpx2.AsyncClient]:
        return nullcontext(client) if client else httpx2.AsyncClient(verify=tls, timeout=TIMEOUT)

    @agent.chat
    async def relay(request: ChatRequest, call: CallContext) -> AsyncIterator[ChatDelta]:
        span = tracing.outgoing(f"POST {backend.base_url}", backend.base_url)
        above = span.context if tracing.is_on() else tracing.SpanContext.read(call.traceparent)
        error = "failed"
        try:
            async with borrow() as http:
                async for delta in _answer(backend, request, http, tracing.header_of(above)):
                    yield delta
            error = ""
        finally:
            span.end(error)

    return agent


def from_env(environ: Mapping[str, str] = os.environ) -> Agent:
    """Make the agent that `RELAY_AGENT_ID`, `_BASE_URL`, `_MODEL` and `_API_KEY` describe.

    Raises:
        SettingsError: one is missing (only the key may be) or cannot be used.
        InvalidIdError: `RELAY_AGENT_ID` is not an id.
    """
    agent_id = environ.get("RELAY_AGENT_ID", "")
    if not agent_id:
        raise _unset("RELAY_AGENT_ID", "the id of the agent, such as llama")
    return relay_agent(
        agent_id,
        base_url=environ.get("RELAY_BASE_URL", ""),
        model=environ.get("RELAY_MODEL", ""),
        api_key=environ.get("RELAY_API_KEY", ""),
    )


def _unset(variable: str, wanted: str) -> SettingsError:
    return SettingsError(f"{variable} is not set: give {wanted}", variable=variable)


def _checked_url(text: str) -> str:
    if not text:
        raise _unset("RELAY_BASE_URL", "the backend's address, such as http://127.0.0.1:11434/v1")
    try:
        url = httpx2.URL(text)
        is_usable = url.scheme in ("http", "https") and bool(url.host)
    except httpx2.InvalidURL:
        is_usable = False
    # A password in it would end up in logs; the text itself is not shown, it may hold one.
    if not is_usable or url.userinfo or url.query or url.fragment:
        raise SettingsError(
            "RELAY_BASE_URL must be http://host:port/path, with neither a user nor a query: "
            "the key goes into RELAY_API_KEY",
            variable="RELAY_BASE_URL",
        )
    return text.rstrip("/")


async def _answer(
    backend: Backend, request: ChatRequest, http: httpx2.AsyncClient, trace: Mapping[str, str]
) -> AsyncIterator[ChatDelta]:
    url, body = f"{backend.base_url}/chat/completions", backend.body(request)
    headers = {**backend.headers, **trace}
    try:
        async with http.stream("POST", url, content=body, headers=headers) as response:
            if response.status_code != 200:
                raise backend.refusal(response.status_code, await _read_start(response))
            kind = response.headers.get("content-type", "").partition(";")[0].strip().lower()
            if kind != "text/event-stream":
                words = backend.quote(await _read_start(response))
                raise backend.failure(f"the backend sent {kind or 'no type'}, no stream: {words}")
            async for delta in _deltas(backend, response):
                yield delta
    except httpx2.HTTPError as error:
        raise backend.outage(error) from None


async def _deltas(backend: Backend, response: httpx2.Response) -> AsyncIterator[ChatDelta]:
    """Read the stream to its end, which is `[DONE]` or a finish reason: a cut one has neither."""
    is_whole = False
    async for event in httpx2.EventSource(response):
        if event.data.strip() == "[DONE]":
            is_whole = True
            break
        if not event.data:
            continue
        delta = _delta(backend, event)
        is_whole = is_whole or delta.finish_reason is not None
        if delta.content or delta.tool_calls or delta.finish_reason or delta.usage:
            yield delta
    if not is_whole:
        raise backend.failure("the backend's answer was cut before its end: see its log")


def _delta(backend: Backend, event: httpx2.ServerSentEvent) -> ChatDelta:
    try:
        chunk = orjson.loads(event.data)
        if event.event == "error" or chunk.get("error"):
            words = backend.quote(event.data.encode())
            raise backend.failure(f"the backend failed half-way: {words}", **_status(chunk))
        return _read_chunk(chunk)
    except (ValueError, TypeError, AttributeError):
        words = backend.quote(event.data.encode())
        raise backend.failure(f"the backend sent what is no chunk: {words}") from None


def _read_chunk(chunk: dict[str, Any]) -> ChatDelta:
    """Read a chunk of any dialect: null for absent, usage anywhere, unknown finish reasons."""
    choices = [one for one in chunk.get("choices") or () if not one.get("index")]
    choice = choices[0] if choices else {}
    delta = choice.get("delta") or {}
    reason = choice.get("finish_reason")
    usage = {name: count for name, count in (chunk.get("usage") or {}).items() if count is not None}
    return ChatDelta(
        content=delta.get("content") or delta.get("refusal"),
        tool_calls=delta.get("tool_calls") or None,
        finish_reason=reason if reason in _REASONS or not reason else "stop",
        usage=Usage.model_validate(usage) if usage else None,
    )


def _status(chunk: dict[str, Any]) -> dict[str, int]:
    error = chunk.get("error")
    code = str(error.get("code", "")) if isinstance(error, dict) else ""
    return {"status": int(code)} if code.isascii() and code.isdecimal() else {}


def _complaint(body: bytes) -> str:
    """The backend's own words: `error.message`, `error`, `detail`, `message`, or the text."""
    text = body.decode(errors="replace")
    try:
        value = orjson.loads(body)
    except orjson.JSONDecodeError:
        return text
    if not isinstance(value, dict):
        return text
    words = value.get("error") or value.get("detail") or value.get("message") or text
    return str(words.get("message") or words) if isinstance(words, dict) else str(words)


async def _read_start(response: httpx2.Response) -> bytes:
    body = b""
    async for part in response.aiter_bytes():
        body += part
        if len(body) > MAX_ERROR_BYTES:
            break
    return body
