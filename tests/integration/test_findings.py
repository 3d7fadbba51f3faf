"""What `mesh doctor` finds, each with the fault there, and without it."""

import os
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from nats.aio.client import Client
from nats.js.api import AckPolicy, ConsumerConfig

from mesh.cli import findings
from mesh.client import MeshClient
from mesh.connection import Connection
from mesh.directory import Directory
from mesh.settings import Settings
from mesh.streams import INBOX
from tests.calls import offline, question
from tests.conftest import Running, until


def states(found: list[findings.Finding], word: str) -> list[str]:
    """Return the states of the findings that have a word in them; each says what to do."""
    picked = [one for one in found if word in one.what]
    assert all(one.fix for one in picked if one.state != "ok")
    return [one.state for one in picked]


async def test_requests_that_wait_in_vain(
    running: Running,
    client: MeshClient,
    connection: Connection,
    directory: Directory,
    bare: Client,
    agent_id: str,
) -> None:
    """For an agent that is offline; for one that nobody knows; and a mailbox that is nobody's."""
    manager = connection.client.jsm()
    await offline(running, client, agent_id)
    assert states(await findings.of_mailboxes(manager, directory), agent_id) == []
    await client.submit(agent_id, question(agent_id), timeout_s=60)
    found = await findings.of_mailboxes(manager, directory)
    assert states(found, f"1 request waits for {agent_id}, which is offline") == ["warn"]
    orphan = f"{agent_id}-orphan"
    config = ConsumerConfig(
        durable_name=orphan,
        filter_subject=f"agent.{orphan}.inbox",
        ack_policy=AckPolicy.EXPLICIT,
    )
    await manager.add_consumer(INBOX, config)
    try:
        found = await findings.of_mailboxes(manager, directory)
        assert states(found, orphan) == ["warn"]
    finally:
        await manager.delete_consumer(INBOX, orphan)
    await bare.jetstream().publish(f"agent.{agent_id}-unknown.inbox", b"hello")
    found = await findings.of_mailboxes(manager, directory)
    assert states(found, f"nobody knows: {agent_id}-unknown") == ["warn"]
    # It is given up after a moment, and is a dead letter then.
    await until(lambda: has_letters(connection))


async def has_letters(connection: Connection) -> bool:
    """Tell whether dead letters are found."""
    found = await findings.of_dead_letters(connection.client.jsm())
    return found.state == "warn" and "mesh dead list" in found.fix


async def test_the_broker_itself(connection: Connection) -> None:
    """What it stores, and how far away it is."""
    told = await findings.of_jetstream(connection.client.jsm())
    assert told.state == "ok"
    assert "streams" in told.what
    assert (await findings.of_way(connection)).state == "ok"


@pytest.mark.parametrize(
    ("numbers", "state"), [((2, 14, 0), "ok"), ((2, 15, 1), "ok"), ((2, 13, 9), "fail")]
)
def test_the_version(numbers: tuple[int, int, int], state: str) -> None:
    """One that lacks what the mesh needs is a failure."""
    found = findings.of_version(numbers, "nats://x")
    assert found.state == state
    assert bool(found.fix) == (state == "fail")


@pytest.mark.parametrize(("skew_s", "state"), [(0, "ok"), (30, "warn"), (-30, "warn")])
def test_the_clock(skew_s: float, state: str) -> None:
    """Ahead or behind."""
    now = datetime.now(UTC) + timedelta(seconds=skew_s)
    (found,) = findings.of_clock({"now": now.isoformat()})
    assert found.state == state
    assert ("behind" in found.what) == (skew_s > 0)


@pytest.mark.parametrize("varz", [{}, {"now": "noon"}, {"now": None}])
def test_a_clock_that_nobody_tells(varz: dict[str, object]) -> None:
    """Is no finding."""
    assert list(findings.of_clock(varz)) == []


def test_the_disk_and_what_others_can_read(tmp_path: Path) -> None:
    """Room, rights, and secrets."""
    key = tmp_path / "door.key"
    key.write_text("secret")
    settings = Settings(data_dir=tmp_path, http_key=key)
    assert [one.state for one in findings.of_disk(settings)] == ["ok"]
    key.chmod(0o600)
    assert list(findings.of_secrets(settings)) == []
    key.chmod(0o644)
    (found,) = findings.of_secrets(settings)
    assert found.fix == f"chmod go= {key}"
    assert list(findings.of_disk(Settings(data_dir=tmp_path / "nowhere"))) == []
    if os.geteuid() != 0:  # Nobody forbids root anything.
        tmp_path.chmod(0o500)
        assert [one.state for one in findings.of_disk(settings)] == ["fail"]


def test_a_disk_that_is_nearly_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By a limit that this one is below."""
    monkeypatch.setattr(findings, "LOW_BYTES", 2**62)
    (found,) = findings.of_disk(Settings(data_dir=tmp_path))
    assert found.state == "warn"
    assert found.fix
