"""A nats-server with the two accounts of secure mode, for tests that log in as its users.

Starts and stops the server. The users and their rights stand in `two_accounts.conf`; every
password is the name again.
"""

import asyncio
import json
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from mesh.broker import find_server
from mesh.settings import Settings
from tests.conftest import until

CONFIGURATION: Final = Path(__file__).parent / "two_accounts.conf"


@dataclass(frozen=True, slots=True)
class Accounts:
    """A server that runs."""

    address: str

    def url(self, user: str) -> str:
        """Return the URL with which `user` logs in."""
        return f"nats://{user}:{user}@{self.address}"

    def settings(self, user: str, node: str) -> Settings:
        """Return the settings of a process that logs in as `user`."""
        return Settings(nats_url=self.url(user), is_broker_external=True, node=node)


@asynccontextmanager
async def accounts_server(data_dir: Path) -> AsyncIterator[Accounts]:
    """Run the server for the length of the context."""
    process = await asyncio.create_subprocess_exec(
        find_server(Settings()),
        *("-c", CONFIGURATION, "--ports_file_dir", data_dir, "-l", data_dir / "log"),
        env={**os.environ, "ACCOUNTS_DATA_DIR": f'"{data_dir}"'},
    )
    try:
        await until(lambda: _address(data_dir) is not None)
        yield Accounts(_address(data_dir) or "")
    finally:
        process.terminate()
        await process.wait()


def _address(data_dir: Path) -> str | None:
    for file in data_dir.glob("*.ports"):
        try:
            url: str = json.loads(file.read_bytes())["nats"][0]
        except ValueError:  # Half written.
            return None
        return url.rpartition("/")[2]
    return None
