"""No test hangs for ever, or CI is cut off and says nothing."""

import os
import subprocess
import sys
from pathlib import Path

from tests import limits

CONFTEST = """
from tests import limits

limits.CLOSING_S = limits.AGAIN_S = 0.5

def pytest_configure(config):
    config.pluginmanager.register(limits.Limits())
"""
HANGING = """
import time
import pytest

@pytest.fixture
def opened():
    yield
    time.sleep(600)

def test_that_fails_first(opened):
    raise ValueError("its own reason")

@pytest.mark.timeout(0.5)
def test_that_swallows_the_first_signal():
    try:
        time.sleep(600)
    except BaseException:
        time.sleep(600)
"""


def test_what_pytest_timeout_leaves_open_ends(tmp_path: Path) -> None:
    """A fixture that hangs after a failure, and a signal that did not reach the test."""
    (tmp_path / "conftest.py").write_text(CONFTEST)
    (tmp_path / "test_hanging.py").write_text(HANGING)
    root = str(Path(limits.__file__).parent.parent)
    ended = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "pytest_timeout", "-c", os.devnull, str(tmp_path)],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": root, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=200,
    )
    assert "its own reason" in ended.stdout, ended.stdout + ended.stderr
    assert "not closed within 0.5 s" in ended.stdout
    assert "2 failed, 1 error" in ended.stdout
