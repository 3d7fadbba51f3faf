"""Settings come from the environment, once, and say what is wrong with a value."""

from pathlib import Path

import pytest

from mesh.errors import SettingsError
from mesh.settings import Settings, unknown_variables


def test_the_defaults_suit_one_machine() -> None:
    """Without any variable: loopback, the usual ports, an embedded broker."""
    settings = Settings.from_env({"HOME": "/home/x"})
    assert settings.nats_url == "nats://127.0.0.1:4222"
    assert not settings.is_broker_external
    assert (settings.http_host, settings.http_ports) == ("127.0.0.1", (9102, 9205, 8899))
    assert settings.offline_after_s == 15.0


def test_a_named_broker_is_external() -> None:
    """MESH_NATS_URL means that none is started."""
    settings = Settings.from_env({"MESH_NATS_URL": "nats://hub:4222"})
    assert (settings.nats_url, settings.is_broker_external) == ("nats://hub:4222", True)


def test_the_data_folder_is_per_user() -> None:
    """MESH_DATA_DIR, else the state folder of the user."""
    assert Settings.from_env({"MESH_DATA_DIR": "/x"}).data_dir == Path("/x")
    assert Settings.from_env({"XDG_STATE_HOME": "/s"}).data_dir == Path("/s/mesh")


def test_a_host_name_becomes_a_node_id(monkeypatch: pytest.MonkeyPatch) -> None:
    """The default node is the host's name, made into an id."""
    for host, node in (("My.Box.local", "my"), ("Büro PC", "b-ro-pc"), ("___", "node1")):
        monkeypatch.setattr("socket.gethostname", lambda host=host: host)
        assert Settings.from_env({}).node == node


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("MESH_NODE", "No De"),
        ("MESH_NATS_PORT", "70000"),
        ("MESH_NATS_PORT", "four"),
        ("MESH_HTTP_PORTS", "1,,2"),
        ("MESH_HTTP_PORTS", "99999"),
        ("MESH_HTTP_PORTS", "9102,9205,9102"),
        ("MESH_REPLICAS", "0"),
        ("MESH_MAILBOX_MAX", "-1"),
        ("MESH_HEARTBEAT_S", "0"),
        ("MESH_HEARTBEAT_S", "nan"),
        ("MESH_SYNC_INTERVAL", "soon"),
        ("MESH_HTTP_AUTH", "off"),
        ("MESH_HTTP_ALLOWED_HOSTS", "mesh.lan:9102"),
        ("MESH_HTTP_ALLOWED_HOSTS", "mesh.lan,,hub.lan"),
        ("MESH_HTTP_CORS_ORIGINS", "chat.example.org"),
        ("MESH_HTTP_CORS_ORIGINS", "https://chat.example.org/"),
        ("MESH_HTTP_CORS_ORIGINS", "null"),
        ("MESH_NATS_MONITOR_URL", "127.0.0.1:8222"),
        ("MESH_NATS_MONITOR_URL", "http://a b"),
    ],
)
def test_a_bad_value_names_its_variable(name: str, value: str) -> None:
    """The error says which variable, what it holds, and what it takes."""
    with pytest.raises(SettingsError, match=f"{name}={value!r} cannot be used: give ") as refused:
        Settings.from_env({name: value})
    assert refused.value.fields["variable"] == name


@pytest.mark.parametrize(
    ("environ", "url"),
    [
        ({}, "http://127.0.0.1:8222"),
        ({"MESH_NATS_MONITOR_PORT": "8333"}, "http://127.0.0.1:8333"),
        ({"MESH_NATS_MONITOR_PORT": "0"}, ""),
        ({"MESH_NATS_URL": "nats://hub:4222"}, ""),
        ({"MESH_NATS_URL": "nats://hub", "MESH_NATS_MONITOR_URL": "http://hub/"}, "http://hub"),
    ],
)
def test_the_monitoring_of_another_broker_must_be_told(environ: dict[str, str], url: str) -> None:
    """That of the embedded one is known, unless its port is any free one."""
    assert Settings.from_env(environ).nats_monitor_url == url


def test_a_key_is_not_shown() -> None:
    """Settings may be logged."""
    settings = Settings.from_env({"MESH_API_KEY": "sesame"})
    assert (settings.api_key, "sesame" in repr(settings)) == ("sesame", False)


def test_unknown_variables_are_told_with_the_nearest_name() -> None:
    """A misspelt setting is not silently ignored; others' variables are none of our business."""
    assert unknown_variables({"MESH_NOD": "x", "PATH": "", "MESH_NODE": "a"}) == [
        "MESH_NOD is not a setting of the mesh; did you mean MESH_NODE?"
    ]
