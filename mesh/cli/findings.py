"""What `mesh doctor` looks at beside the doors: the broker, its streams, its clock, the disk.

Each finding is a line, with what to do about it where something is to be done.
"""

import os
import shutil
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nats.js import JetStreamManager

    from mesh.connection import Connection
    from mesh.directory import Directory
    from mesh.settings import Settings

MIN_VERSION = (2, 14)
SLOW_S = 0.25
SKEW_S = 2.0
FULL = 0.85
LOW_BYTES = 1024**3
SHOWN = 5
"""Names in one line."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the report. `fix` says what to do, where something is to be done."""

    state: str
    what: str
    fix: str = ""


def of_version(numbers: tuple[int, int, int], url: str) -> Finding:
    """Tell whether the broker is new enough."""
    version = ".".join(str(one) for one in numbers)
    if numbers[:2] < MIN_VERSION:
        wanted = ".".join(str(one) for one in MIN_VERSION)
        return Finding(
            "fail",
            f"broker at {url}: nats-server {version}",
            f"the mesh needs {wanted} or newer: upgrade it, or let `mesh up` run its own",
        )
    return Finding("ok", f"broker at {url}: nats-server {version}")


async def of_way(connection: "Connection") -> Finding:
    """Tell how far away the broker is."""
    started = time.monotonic()
    await connection.client.flush(timeout=5)
    took_s = time.monotonic() - started
    told = f"the broker answers after {took_s * 1_000:.1f} ms"
    if took_s > SLOW_S:
        return Finding("warn", told, "each call takes several of these: look at the network")
    return Finding("ok", told)


async def of_jetstream(manager: "JetStreamManager") -> Finding:
    """Tell how full JetStream is."""
    info = await manager.account_info()
    limit = info.limits.max_storage if info.limits else -1
    used = info.storage or 0
    told = f"JetStream: {info.streams} streams, {_size(used)} stored"
    if limit and limit > 0:
        told = f"{told} of {_size(limit)}"
        if used > FULL * limit:
            fix = "give the account more storage, or the streams less: what is full refuses calls"
            return Finding("warn", told, fix)
    return Finding("ok", told)


async def of_mailboxes(manager: "JetStreamManager", directory: "Directory") -> list[Finding]:
    """Tell of requests that nobody takes, and of mailboxes that are nobody's."""
    from mesh import streams, subjects
    from mesh.errors import InvalidInputError
    from schemas.registry import State

    standings = {one.id: one for one in directory.standings()}
    info = await manager.stream_info(streams.INBOX, subjects_filter=">")
    waiting: dict[str, int] = {}
    for subject, count in (info.state.subjects or {}).items():
        with suppress(InvalidInputError):
            agent = subjects.parse_inbox(subject).agent
            waiting[agent] = waiting.get(agent, 0) + count
    findings = [
        Finding(
            "warn",
            f"{_requests(count)} for {agent}, which is offline",
            "start it: each waits until its deadline",
        )
        for agent, count in sorted(waiting.items())
        if agent in standings and standings[agent].state is State.OFFLINE
    ]
    unknown = sorted(set(waiting) - set(standings))
    if unknown:
        count = sum(waiting[agent] for agent in unknown)
        told = f"{_requests(count)} for agents that nobody knows: {_names(unknown)}"
        findings.append(Finding("warn", told, "they become dead letters: mesh dead list"))
    durables = [str(one.name) async for one in _consumers(manager, streams.INBOX)]
    owners = {one.partition("@")[0] for one in durables if not streams.is_group(one)}
    orphans = sorted(owners - {""} - set(standings))
    if orphans:
        told = f"mailboxes of agents that the registry does not know: {_names(orphans)}"
        fix = "they are taken up again when such an agent is announced; else remove the consumers"
        findings.append(Finding("warn", told, fix))
    return findings or [
        Finding("ok", f"{sum(waiting.values())} requests in {len(durables)} mailboxes")
    ]


async def _consumers(manager: "JetStreamManager", stream: str) -> Any:
    offset = 0
    while True:
        page = await manager.consumers_info(stream, offset=offset)
        for one in page:
            yield one
        if len(page) < 256:
            return
        offset += len(page)


async def of_dead_letters(manager: "JetStreamManager") -> Finding:
    """Tell whether requests were given up."""
    from mesh import streams

    count = (await manager.stream_info(streams.DEAD)).state.messages
    if count:
        return Finding("warn", f"{count} dead letters", "look at them: mesh dead list")
    return Finding("ok", "no dead letters")


def of_clock(varz: dict[str, Any]) -> Iterator[Finding]:
    """Tell whether this machine and the broker agree about the time."""
    try:
        broker_s = datetime.fromisoformat(str(varz["now"])).timestamp()
    except (KeyError, ValueError):
        return
    skew_s = time.time() - broker_s
    if abs(skew_s) > SKEW_S:
        which = "ahead of" if skew_s > 0 else "behind"
        yield Finding(
            "warn",
            f"this machine's clock is {abs(skew_s):.1f} s {which} the broker's",
            "set it (NTP): deadlines are by the broker's clock, but certificates and keys are not",
        )
    else:
        yield Finding("ok", "this machine and the broker agree about the time")


def of_disk(settings: "Settings") -> Iterator[Finding]:
    """Tell whether there is room where the embedded broker keeps its streams."""
    folder = Path(settings.data_dir)
    if settings.is_broker_external or not folder.exists():
        return
    usage = shutil.disk_usage(folder)
    told = f"{_size(usage.free)} free of {_size(usage.total)} at {folder}"
    if not os.access(folder, os.W_OK | os.X_OK):
        yield Finding("fail", f"{folder} cannot be written", "give it to who runs the mesh: chown")
    elif usage.free < LOW_BYTES:
        yield Finding("warn", told, "free some: a full disk stops every mailbox")
    else:
        yield Finding("ok", told)


def of_secrets(settings: "Settings") -> Iterator[Finding]:
    """Tell whether others on this machine can read what only its owner may."""
    paths = [one for one in (settings.creds, settings.http_key) if one is not None]
    if settings.keys_dir.exists():
        paths.append(settings.keys_dir)
    for path in paths:
        with suppress(OSError):
            if path.stat().st_mode & 0o077:
                yield Finding("warn", f"others can read {path}", f"chmod go= {path}")


def _requests(count: int) -> str:
    return "1 request waits" if count == 1 else f"{count} requests wait"


def _names(names: list[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more


def _size(count: float) -> str:
    for unit in ("B", "KB", "MB"):
        if count < 1024:
            return f"{count:.0f} {unit}"
        count /= 1024
    return f"{count:.1f} GB"
