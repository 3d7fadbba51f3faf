"""Tries the ways that go over HTTP: this node's router, and the broker's monitoring port.

A client like any other: it spells the headers and fields of the door as every client does, and
knows nothing of what is behind it.
"""

import ssl
from collections.abc import Mapping
from http import HTTPStatus
from pathlib import Path
from typing import Any, Final

import httpx2

from mesh.nats_probes import PING_GRACE_S, answered, failed, ok
from schemas.probe import Outcome, ProbeState

_ROUTER_FIX: Final = "start a router: mesh up http; or set MESH_HTTP_HOST and MESH_HTTP_PORTS"
_MONITOR_FIX: Final = "set MESH_NATS_MONITOR_URL to the broker's monitoring port"
_KEY_FIX: Final = "give a key that may call this agent: MESH_API_KEY, or the Authorization header"
_STATES: Final = {"agent_offline": ProbeState.OFFLINE, "agent_busy": ProbeState.BUSY}
"""What the router's error codes say of the agent, not of the way to it."""


def local_url(host: str, port: int, *, scheme: str = "http") -> str:
    """Return where this machine reaches what listens on `host` and `port`."""
    reachable = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"{scheme}://{f'[{reachable}]' if ':' in reachable else reachable}:{port}"


def local_trust(certificate: Path | None) -> ssl.SSLContext | bool:
    """Return what this machine believes its own door by: that very certificate, whatever its name.

    True, which is what the system trusts, where the door has none.
    """
    if certificate is None:
        return True
    context = ssl.create_default_context(cafile=str(certificate))
    context.check_hostname = False
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    return context


class HttpProbes:
    """The tries of one connection test that go over HTTP.

    `shown` are the headers by which the router knows who asks. The limit of a try is kept by
    whoever awaits it.
    """

    def __init__(
        self,
        http: httpx2.AsyncClient,
        *,
        router_url: str,
        monitor_url: str,
        shown: Mapping[str, str],
        limit_s: float,
    ) -> None:
        self._http = http
        self._router_url = router_url
        self._monitor_url = monitor_url
        self._keys = dict(shown)
        self._timeout = {"X-Mesh-Timeout": f"{limit_s + PING_GRACE_S:g}"}

    async def router(self, agent: str) -> Outcome:
        """Send a ping by `POST /v1/chat/completions`."""
        body = {"model": agent, "messages": [{"role": "user", "content": "ping"}]}
        answer = await self._ping("/v1/chat/completions", body)
        if isinstance(answer, Outcome):
            return answer
        try:
            return answered(answer.json()["choices"][0]["message"]["content"])
        except (ValueError, LookupError, TypeError):
            return failed("it answers, but with no chat.completion", _ROUTER_FIX)

    async def direct(self, agent: str) -> Outcome:
        """Send a ping by `POST /api/agent/{agent_id}/chat`."""
        answer = await self._ping(f"/api/agent/{agent}/chat", {"message": "ping"})
        if isinstance(answer, Outcome):
            return answer
        try:
            return answered(answer.json()["response"])
        except (ValueError, LookupError, TypeError):
            return failed("it answers, but with no response in it", _ROUTER_FIX)

    async def health(self) -> tuple[Outcome, str]:
        """Ask the router for its health; also returns its node, where it says it."""
        answer = await self._send("GET", f"{self._router_url}/health", _ROUTER_FIX, self._keys)
        if isinstance(answer, Outcome):
            return answer, ""
        outcome = ok(self._router_url) if answer.is_success else _refusal(answer)
        return outcome, str(_object(answer).get("node", ""))

    async def monitoring(self) -> Outcome:
        """Ask the broker's monitoring port for its health and its figures."""
        if not self._monitor_url:
            detail = "it is not known where the broker's monitoring port is"
            fix = f"{_MONITOR_FIX}, such as http://127.0.0.1:8222"
            return Outcome(state=ProbeState.NOT_TRIED, detail=detail, fix=fix)
        health = await self._send("GET", f"{self._monitor_url}/healthz", _MONITOR_FIX)
        if isinstance(health, Outcome):
            return health
        if not health.is_success:
            why = _object(health).get("error")
            shown = why if isinstance(why, str) else health.reason_phrase
            return failed(f"{health.url} says {health.status_code}: {shown}", _MONITOR_FIX)
        figures = await self._send("GET", f"{self._monitor_url}/varz", _MONITOR_FIX)
        if isinstance(figures, Outcome):
            return figures
        broker = _object(figures)
        if "server_id" not in broker:
            return failed(f"{figures.url} is not that of a NATS broker", _MONITOR_FIX)
        return ok(f"{broker.get('connections')} connections, up {broker.get('uptime')}")

    async def _ping(self, path: str, body: Any) -> httpx2.Response | Outcome:
        headers = {**self._keys, **self._timeout, "X-Mesh-Ping": "1"}
        answer = await self._send("POST", self._router_url + path, _ROUTER_FIX, headers, body)
        if isinstance(answer, Outcome) or answer.is_success:
            return answer
        return _refusal(answer)

    async def _send(
        self,
        method: str,
        url: str,
        fix: str,
        headers: Mapping[str, str] | None = None,
        body: Any = None,
    ) -> httpx2.Response | Outcome:
        try:
            return await self._http.request(method, url, json=body, headers=headers)
        except httpx2.HTTPError as error:
            place = httpx2.URL(url)
            where = f"{place.scheme}://{place.netloc.decode()}"
            return failed(f"{where} does not answer: {error or type(error).__name__}", fix)
        except httpx2.InvalidURL as error:
            return failed(f"{url} is no address: {error}", fix)


def _refusal(answer: httpx2.Response) -> Outcome:
    """Read an error of the router.

    Raises:
        TimeoutError: the agent did not answer it in time.
    """
    error = _object(answer).get("error")
    said = error if isinstance(error, dict) else {}
    code, message = str(said.get("code") or ""), str(said.get("message") or answer.reason_phrase)
    if code == "agent_timeout":
        raise TimeoutError
    if code in _STATES:
        return Outcome(state=_STATES[code], detail=message)
    if code == "unknown_url":
        detail = "this router does not have this way yet"
        return Outcome(state=ProbeState.NOT_TRIED, detail=detail, fix="update the router")
    needs_key = answer.status_code in (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN)
    shown = f"{answer.status_code} {code}".strip()
    return failed(f"{shown}: {message}", _KEY_FIX if needs_key else "")


def _object(answer: httpx2.Response) -> dict[str, Any]:
    try:
        value = answer.json()
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}
