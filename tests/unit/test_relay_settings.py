"""What the relay agent is told by its environment."""

import pytest

from handlers.relay import from_env
from mesh.errors import SettingsError

GOOD = {
    "RELAY_AGENT_ID": "llama",
    "RELAY_BASE_URL": "http://127.0.0.1:11434/v1",
    "RELAY_MODEL": "llama3.2",
}


def test_the_environment_describes_a_relay() -> None:
    """Three variables make an agent, and its card names the model."""
    card = from_env(GOOD).card
    assert (card.id, card.model, card.streams) == ("llama", "llama3.2", True)


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("RELAY_AGENT_ID", ""),
        ("RELAY_BASE_URL", ""),
        ("RELAY_MODEL", ""),
        ("RELAY_BASE_URL", "127.0.0.1:11434/v1"),
        ("RELAY_BASE_URL", "ftp://127.0.0.1/v1"),
        ("RELAY_BASE_URL", "http://ann:secret@127.0.0.1/v1"),
        ("RELAY_BASE_URL", "http://127.0.0.1/v1?key=secret"),
        ("RELAY_BASE_URL", "http:///v1"),
        ("RELAY_BASE_URL", "http://[::1"),
        ("RELAY_API_KEY", "sk-sec\nret"),
        ("RELAY_API_KEY", "sk-sécret"),
    ],
)
def test_a_bad_setting_is_named(variable: str, value: str) -> None:
    """A setting that cannot be used is an error when the agent is made, and shows no secret."""
    with pytest.raises(SettingsError, match=variable) as caught:
        from_env({**GOOD, variable: value})
    assert caught.value.variable == variable
    assert "sec" not in caught.value.message
