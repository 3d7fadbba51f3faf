"""Presence on a real Matrix homeserver: Synapse, started by the test, on loopback and SQLite."""

import asyncio
import hashlib
import hmac
import os
import signal
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import pytest

from mesh.connection import Connection
from mesh.directory import Directory
from mesh.errors import PresenceRefusedError
from mesh.presence import follow_people
from mesh.shim.matrix import MatrixBridge, Passed
from schemas.presence import PresenceState
from tests.brokers import free_port
from tests.conftest import until
from tests.shim import serving

pytestmark = pytest.mark.matrix

PYTHON = Path(__file__).parents[2] / ".venv-matrix" / "bin" / "python"
SECRET = "only-for-this-test"
REPORT = "/internal/matrix/presence/online"
CONFIG = """
server_name: localhost
pid_file: homeserver.pid
listeners:
  - port: {port}
    tls: false
    type: http
    bind_addresses: ["127.0.0.1"]
    resources: [{{names: [client]}}]
database: {{name: sqlite3, args: {{database: homeserver.db}}}}
media_store_path: media
signing_key_path: signing.key
registration_shared_secret: {secret}
report_stats: false
trusted_key_servers: []
suppress_key_server_warning: true
{limits}
"""
NO_LIMITS = "rc_presence: {per_user: {per_second: 1000, burst_count: 1000}}"
"""Without it a homeserver takes one change in ten seconds of a user."""


@dataclass(frozen=True, slots=True)
class Homeserver:
    """A homeserver, and its users."""

    url: str

    async def register(self, name: str) -> str:
        """Make a user, and return an access token."""
        async with httpx2.AsyncClient(base_url=self.url, timeout=20) as http:
            nonce = (await http.get("/_synapse/admin/v1/register")).json()["nonce"]
            proof = "\0".join((nonce, name, "password", "notadmin")).encode()
            mac = hmac.new(SECRET.encode(), proof, hashlib.sha1).hexdigest()
            user = {"nonce": nonce, "username": name, "password": "password", "admin": False}
            made = await http.post("/_synapse/admin/v1/register", json={**user, "mac": mac})
            return str(made.json()["access_token"])

    async def presence(self, name: str, token: str) -> dict[str, Any]:
        """Return how the homeserver shows a user to himself."""
        async with httpx2.AsyncClient(base_url=self.url, timeout=20) as http:
            path = f"/_matrix/client/v3/presence/@{name}:localhost/status"
            answer = await http.get(path, headers={"authorization": f"Bearer {token}"})
            found: dict[str, Any] = answer.json()
            return found


async def _start(folder: Path, limits: str) -> tuple[asyncio.subprocess.Process, Homeserver]:
    if os.environ.get("MESH_TEST_NO_MATRIX") or not PYTHON.exists():
        pytest.skip("NOT RUN: the Matrix homeserver is not installed; scripts/setup matrix does it")
    port = free_port()
    config = folder / "homeserver.yaml"
    config.write_text(CONFIG.format(port=port, secret=SECRET, limits=limits))
    command = (str(PYTHON), "-m", "synapse.app.homeserver", "-c", config.name)
    keys = await asyncio.create_subprocess_exec(
        *command, "--generate-keys", cwd=folder, stdout=asyncio.subprocess.DEVNULL
    )
    assert await keys.wait() == 0
    with (folder / "log").open("wb") as log:
        process = await asyncio.create_subprocess_exec(*command, cwd=folder, stdout=log, stderr=log)
    url = f"http://127.0.0.1:{port}"

    async def is_up() -> bool:
        assert process.returncode is None, (folder / "log").read_text()
        try:
            async with httpx2.AsyncClient(timeout=2) as http:
                return (await http.get(f"{url}/health")).status_code == 200
        except httpx2.HTTPError:
            return False

    await until(is_up, within_s=60)
    return process, Homeserver(url)


async def _stop(process: asyncio.subprocess.Process) -> None:
    if process.returncode is None:
        process.send_signal(signal.SIGTERM)
    await asyncio.wait_for(process.wait(), 30)


@pytest.fixture(scope="module")
async def homeserver(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Homeserver]:
    """A homeserver that takes changes as they come."""
    process, running = await _start(tmp_path_factory.mktemp("synapse"), NO_LIMITS)
    yield running
    await _stop(process)


@pytest.fixture
async def http(
    connection: Connection, directory: Directory, homeserver: Homeserver
) -> AsyncIterator[httpx2.AsyncClient]:
    """A door that passes presence on to it at once."""
    bridge = MatrixBridge(homeserver.url, pause_s=0.0)
    async with (
        follow_people(connection, directory.clock) as people,
        serving(connection, directory, people=people, matrix=bridge) as url,
        httpx2.AsyncClient(base_url=url, timeout=30) as client,
    ):
        yield client
    await bridge.close()


def body(name: str, token: str, status: str, **more: Any) -> dict[str, Any]:
    """Return the guide's body."""
    user = f"@{name}:localhost"
    return {"matrix_user_id": user, "access_token": token, "status": status, **more}


async def test_it_is_passed_on(http: httpx2.AsyncClient, homeserver: Homeserver) -> None:
    """Every state, and what somebody says of himself."""
    token = await homeserver.register("ann")
    for status in ("online", "unavailable", "offline"):
        answer = await http.post(REPORT, json=body("ann", token, status, status_msg="at lunch"))
        assert answer.json()["matrix"] == "sent", answer.text
        shown = await homeserver.presence("ann", token)
        assert (shown["presence"], shown["status_msg"]) == (status, "at lunch")


async def test_one_tab_of_two_is_closed(http: httpx2.AsyncClient, homeserver: Homeserver) -> None:
    """The homeserver is told how the person is, and not how the tab is."""
    token = await homeserver.register("bea")
    for tab in ("a", "b"):
        await http.post(REPORT, json=body("bea", token, "online", client_id=tab, seq=1))
    await http.post(REPORT, json=body("bea", token, "offline", client_id="a", seq=2))
    assert (await homeserver.presence("bea", token))["presence"] == "online"


@pytest.mark.parametrize("whose", ["nobody", "another"])
async def test_who_is_not_whom_he_says(
    http: httpx2.AsyncClient, homeserver: Homeserver, whose: str
) -> None:
    """He is refused by the homeserver, and so by us: nobody sees him online."""
    token = "no-token" if whose == "nobody" else await homeserver.register("eve")
    answer = await http.post(REPORT, json=body("victim", token, "online"))
    assert answer.status_code == 403
    assert answer.json()["error"]["code"] == "presence_refused"
    assert "log in again" in answer.json()["error"]["message"]
    assert token not in answer.text
    people = (await http.get("/api/v1/presence")).json()["people"]
    assert "@victim:localhost" not in [one["matrix_user_id"] for one in people]


async def test_nobody_slips_in_behind_who_has_just_been_believed(
    connection: Connection, directory: Directory, homeserver: Homeserver
) -> None:
    """While changes of somebody have to wait, another token is not believed, and delays nothing."""
    token = await homeserver.register("gina")
    bridge = MatrixBridge(homeserver.url, pause_s=1.0)
    async with (
        follow_people(connection, directory.clock) as people,
        serving(connection, directory, people=people, matrix=bridge) as url,
        httpx2.AsyncClient(base_url=url, timeout=30) as http,
    ):
        assert (await http.post(REPORT, json=body("gina", token, "online"))).status_code == 200
        later = await http.post(REPORT, json=body("gina", token, "unavailable"))
        assert later.json()["matrix"] == "later"
        forged = await http.post(REPORT, json=body("gina", "stolen?", "offline", client_id="x"))
        assert forged.status_code == 403

        async def is_away() -> bool:
            shown = await homeserver.presence("gina", token)
            return bool(shown["presence"] == "unavailable")

        await until(is_away, within_s=10)
        people_now = (await http.get("/api/v1/presence")).json()["people"]
        states = {one["matrix_user_id"]: one["state"] for one in people_now}
        assert states["@gina:localhost"] == "away"
    await bridge.close()


async def test_a_homeserver_that_is_away(connection: Connection, directory: Directory) -> None:
    """The mesh knows who is there all the same, and says so."""
    bridge = MatrixBridge(f"http://127.0.0.1:{free_port()}", pause_s=0.0)
    async with (
        follow_people(connection, directory.clock) as people,
        serving(connection, directory, people=people, matrix=bridge) as url,
        httpx2.AsyncClient(base_url=url, timeout=30) as http,
    ):
        answer = await http.post(REPORT, json=body("carl", "t", "online"))
        assert answer.json() == {
            "matrix_user_id": "@carl:localhost",
            "state": "online",
            "matrix": "unreachable",
        }


async def test_a_homeserver_with_limits(tmp_path: Path) -> None:
    """It takes one change in ten seconds: the newest comes then, and none in between."""
    process, limited = await _start(tmp_path, "")
    bridge = MatrixBridge(limited.url, pause_s=0.0)
    try:
        token = await limited.register("dora")
        passed = [
            await bridge.pass_on("@dora:localhost", token, state, "")
            for state in (PresenceState.ONLINE, PresenceState.AWAY, PresenceState.OFFLINE)
        ]
        assert passed == [Passed.SENT, Passed.LATER, Passed.LATER]

        async def is_offline() -> bool:
            return bool((await limited.presence("dora", token))["presence"] == "offline")

        await until(is_offline, within_s=25)
        with pytest.raises(PresenceRefusedError):
            await bridge.pass_on("@eve:localhost", token, PresenceState.ONLINE, "")
    finally:
        await bridge.close()
        await _stop(process)
