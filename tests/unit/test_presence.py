"""How a person is, worked out of what several tabs have said at different times."""

import time
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh import codec, registry
from mesh.clock import BrokerClock
from mesh.presence import AWAY_S, MAX_CLIENTS, SILENT_S, People, user_token
from schemas.presence import PresenceHeartbeat, PresenceState, PresenceStatus

ANN = "@ann:example.org"


@dataclass
class Told:
    """People, told of things that were stored some seconds ago."""

    people: People = field(init=False)
    clock: BrokerClock = field(default_factory=BrokerClock)

    def __post_init__(self) -> None:
        self.clock.observe(time.time_ns())
        self.people = People(self.clock)

    def say(
        self,
        status: PresenceStatus,
        *,
        client: str = "tab",
        age_s: float = 0.0,
        idle_s: float = 0.0,
        message: str = "",
    ) -> None:
        """A client has said something."""
        said = PresenceHeartbeat(
            user=ANN, client=client, status=status, idle_ms=int(idle_s * 1_000), message=message
        )
        stored = time.time_ns() - int(age_s * 1e9)
        key = f"{user_token(ANN)}.{client}"
        self.people.apply(registry.Entry(key, codec.encode(said), 1, stored))

    @property
    def state(self) -> PresenceState:
        """How Ann is."""
        (view,) = self.people.views()
        return view.state


@pytest.mark.parametrize(
    ("status", "age_s", "idle_s", "state"),
    [
        ("online", 0, 0, "online"),
        ("online", SILENT_S - 5, 0, "online"),
        ("online", SILENT_S + 5, 0, "offline"),
        ("online", 0, AWAY_S - 5, "online"),
        ("online", 0, AWAY_S, "away"),
        ("online", 60, AWAY_S - 30, "away"),
        ("unavailable", 0, 0, "away"),
        ("unavailable", SILENT_S + 5, 0, "offline"),
        ("offline", 0, 0, "offline"),
        ("online", 0, 1e12, "away"),
        ("online", -100, 0, "online"),
    ],
)
def test_one_tab(status: str, age_s: float, idle_s: float, state: str) -> None:
    """Online until it is silent for 90 s, away after five minutes without a touch."""
    told = Told()
    told.say(PresenceStatus(status), age_s=age_s, idle_s=idle_s)
    assert told.state.value == state


def test_several_tabs_are_as_present_as_the_most_present() -> None:
    """Whatever order they speak in; and a goodbye is one tab's."""
    told = Told()
    told.say(PresenceStatus.ONLINE, client="a")
    told.say(PresenceStatus.UNAVAILABLE, client="b")
    states = [told.state]
    told.say(PresenceStatus.OFFLINE, client="a")
    states.append(told.state)
    told.say(PresenceStatus.OFFLINE, client="b")
    states.append(told.state)
    assert states == [PresenceState.ONLINE, PresenceState.AWAY, PresenceState.OFFLINE]
    (view,) = told.people.views()
    assert view.last_seen


def test_what_is_told_before_it_is_stored() -> None:
    """A homeserver is told how the person is with what a tab has just said."""
    told = Told()
    told.say(PresenceStatus.ONLINE, client="a")
    leaving = PresenceHeartbeat(user=ANN, client="b", status=PresenceStatus.OFFLINE)
    assert told.people.state_with(leaving) is PresenceState.ONLINE
    last = PresenceHeartbeat(user=ANN, client="a", status=PresenceStatus.OFFLINE)
    assert told.people.state_with(last) is PresenceState.OFFLINE


def test_a_tab_too_many_makes_room() -> None:
    """The one that is silent for the longest goes."""
    told = Told()
    for number in range(MAX_CLIENTS):
        told.say(PresenceStatus.ONLINE, client=f"tab{number}", age_s=MAX_CLIENTS - number)
    assert told.people.oldest_client(ANN) == "tab0"
    told.people.apply(registry.Entry(f"{user_token(ANN)}.tab0", None, 2))
    assert told.people.oldest_client(ANN) is None


def test_a_deletion_of_the_last_tab_forgets_somebody() -> None:
    """Nobody is left where nothing is kept; nor by a bad record."""
    told = Told()
    told.say(PresenceStatus.ONLINE)
    told.people.apply(registry.Entry(f"{user_token(ANN)}.tab", None, 2))
    told.people.apply(registry.Entry(f"{user_token(ANN)}.x", b"not json", 3))
    assert told.people.views() == []


TOLD = st.tuples(
    st.sampled_from(PresenceStatus),
    st.sampled_from(["a", "b", "c"]),
    st.floats(0, 600),
    st.floats(0, 600),
)


@given(st.lists(TOLD, min_size=1, max_size=8))
def test_a_person_is_what_the_best_tab_is(
    history: list[tuple[PresenceStatus, str, float, float]],
) -> None:
    """Whatever was said: never more than a tab on its own would be."""
    told, alone = Told(), {}
    for status, client, age_s, idle_s in history:
        told.say(status, client=client, age_s=age_s, idle_s=idle_s)
        one = Told()
        one.say(status, client=client, age_s=age_s, idle_s=idle_s)
        alone[client] = one.state
    rank = [PresenceState.OFFLINE, PresenceState.AWAY, PresenceState.ONLINE]
    assert told.state is max(alone.values(), key=rank.index)


@pytest.mark.parametrize(
    "user", ["ann", "@ann", "@ann:", "@a b:c", "@:x", "@ann:\u202e", "@" + "a" * 300 + ":b"]
)
def test_what_is_no_user(user: str) -> None:
    """It is refused before it becomes a key."""
    with pytest.raises(ValueError, match="user"):
        PresenceHeartbeat(user=user, status=PresenceStatus.ONLINE)


def test_a_user_is_one_token() -> None:
    """Dots, stars and blanks of a user id separate nothing."""
    token = user_token("@a.*.>:example.org:8448")
    assert token.replace("-", "").replace("_", "").isalnum()
