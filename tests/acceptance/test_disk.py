"""A disk that is small, that is full, and that has room again. Needs the right to mount a tmpfs."""

import asyncio
import os
import shutil
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.acceptance.conftest import clean_environ, running_mesh
from tests.conftest import until

ROOMY = "size=700m"
"""Less than 31 GB, of which nats-server would reserve what the streams want."""


async def mount(*arguments: str) -> bool:
    """Run mount; tell whether it was allowed."""
    process = await asyncio.create_subprocess_exec(
        *("mount", "-t", "tmpfs", *arguments), stderr=asyncio.subprocess.DEVNULL
    )
    return await process.wait() == 0


@pytest.fixture
async def disk(tmp_path: Path) -> AsyncIterator[Path]:
    """A small disk of its own."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if shutil.which("mount") is None or not await mount("-o", ROOMY, "tmpfs", str(folder)):
        pytest.skip("NOT RUN: the full disk (this user may not mount a tmpfs)")
    try:
        yield folder
    finally:
        process = await asyncio.create_subprocess_exec("umount", "-l", str(folder))
        await process.wait()


async def fill(disk: Path) -> None:
    """Leave no room but for what is written already."""
    used = shutil.disk_usage(disk).used
    assert await mount("-o", f"remount,size={used + 200_000}", "tmpfs", str(disk))
    with (disk / "other").open("wb", buffering=0) as other:
        try:
            while True:
                other.write(b"x" * 4096)
        except OSError:
            return


@pytest.mark.timeout(240)
async def test_a_full_disk_is_told_and_recovered_from(disk: Path) -> None:
    """P7, F15: an error that says so, nothing acknowledged is lost, and no hand is needed after."""
    async with (
        running_mesh(clean_environ(disk / "data")) as mesh,
        mesh.start("run", "handlers.echo:agent") as host,
    ):
        await mesh.up.says("the streams share")
        await host.says("agent echo runs")
        kept = await mesh.run("send", "echo", "before", "--detach")
        assert (kept.code, kept.err) == (0, "")
        assert (await mesh.run("send", "echo", "still")).out == "still\n"

        await fill(disk)
        body = os.urandom(100_000).hex()
        told = await mesh.run("send", "echo", "--timeout", "60", stdin=body.encode())
        # 6 where the registry met the end of the disk first: then it cannot even be read.
        assert told.code in (1, 6)
        assert "stores nothing, perhaps since its disk was full" in told.err
        detached = await mesh.run("send", "echo", "--detach", stdin=body.encode())
        assert detached.code in (1, 6)
        assert "stores nothing, perhaps since its disk was full" in detached.err
        await mesh.up.says("nothing is stored until there is room again")
        doctor = await mesh.run("doctor", MESH_NATS_MONITOR_URL=mesh.varz_url)
        assert "the broker is not healthy: " in doctor.out

        assert await mount("-o", f"remount,{ROOMY}", "tmpfs", str(disk))
        (disk / "other").unlink()
        await mesh.up.says("starting the broker again, as there is room now")

        async def answers() -> bool:
            return (await mesh.run("send", "echo", "back", "--timeout", "5")).out == "back\n"

        await until(answers, within_s=60)
        answer = await mesh.run("wait", kept.out.strip(), "--timeout", "30")
        assert answer.out == "before\n"
