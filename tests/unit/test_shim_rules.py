"""Which hosts and origins a door trusts, and when it demands keys."""

import pytest

from mesh.settings import Settings
from mesh.shim.rules import LOOPBACK_RULES, Rules, rules_for

NAMED = Rules(own_host="mesh.lan", allowed_hosts=frozenset({"mesh.example.org"}))


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1",
        "127.0.0.1:9102",
        "localhost",
        "LOCALHOST:80",
        "localhost.",
        "[::1]:9102",
        "[::1]",
        "192.168.1.5:9102",
        "mesh.lan",
        "mesh.example.org:443",
    ],
)
def test_a_door_knows_its_names(host: str) -> None:
    """Addresses cannot be rebound; names are its own or were allowed."""
    assert NAMED.admits_host(host.encode())


@pytest.mark.parametrize(
    "host",
    [
        "",
        "evil.test",
        "evil.test:9102",
        "localhost.evil.test",
        "127.0.0.1.evil.test",
        "sub.mesh.example.org",
        "localhost:9102@evil.test",
        "evil.test@localhost",
        "localhost/",
        "localhost evil.test",
        "localhost,evil.test",
        "localhost:port",
        "[",
        "[::1",
        "[localhost]",
        "127.1",
        "2130706433",
        "0x7f.0.0.1",
        "lоcalhost",
        ":9102",
        ".",
    ],
)
def test_a_door_knows_what_it_is_not_called(host: str) -> None:
    """Whatever else a browser was made to believe."""
    assert not NAMED.admits_host(host.encode())


def test_keys_make_a_host_check_needless() -> None:
    """A rebound page has no key; but a list of names is a list of names."""
    assert Rules(requires_keys=True).admits_host(b"any.test")
    named = Rules(requires_keys=True, allowed_hosts=frozenset({"mesh.example.org"}))
    assert not named.admits_host(b"any.test")
    assert named.admits_host(b"mesh.example.org")


@pytest.mark.parametrize(
    ("origin", "host"),
    [
        ("http://localhost:9102", "localhost:9102"),
        ("https://mesh.example.org", "mesh.example.org"),
        ("http://LOCALHOST", "localhost:80"),
        ("https://mesh.example.org", "mesh.example.org:443"),
        ("https://chat.example.org", "localhost:9102"),
        ("app://obsidian.md", "localhost:9102"),
    ],
)
def test_pages_that_may_call(origin: str, host: str) -> None:
    """Our own, and those whose origin was named."""
    rules = Rules(cors_origins=("https://chat.example.org", "app://obsidian.md"))
    assert rules.trusts_origin(origin.encode(), host.encode())


@pytest.mark.parametrize(
    ("origin", "host"),
    [
        ("http://evil.test", "localhost:9102"),
        ("http://localhost:3000", "localhost:9102"),
        ("http://localhost", "localhost:9102"),
        ("http://localhost:9102", "localhost"),
        ("null", "localhost:9102"),
        ("null", "null"),
        ("", "localhost:9102"),
        ("localhost:9102", "localhost:9102"),
        ("file://", ""),
        ("http://", ""),
        ("https://chat.example.org.evil.test", "localhost"),
        ("app://localhost", "localhost"),
    ],
)
def test_pages_that_may_not_call(origin: str, host: str) -> None:
    """Another port is another origin, and no origin at all is none of ours."""
    rules = Rules(cors_origins=("https://chat.example.org",))
    assert not rules.trusts_origin(origin.encode(), host.encode())


def test_all_pages_may_call_where_the_user_says_so() -> None:
    """`*`, also a sandboxed frame."""
    assert Rules(cors_origins=("*",)).trusts_origin(b"null", b"localhost")


@pytest.mark.parametrize(
    ("addresses", "auth", "requires_keys"),
    [
        (["127.0.0.1"], "auto", False),
        (["127.0.0.1", "127.8.8.8"], "auto", False),
        (["::1"], "auto", False),
        (["127.0.0.1"], "keys", True),
        (["0.0.0.0"], "auto", True),
        (["::"], "auto", True),
        (["127.0.0.1", "192.168.1.5"], "auto", True),
        (["192.168.1.5"], "keys", True),
        (["fe80::1%eth0"], "auto", True),
        (["/run/mesh.sock"], "auto", True),
    ],
)
def test_when_keys_are_required(addresses: list[str], auth: str, requires_keys: bool) -> None:
    """Off on loopback by default, and nowhere else."""
    assert rules_for(Settings(http_auth=auth), addresses).requires_keys == requires_keys


def test_the_settings_are_the_rules() -> None:
    """What the environment says arrives."""
    settings = Settings.from_env(
        {
            "MESH_NODE": "n",
            "MESH_HTTP_HOST": "Mesh.LAN",
            "MESH_HTTP_ALLOWED_HOSTS": "a.test, B.test",
            "MESH_HTTP_CORS_ORIGINS": "https://C.test",
        }
    )
    rules = rules_for(settings, ["127.0.0.1"])
    assert rules.own_host == "mesh.lan"
    assert set(rules.allowed_hosts) == {"a.test", "b.test"}
    assert rules.cors_origins == ("https://c.test",)
    assert rules_for(Settings(), ["127.0.0.1"]) == LOOPBACK_RULES
