"""The addresses of `mesh up`: which port is for what, and what is in its way."""

import socket
import sys

import pytest

from mesh.cli.parts import doors, held_ports
from mesh.errors import PortInUseError
from mesh.settings import Settings
from mesh.shim.server import listen_on


def ports_of(settings: Settings) -> dict[str, int]:
    """The port of each door."""
    found = {name: url.split("/")[2] for name, url in doors(settings).items()}
    return {name: int(place.rpartition(":")[2]) for name, place in found.items()}


def test_the_default_doors_are_the_guides() -> None:
    """With the path to begin at, each."""
    assert doors(Settings()) == {
        "OpenAI": "http://127.0.0.1:9102/v1",
        "registry": "http://127.0.0.1:9205/api/v1/agents",
        "monitor": "http://127.0.0.1:8899/api/agents/connection-test",
    }


@pytest.mark.parametrize(
    ("ports", "named"),
    [
        ((9102,), {"OpenAI": 9102}),
        ((9102, 9205), {"OpenAI": 9102, "registry": 9205}),
        ((9102, 8899), {"OpenAI": 9102, "monitor": 8899}),
        ((8000,), {"OpenAI": 8000}),
        ((8000, 8001, 8002), {"OpenAI": 8000, "registry": 8001, "monitor": 8002}),
        ((9205, 8000), {"OpenAI": 8000, "registry": 9205}),
        ((1, 2, 3, 4), {"OpenAI": 1, "registry": 2, "monitor": 3}),
    ],
)
def test_a_door_that_is_not_listened_on_is_not_shown(
    ports: tuple[int, ...], named: dict[str, int]
) -> None:
    """A default port keeps its name when another is left out; other ports take what is left."""
    assert ports_of(Settings(http_ports=ports)) == named


def test_an_ipv6_address_stands_in_brackets() -> None:
    """As URLs have it."""
    found = doors(Settings(http_host="::1", http_ports=(9102,)))
    assert found == {"OpenAI": "http://[::1]:9102/v1"}


def test_free_ports_are_all_different() -> None:
    """And a port that is named stays."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        named = probe.getsockname()[1]
    with held_ports(Settings(http_ports=(0, named, 0, 0))) as settings:
        found = settings.http_ports
    assert found[1] == named
    assert len(set(found)) == 4
    assert all(found)


@pytest.mark.parametrize("place", [0, 1, 2])
def test_a_port_that_is_taken_is_told_before_anything_starts(place: int) -> None:
    """Whichever of the three it is, with the setting and what it is now."""
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        ports = [0, 0, 0]
        ports[place] = port
        now = ",".join(str(one) for one in ports)
        holding = held_ports(Settings(http_ports=tuple(ports)))
        with pytest.raises(PortInUseError, match=rf"MESH_HTTP_PORTS \(now {now}\)") as caught:
            holding.__enter__()
    assert caught.value.port == port
    assert "\n" not in caught.value.message


def test_an_address_that_is_none_is_left_to_the_shim() -> None:
    """Which says of it what is wrong."""
    settings = Settings(http_host="192.0.2.1", http_ports=(9102,))
    with held_ports(settings) as found:
        assert found == settings


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere two sockets cannot have a port")
def test_a_free_port_is_kept_for_our_door() -> None:
    """It can listen there, twice in turn; for others the port is taken, until the mesh ends."""
    with held_ports(Settings(http_ports=(0,))) as settings:
        (port,) = settings.http_ports
        for _ in range(2):
            with socket.socket() as other, pytest.raises(OSError, match="in use"):
                other.bind(("127.0.0.1", port))
            with listen_on("127.0.0.1", port) as listener:
                assert listener.getsockname()[1] == port
    with socket.socket() as other:
        other.bind(("127.0.0.1", port))
