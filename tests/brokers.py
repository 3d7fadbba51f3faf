"""What the tests of the embedded broker share: settings, ports, and programs in its place."""

import asyncio
import json
import os
import signal
import socket
import urllib.request
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from mesh.broker import EmbeddedBroker, embedded_broker, find_server
from mesh.settings import Settings

NATS_SERVER = find_server(Settings())


def own_settings(data_dir: Path, server: str = "") -> Settings:
    """Return settings for a broker on any free ports."""
    return Settings(nats_server=server, nats_port=0, nats_monitor_port=0, data_dir=data_dir)


def free_port() -> int:
    """Return a port on which nobody listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wrapper(path: Path, script: str) -> str:
    """Write a script that stands for nats-server, but for `-v`, which it passes on."""
    path.write_text(f'#!/bin/sh\n[ "$1" = -v ] && exec {NATS_SERVER} -v\n{script}\n')
    path.chmod(0o755)
    return str(path)


async def varz(monitor_url: str) -> Any:
    """Return what a server tells of itself."""

    def get() -> Any:
        with urllib.request.urlopen(f"{monitor_url}/varz", timeout=5) as answer:
            return json.load(answer)

    return await asyncio.to_thread(get)


async def open_and_close(settings: Settings) -> None:
    """Run a broker for a moment."""
    async with embedded_broker(settings):
        pass


class KillableBroker:
    """A broker that can be killed; it comes back at the same port, with the same data."""

    def __init__(self, data_dir: Path, keys: Path | None = None) -> None:
        self._settings = replace(own_settings(data_dir), keys_folder=keys)
        self._stack = AsyncExitStack()
        self._broker: EmbeddedBroker | None = None

    @property
    def url(self) -> str:
        """Where it listens."""
        assert self._broker is not None
        return self._broker.url

    @property
    def pid(self) -> int:
        """Its process."""
        assert self._broker is not None
        return self._broker.pid

    async def __aenter__(self) -> "KillableBroker":
        await self._start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()

    async def _start(self) -> None:
        self._broker = await self._stack.enter_async_context(embedded_broker(self._settings))
        self._settings = replace(self._settings, nats_port=urlsplit(self._broker.url).port or 0)

    async def freeze(self, for_s: float) -> None:
        """Give it no time."""
        os.kill(self.pid, signal.SIGSTOP)
        try:
            await asyncio.sleep(for_s)
        finally:
            os.kill(self.pid, signal.SIGCONT)

    async def kill(self, *, down_s: float = 0.0) -> None:
        """Kill it as the kernel would, and start it again."""
        assert self._broker is not None
        os.kill(self._broker.pid, signal.SIGKILL)
        await self._broker.wait()
        await self._stack.aclose()
        await asyncio.sleep(down_s)
        await self._start()
