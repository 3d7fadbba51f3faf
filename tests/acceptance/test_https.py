"""The door with a certificate: HTTPS on all its ports, and nothing in the clear."""

import ssl
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx2
import pytest

from mesh.settings import authority, server_certificate
from mesh.trust.certificates import write_server_certificate
from tests.acceptance.conftest import Mesh, clean_environ, run_mesh, running_mesh


@pytest.fixture(scope="module")
async def door(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[tuple[Mesh, Path]]:
    """A mesh whose door has a certificate, an echo agent, and the folder of the certificate."""
    folder = tmp_path_factory.mktemp("https")
    write_server_certificate(folder, ["door.example.org"])
    certificate = server_certificate(folder)
    environ = clean_environ(
        folder / "data",
        MESH_HTTP_CERT=str(certificate),
        MESH_HTTP_KEY=str(certificate.with_suffix(".key")),
    )
    async with (
        running_mesh(environ) as mesh,
        mesh.start("run", "handlers.echo:agent") as host,
    ):
        await host.says("agent echo runs")
        yield mesh, folder


def trusting(folder: Path) -> httpx2.AsyncClient:
    """Return a client that trusts the authority of the certificate."""
    return httpx2.AsyncClient(verify=ssl.create_default_context(cafile=str(authority(folder))))


async def test_it_answers_and_streams(door: tuple[Mesh, Path]) -> None:
    """To who trusts its authority, and to nobody in the clear."""
    mesh, folder = door
    assert mesh.http_url.startswith("https://")
    body = {"model": "echo", "messages": [{"role": "user", "content": "secret " * 3_000}]}
    async with trusting(folder) as http:
        said = await http.post(f"{mesh.http_url}/chat/completions", json=body)
        assert said.json()["choices"][0]["message"]["content"] == "secret " * 3_000
        async with http.stream(
            "POST", f"{mesh.http_url}/chat/completions", json={**body, "stream": True}
        ) as answer:
            text = "".join([part async for part in answer.aiter_text()])
        assert text.endswith("data: [DONE]\n\n")
        assert (await http.get(f"{mesh.registry_url}/health")).status_code == 200
    async with httpx2.AsyncClient() as stranger:
        with pytest.raises(httpx2.ConnectError, match="CERTIFICATE_VERIFY_FAILED"):
            await stranger.get(f"{mesh.http_url}/models")
        plain = mesh.http_url.replace("https:", "http:")
        with pytest.raises(httpx2.HTTPError):
            await stranger.get(f"{plain}/models")


async def test_the_mesh_finds_its_own_door(door: tuple[Mesh, Path]) -> None:
    """`mesh check`, `mesh doctor` and the connection test, whatever name the certificate has."""
    mesh, folder = door
    ports = str(urlsplit(mesh.http_url).port)
    options: dict[str, Any] = {"MESH_HTTP_PORTS": ports, "MESH_NATS_MONITOR_URL": mesh.varz_url}
    checked = await mesh.run("check", **options)
    assert checked.code == 0, checked.out
    examined = await mesh.run("doctor", **options)
    assert f"HTTP door at https://127.0.0.1:{ports}/health: 200" in examined.out
    async with trusting(folder) as http:
        test = await http.get(f"{mesh.monitor_url}/api/agents/connection-test", timeout=20)
    assert test.json()["summary"]["failed"] == 0, test.text


async def test_a_certificate_that_is_none(tmp_path: Path) -> None:
    """Half of one, no file, somebody else's key: told before anything starts to listen."""
    write_server_certificate(tmp_path / "one", [])
    write_server_certificate(tmp_path / "two", [])
    good = server_certificate(tmp_path / "one")
    other = server_certificate(tmp_path / "two").with_suffix(".key")
    for certificate, key, hint in (
        (str(good), "", "needs its key"),
        ("", str(other), "needs its key"),
        (str(tmp_path / "nothing"), str(other), "cannot be used"),
        (str(good), str(other), "cannot be used"),
        (str(other), str(other), "cannot be used"),
    ):
        environ = clean_environ(tmp_path, MESH_HTTP_CERT=certificate, MESH_HTTP_KEY=key)
        told = await run_mesh("up", "http", environ=environ)
        assert told.code == 2
        assert hint in told.err
        assert "Traceback" not in told.err
