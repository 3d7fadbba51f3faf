"""The data directory of the embedded nats-server: kept, locked, and inherited from the dead."""

import asyncio
import fcntl
import os
import shutil
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from pathlib import Path

import nats
import pytest

from mesh import broker as module
from mesh.broker import embedded_broker
from mesh.connection import open_connection
from mesh.errors import DataDirError
from mesh.provision import ensure_streams
from mesh.settings import Settings
from mesh.streams import INBOX
from mesh.trust.credentials import Credentials
from mesh.trust.keyring import Keyring, Secret
from mesh.trust.login import Login
from tests.brokers import open_and_close, own_settings
from tests.children import REPOSITORY, is_running, linux_only


@pytest.fixture
def any_ports(tmp_path: Path) -> Settings:
    """A broker of its own, on any free ports."""
    return own_settings(tmp_path / "data")


@pytest.mark.parametrize("is_killed", [False, True])
async def test_data_survives_a_restart(any_ports: Settings, is_killed: bool) -> None:
    """A stored message is there again after a stop, and after kill -9 of the server."""
    async with embedded_broker(any_ports) as broker:
        client = await nats.connect(broker.url)
        await client.jetstream().add_stream(name="S", subjects=["s"])
        await client.jetstream().publish("s", b"kept")
        await client.close()
        if is_killed:
            os.kill(broker.pid, signal.SIGKILL)
            assert await broker.wait() == -signal.SIGKILL
    async with embedded_broker(any_ports) as broker:
        client = await nats.connect(broker.url)
        assert (await client.jetstream().get_last_msg("S", "s")).data == b"kept"
        await client.close()


async def test_two_brokers_never_share_a_data_directory(
    any_ports: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second broker is refused, and told who holds the directory; then it is free again."""
    monkeypatch.setattr(module, "_LOCK_WAIT_S", 0.1)
    async with embedded_broker(any_ports) as broker:
        with pytest.raises(DataDirError) as caught:
            await open_and_close(any_ports)
    assert caught.value.path == str(any_ports.data_dir)
    holder = f"process {os.getpid()}, nats-server {broker.pid}"
    assert f"is in use by another mesh ({holder})" in str(caught.value)
    assert "MESH_DATA_DIR" in str(caught.value)
    await open_and_close(any_ports)


@pytest.mark.parametrize("name", ["file/data", "file", "folder"])
async def test_an_unusable_data_directory_is_named(tmp_path: Path, name: str) -> None:
    """A data directory that cannot be made or written is an error with its path."""
    (tmp_path / "file").touch()
    (tmp_path / "folder" / "lock").mkdir(parents=True)
    settings = Settings(nats_port=0, nats_monitor_port=0, data_dir=tmp_path / name)
    with pytest.raises(DataDirError, match=r"cannot be used \(.+\): set MESH_DATA_DIR") as caught:
        await open_and_close(settings)
    assert caught.value.path == str(tmp_path / name)


PARENT = """
import asyncio, sys
from pathlib import Path
from mesh.broker import embedded_broker
from mesh.settings import Settings

async def main():
    settings = Settings(nats_port=0, nats_monitor_port=0, data_dir=Path(sys.argv[1]))
    async with embedded_broker(settings) as broker:
        print(broker.pid, flush=True)
        await asyncio.Event().wait()

asyncio.run(main())
"""


async def start_parent(settings: Settings) -> tuple[asyncio.subprocess.Process, int]:
    """Run a broker in another process, and return that and the server's process id."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", PARENT, settings.data_dir),
        stdout=asyncio.subprocess.PIPE,
        cwd=REPOSITORY,
    )
    assert process.stdout is not None
    return process, int(await process.stdout.readline())


@asynccontextmanager
async def orphan(settings: Settings) -> AsyncIterator[int]:
    """A server whose parent was killed, and that cannot close before it gets SIGCONT."""
    parent, pid = await start_parent(settings)
    os.kill(pid, signal.SIGSTOP)
    parent.kill()
    await parent.wait()
    try:
        yield pid
    finally:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


@linux_only
async def test_the_server_never_outlives_its_parent(any_ports: Settings) -> None:
    """After kill -9 of the parent the server ends, and its data can be used at once."""
    parent, pid = await start_parent(any_ports)
    parent.kill()
    await parent.wait()
    await open_and_close(any_ports)
    assert not is_running(pid)


@linux_only
async def test_a_server_that_still_closes_its_streams_is_waited_for(
    any_ports: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server of a killed parent gets more time to close than a mesh that runs."""
    monkeypatch.setattr(module, "_LOCK_WAIT_S", 0.05)
    told: list[tuple[str, str]] = []

    async def open_and_listen() -> None:
        async with embedded_broker(any_ports, on_log=lambda *line: told.append(line)):
            pass

    async with orphan(any_ports) as pid:
        opening = asyncio.create_task(open_and_listen())
        done, _ = await asyncio.wait({opening}, timeout=0.5)
        assert not done, "the old server is still there"
        os.kill(pid, signal.SIGCONT)
        await opening
    assert told[0] == ("WRN", "waiting for the broker of a killed mesh to close")
    assert told.count(told[0]) == 1


@linux_only
async def test_a_server_that_does_not_close_is_given_up(
    any_ports: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server that outlives its killed parent for too long is named, to be ended by hand."""
    monkeypatch.setattr(module, "_CLOSING_WAIT_S", 0.1)
    async with orphan(any_ports) as pid:
        with pytest.raises(DataDirError, match=rf"broker of a killed mesh \(.*nats-server {pid}\)"):
            await open_and_close(any_ports)


async def test_a_holder_without_a_server_is_not_waited_for(
    any_ports: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only a server that runs makes us wait longer: not a record of process ids long gone."""
    monkeypatch.setattr(module, "_LOCK_WAIT_S", 0.05)
    any_ports.data_dir.mkdir()
    with (any_ports.data_dir / "lock").open("w") as lock:
        lock.write("process 987654321, nats-server 987654321".ljust(80))
        lock.flush()
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(DataDirError, match=r"another mesh \(process 987654321, nats-server"):
            await asyncio.wait_for(open_and_close(any_ports), 30)


async def stored_in(settings: Settings, *, put: bool) -> int:
    """Return how many messages the mailboxes of a mesh hold; put one there before, or not."""
    keys = settings.keys_dir
    creds = Keyring.open(keys).credentials_path("control") if Keyring.exists(keys) else None
    login = Credentials.read(creds) if creds else None
    async with (
        embedded_broker(settings) as broker,
        open_connection(Login(broker.url, login), name="test") as connection,
    ):
        await ensure_streams(connection, settings)
        if put:
            await connection.publisher.publish("agent.a.inbox", b"hello", {})
        state = (await connection.client.jsm().stream_info(INBOX)).state
        return int(state.messages)


async def test_what_an_open_mesh_has_stored_is_the_secure_ones(any_ports: Settings) -> None:
    """Once; what would be mixed, or forgotten, is told."""
    assert await stored_in(any_ports, put=True) == 1
    Keyring.create(any_ports.keys_dir)
    assert await stored_in(any_ports, put=True) == 2
    assert await stored_in(any_ports, put=False) == 2
    others = any_ports.keys_dir.with_name("others")
    Keyring.create(others)
    with pytest.raises(DataDirError, match="of another mesh than that of these keys"):
        await open_and_close(replace(any_ports, keys_folder=others))
    with pytest.raises(DataDirError, match="and its keys are not there: set MESH_KEYS_DIR"):
        await open_and_close(replace(any_ports, keys_folder=others.with_name("none")))
    assert await stored_in(any_ports, put=False) == 2


async def test_two_meshes_are_not_mixed(any_ports: Settings) -> None:
    """A secure mesh beside what an open one has stored, as a start of an older mesh has left it."""
    assert await stored_in(any_ports, put=True) == 1
    open_folder = any_ports.data_dir / "jetstream" / "$G"
    kept = any_ports.data_dir / "kept"
    shutil.copytree(open_folder, kept)
    Keyring.create(any_ports.keys_dir)
    assert await stored_in(any_ports, put=False) == 1
    kept.rename(open_folder)
    with pytest.raises(DataDirError, match=r"beside that of the secure one: move \S+\$G away"):
        await open_and_close(any_ports)


async def test_data_that_cannot_be_moved_is_told(any_ports: Settings) -> None:
    """In a sentence; and it is where it was."""
    assert await stored_in(any_ports, put=True) == 1
    keyring = Keyring.create(any_ports.keys_dir)
    stranger = any_ports.data_dir / "jetstream" / keyring.public[Secret.CORE]
    stranger.write_text("")
    with pytest.raises(DataDirError, match=r"cannot be used: .*; set MESH_DATA_DIR"):
        await open_and_close(any_ports)
    stranger.unlink()
    assert await stored_in(any_ports, put=False) == 1


async def test_what_a_start_has_left_is_no_mesh(any_ports: Settings) -> None:
    """An account's folder with nothing in it: nats-server would never be ready."""
    empty = any_ports.data_dir / "jetstream" / f"A{'B' * 55}" / "streams"
    empty.mkdir(parents=True)
    await open_and_close(any_ports)
    assert not empty.parent.exists()
