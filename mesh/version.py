"""The version of this installation."""

from importlib.metadata import PackageNotFoundError, version
from typing import Final


def _installed() -> str:
    try:
        return version("nats-agent-mesh")
    except PackageNotFoundError:
        return "0+unknown"


VERSION: Final = _installed()
