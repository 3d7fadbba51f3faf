"""`mesh doctor`: what works here, what does not, and what to do about it."""

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import typer

from mesh.cli import exits

if TYPE_CHECKING:
    import httpx2

    from mesh.connection import Connection
    from mesh.settings import Settings

MARKS = {"ok": "✓", "warn": "!", "fail": "✗"}


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the report. `fix` says what to do, where something is to be done."""

    state: str
    what: str
    fix: str = ""


def doctor(
    as_json: Annotated[bool, typer.Option("--json", "-j", help="Print JSON.")] = False,
) -> None:
    """Check the broker, the streams, the registrar and the HTTP doors."""
    findings = exits.run(_examine(), as_json=as_json)
    if as_json:
        import orjson

        typer.echo(orjson.dumps([_as_dict(one) for one in findings]).decode())
    else:
        for one in findings:
            fix = f"\n    {one.fix}" if one.fix else ""
            typer.echo(f"{MARKS[one.state]} {exits.plain(one.what)}{fix}")
    if any(one.state == "fail" for one in findings):
        raise SystemExit(exits.FAILED)


def _as_dict(finding: Finding) -> dict[str, str]:
    return {"state": finding.state, "what": finding.what, "fix": finding.fix}


async def _examine() -> list[Finding]:
    from mesh.connection import open_connection
    from mesh.errors import BrokerUnreachableError
    from mesh.settings import Settings, unknown_variables
    from mesh.trust.login import Login
    from mesh.version import VERSION

    settings = Settings.from_env()
    findings = [Finding("ok", f"mesh {VERSION}, node {settings.node}")]
    findings += [Finding("warn", text) for text in unknown_variables(os.environ)]
    findings.append(_examine_binary(settings))
    try:
        async with open_connection(Login.of(settings), name="mesh doctor") as connection:
            server = connection.client.connected_server_version
            version = f"{server.major}.{server.minor}.{server.patch}"
            findings.append(Finding("ok", f"broker at {settings.nats_url}: nats-server {version}"))
            findings += await _examine_broker(connection, settings)
    except BrokerUnreachableError as error:
        findings.append(Finding("fail", error.message, "start one: mesh up"))
    if settings.nats_monitor_url:
        findings += await _examine_health(settings.nats_monitor_url)
    findings += await _examine_http(settings)
    return findings


def _examine_binary(settings: "Settings") -> Finding:
    from mesh.broker import find_server
    from mesh.errors import ServerBinaryError

    try:
        return Finding("ok", f"nats-server for `mesh up`: {find_server(settings)}")
    except ServerBinaryError as error:
        state = "warn" if settings.is_broker_external else "fail"
        return Finding(state, error.message)


async def _examine_broker(connection: "Connection", settings: "Settings") -> list[Finding]:
    import nats.errors

    from mesh.directory import load_directory
    from mesh.errors import TransportError
    from mesh.nats_client import is_guarded
    from mesh.provision import check_streams

    try:
        differences = (
            [] if is_guarded(connection.client) else await check_streams(connection, settings)
        )
        directory = await load_directory(connection)
    except (TransportError, nats.errors.Error) as error:
        return [Finding("fail", f"streams: {error}", "set them up: mesh up")]
    missing = [one for one in differences if one.found == "missing"]
    if missing:
        names = ", ".join(one.stream for one in missing)
        return [Finding("fail", f"streams are missing: {names}", "set them up: mesh up")]
    findings = [Finding("warn", str(one), "an operator's change, kept") for one in differences]
    if is_guarded(connection.client):
        findings.append(Finding("ok", "streams and buckets are the hub's: `mesh doctor` there"))
    elif not differences:
        findings.append(Finding("ok", "streams and buckets are as declared"))
    if directory.is_authoritative:
        findings.append(Finding("ok", "a registrar is alive"))
    else:
        fix = "calls go on, but nothing new can register: mesh up control"
        findings.append(Finding("warn", "no registrar is alive", fix))
    known = len(directory.standings())
    findings.append(Finding("ok", f"{directory.online_count()} of {known} agents online"))
    return findings


async def _examine_health(monitor_url: str) -> list[Finding]:
    """What the broker says of itself: a write has failed, perhaps. Silence is no finding."""
    import httpx2

    async with httpx2.AsyncClient(timeout=3, trust_env=False) as client:
        try:
            told = (await client.get(f"{monitor_url}/healthz")).json()
        except (httpx2.HTTPError, ValueError):
            return []
    if told.get("status") == "ok":
        return [Finding("ok", "the broker says that it is healthy")]
    fix = "free some space if its disk is full; `mesh up` then starts it again by itself"
    return [Finding("fail", f"the broker is not healthy: {told.get('error', told)}", fix)]


async def _examine_http(settings: "Settings") -> list[Finding]:
    import asyncio

    import httpx2

    from mesh.cli import parts
    from mesh.http_probes import local_trust

    trust = local_trust(settings.http_cert)
    async with httpx2.AsyncClient(timeout=3, trust_env=False, verify=trust) as client:
        doors = parts.doors(settings).items()
        return await asyncio.gather(*(_examine_door(client, *door) for door in doors))


async def _examine_door(client: "httpx2.AsyncClient", name: str, address: str) -> Finding:
    import httpx2

    url = str(httpx2.URL(address).copy_with(path="/health"))
    try:
        response = await client.get(url)
    except httpx2.HTTPError as error:
        fix = "start one: mesh up http"
        return Finding("warn", f"{name}: no HTTP door at {url} ({error})", fix)
    state = "ok" if response.status_code == 200 else "fail"
    return Finding(state, f"{name}: HTTP door at {url}: {response.status_code}")
