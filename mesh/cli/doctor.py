"""`mesh doctor`: what works here, what does not, and what to do about it."""

import os
from typing import TYPE_CHECKING, Annotated

import typer

from mesh.cli import exits, findings
from mesh.cli.findings import Finding

if TYPE_CHECKING:
    import httpx2

    from mesh.connection import Connection
    from mesh.settings import Settings

MARKS = {"ok": "✓", "warn": "!", "fail": "✗"}


def doctor(
    as_json: Annotated[bool, typer.Option("--json", "-j", help="Print JSON.")] = False,
) -> None:
    """Check the broker, its streams, mailboxes, clock and disk, the registrar and the doors."""
    found = exits.run(_examine(), as_json=as_json)
    if as_json:
        import orjson

        typer.echo(orjson.dumps([_as_dict(one) for one in found]).decode())
    else:
        for one in found:
            fix = f"\n    {one.fix}" if one.fix else ""
            typer.echo(f"{MARKS[one.state]} {exits.plain(one.what)}{fix}")
    if any(one.state == "fail" for one in found):
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
    found = [Finding("ok", f"mesh {VERSION}, node {settings.node}")]
    found += [Finding("warn", text) for text in unknown_variables(os.environ)]
    found.append(_examine_binary(settings))
    found += [*findings.of_disk(settings), *findings.of_secrets(settings)]
    try:
        async with open_connection(Login.of(settings), name="mesh doctor") as connection:
            server = connection.client.connected_server_version
            numbers = (server.major, server.minor, server.patch)
            found.append(findings.of_version(numbers, settings.nats_url))
            found.append(await findings.of_way(connection))
            found += await _examine_broker(connection, settings)
    except BrokerUnreachableError as error:
        found.append(Finding("fail", error.message, "start one: mesh up"))
    if settings.nats_monitor_url:
        found += await _examine_health(settings.nats_monitor_url)
    found += await _examine_http(settings)
    return found


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
    from nats.js.errors import APIError

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
    found = [Finding("warn", str(one), "an operator's change, kept") for one in differences]
    if is_guarded(connection.client):
        found.append(Finding("ok", "streams and buckets are the hub's: `mesh doctor` there"))
    elif not differences:
        found.append(Finding("ok", "streams and buckets are as declared"))
    if not is_guarded(connection.client):
        manager = connection.client.jsm(timeout=10.0)
        try:
            found.append(await findings.of_jetstream(manager))
            found += await findings.of_mailboxes(manager, directory)
            found.append(await findings.of_dead_letters(manager))
        except (nats.errors.Error, APIError) as error:
            found.append(Finding("fail", f"JetStream: {error}", "look at the broker's log"))
    if directory.is_authoritative:
        found.append(Finding("ok", "a registrar is alive"))
    else:
        fix = "calls go on, but nothing new can register: mesh up control"
        found.append(Finding("warn", "no registrar is alive", fix))
    known = len(directory.standings())
    found.append(Finding("ok", f"{directory.online_count()} of {known} agents online"))
    return found


async def _examine_health(monitor_url: str) -> list[Finding]:
    """What the broker says of itself: a write has failed, perhaps. Silence is no finding."""
    import httpx2

    async with httpx2.AsyncClient(timeout=3, trust_env=False) as client:
        try:
            told = (await client.get(f"{monitor_url}/healthz")).json()
            clock = list(findings.of_clock((await client.get(f"{monitor_url}/varz")).json()))
        except (httpx2.HTTPError, ValueError):
            return []
    if told.get("status") == "ok":
        return [Finding("ok", "the broker says that it is healthy"), *clock]
    fix = "free some space if its disk is full; `mesh up` then starts it again by itself"
    return [Finding("fail", f"the broker is not healthy: {told.get('error', told)}", fix), *clock]


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
