"""What CI says of a machine that stands still: as little as it must, and never nothing."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests import standstill

FAILING = """
import asyncio
import os
import signal
import subprocess

def stand_still():
    subprocess.Popen(["sh", "-c", f"sleep 1.5; kill -CONT {os.getpid()}"])
    os.kill(os.getpid(), signal.SIGSTOP)

def test_that_waits_for_nothing():
    stand_still()
    raise ValueError("a defect")

async def test_that_waits():
    stand_still()
    raise TimeoutError("perhaps a defect")
"""


def run(tmp_path: Path, *options: str) -> str:
    """Run both tests as CI does, and return what pytest says."""
    folder = tmp_path / "unit"
    folder.mkdir()
    (folder / "test_failing.py").write_text(FAILING)
    root = str(Path(standstill.__file__).parent.parent)
    plugins = (
        "-p",
        "pytest_asyncio",
        "-o",
        "asyncio_mode=auto",
        "-p",
        "tests.standstill",
        "-p",
        "no:warnings",
    )
    ended = subprocess.run(
        [sys.executable, "-m", "pytest", *plugins, *options, "-c", os.devnull, str(folder)],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": root, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=200,
    )
    assert ended.returncode == 1, ended.stdout + ended.stderr
    return ended.stdout


@pytest.mark.parametrize(
    ("options", "of_the_other"),
    [((), "1 no verdict"), (("--budget-s", "0"), "1 skipped")],
    ids=["stood still", "no time left"],
)
def test_only_what_waits_is_without_a_verdict(
    tmp_path: Path, options: tuple[str, ...], of_the_other: str
) -> None:
    """A failure of what waits for nothing counts, and it is run when there is no time left."""
    said = run(tmp_path, *options)
    assert "a defect" in said
    assert f"1 failed, {of_the_other} in" in said
