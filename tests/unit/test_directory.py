"""What the registry's records say together, and for how long it may be remembered."""

from collections.abc import Callable

import pytest

from mesh import codec
from mesh.directory import COMPARED, Directory
from mesh.errors import AgentNotFoundError, NodeNotFoundError
from mesh.registry import Entry
from mesh.standing import Condition
from schemas.base import WireModel
from schemas.card import AgentCard
from schemas.registry import AgentRecord, Instance, NodeRecord, Placement, Reign, Role, State

NOON_NS = 1_795_608_000_000_000_000
REGISTERED = "2026-11-25T11:00:00+00:00"


def at(seconds: int) -> str:
    """The time of day so many seconds after noon."""
    return f"2026-11-25T12:{seconds // 60:02d}:{seconds % 60:02d}+00:00"


class Bucket:
    """Writes entries to a directory as the broker would tell them."""

    def __init__(self) -> None:
        self.directory = Directory()
        self.entries: dict[str, Entry] = {}
        self._revision = 0

    def put(self, key: str, value: WireModel | None, *, seconds: int = 0) -> None:
        self._revision += 1
        body = codec.encode(value) if value else None
        stored_ns = NOON_NS + seconds * 1_000_000_000
        self.entries[key] = Entry(key, body, self._revision, stored_ns)
        self.directory.apply(self.entries[key])

    def beat(self, instance: str = "i1", *, seconds: int = 0) -> None:
        host = Instance(instance=instance, node="node1", role=Role.HOST, agents=("solarius",))
        self.put(f"instance.{instance}", host, seconds=seconds)

    def expire(self, instance: str = "i1", *, seconds: int = 0) -> None:
        self.put(f"instance.{instance}", None, seconds=seconds)

    def registrar(self, *, seconds: int = 0) -> None:
        one = Instance(instance="r1", node="node0", role=Role.REGISTRAR)
        self.put("instance.r1", one, seconds=seconds)

    def place(self, instance: str = "i1") -> None:
        placed = Placement(agent="solarius", node="node1", instance=instance)
        self.put(f"placement.solarius.{instance}", placed)

    def record(self, *, last_seen: str = "", description: str = "") -> None:
        record = AgentRecord(
            card=AgentCard(id="solarius", description=description),
            nodes=("node1",),
            registered_at=REGISTERED,
            last_seen=last_seen,
        )
        self.put("agent.solarius", record)

    def node(self, *, last_seen: str = "") -> None:
        record = NodeRecord(node="node1", registered_at=REGISTERED, last_seen=last_seen)
        self.put("node.node1", record)

    def watched(self, *, seconds: int) -> None:
        self.put("reign.node0", Reign(node="node0", instance="r1"), seconds=seconds)

    @property
    def last_seen(self) -> tuple[str, str]:
        """Of the agent and of the node."""
        directory = self.directory
        return (
            directory.last_seen(directory.standing("solarius")),
            directory.last_seen(directory.node_standing("node1")),
        )


@pytest.fixture
def bucket() -> Bucket:
    """One agent, which runs in one process on one node, and a registrar."""
    made = Bucket()
    made.registrar()
    made.beat()
    made.node()
    made.place()
    made.record()
    return made


def test_a_heartbeat_changes_no_standing(bucket: Bucket) -> None:
    """What was worked out is used again as long as it is true."""
    version, standings = bucket.directory.version, bucket.directory.standings()
    assert [(one.id, one.state, one.nodes) for one in standings] == [
        ("solarius", State.ONLINE, ("node1",))
    ]
    bucket.beat(seconds=5)
    bucket.registrar(seconds=5)
    bucket.watched(seconds=5)
    assert bucket.directory.version == version
    assert bucket.directory.standings() is standings


CHANGES: dict[str, Callable[[Bucket], None]] = {
    "another card": lambda bucket: bucket.record(description="new"),
    "no card": lambda bucket: bucket.put("agent.solarius", None),
    "another placement": lambda bucket: bucket.place("i2"),
    "no placement": lambda bucket: bucket.put("placement.solarius.i1", None),
    "another process": lambda bucket: bucket.beat("i2"),
    "no process": lambda bucket: bucket.expire(),
    "another node": lambda bucket: bucket.put("node.node2", NodeRecord(node="node2")),
    "no node": lambda bucket: bucket.put("node.node1", None),
    "no registrar": lambda bucket: bucket.put("instance.r1", None),
    "a full reading": lambda bucket: bucket.directory.replace(bucket.entries.values()),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_change_makes_new_standings(bucket: Bucket, change: Callable[[Bucket], None]) -> None:
    """Nothing that was remembered outlives what it was made of."""
    version, standings = bucket.directory.version, bucket.directory.standings()
    change(bucket)
    assert bucket.directory.version > version
    assert bucket.directory.standings() is not standings
    # What is remembered is what a reader that has just come would work out.
    fresh = Directory()
    fresh.replace(bucket.entries.values())
    assert bucket.directory.standings() == fresh.standings()
    assert bucket.directory.node_standings() == fresh.node_standings()


def test_a_record_that_breaks_is_gone(bucket: Bucket) -> None:
    """And what was remembered of it with it."""
    assert bucket.directory.standings()
    bucket.directory.apply(Entry("agent.solarius", b"{", 99))
    assert bucket.directory.standings() == ()


def test_the_end_of_the_last_registrar_is_seen_at_once(bucket: Bucket) -> None:
    """From then on silence means unknown; and offline again when there is one."""

    def state() -> State:
        [one] = bucket.directory.standings()
        return one.state

    bucket.expire()
    assert (state(), bucket.directory.is_authoritative) == (State.OFFLINE, True)
    bucket.put("instance.r1", None)
    assert (state(), bucket.directory.is_authoritative) == (State.UNKNOWN, False)
    bucket.registrar()
    assert state() is State.OFFLINE
    bucket.directory.replace(())
    assert not bucket.directory.is_authoritative


@pytest.mark.parametrize(
    ("busy", "draining", "condition"),
    [
        ("", "", Condition.ONLINE),
        ("i1", "", Condition.ONLINE),
        ("i1 i2", "", Condition.BUSY),
        ("", "i1", Condition.ONLINE),
        ("i2", "i1", Condition.BUSY),
        ("i1", "i1", Condition.ONLINE),
        ("i1 i2", "i1 i2", Condition.DRAINING),
    ],
)
def test_what_two_processes_make_of_an_agent(
    bucket: Bucket, busy: str, draining: str, condition: Condition
) -> None:
    """Busy when nobody has a slot for a new call, draining when nobody will have one."""
    for name in ("i1", "i2"):
        host = Instance(
            instance=name,
            node="node1",
            role=Role.HOST,
            agents=("solarius",),
            busy=("solarius",) if name in busy.split() else (),
            draining=name in draining.split(),
        )
        bucket.put(f"instance.{name}", host)
        bucket.place(name)
    [one] = bucket.directory.standings()
    assert one.condition() is condition


def test_a_condition_says_no_more_than_the_state(bucket: Bucket) -> None:
    """Nobody who is gone is busy; whoever sees its calls knows better than a heartbeat."""
    [one] = bucket.directory.standings()
    assert one.condition(is_busy=True) is Condition.BUSY
    bucket.expire()
    [one] = bucket.directory.standings()
    assert one.condition(is_busy=True) is Condition.OFFLINE
    bucket.put("instance.r1", None)
    [one] = bucket.directory.standings()
    assert one.condition(is_busy=True) is Condition.UNKNOWN


def test_an_older_entry_changes_nothing(bucket: Bucket) -> None:
    """Events may come behind the reading that they are in already."""
    version = bucket.directory.version
    older = bucket.entries["agent.solarius"]
    bucket.directory.apply(Entry("agent.solarius", None, older.revision - 1))
    assert bucket.directory.version == version
    assert bucket.directory.standing("solarius").state is State.ONLINE


def test_agents_are_counted(bucket: Bucket) -> None:
    """Those who run, of those who are known."""
    bucket.put("agent.away", AgentRecord(card=AgentCard(id="away")))
    assert (bucket.directory.online_count(), len(bucket.directory.standings())) == (1, 2)
    bucket.expire()
    assert bucket.directory.online_count() == 0


def test_who_is_alive_was_seen_at_its_newest_heartbeat(bucket: Bucket) -> None:
    """Of any of its processes, by the broker's clock, whatever its record says."""
    bucket.beat("i2", seconds=3)
    bucket.place("i2")
    bucket.beat("i1", seconds=65)
    assert bucket.last_seen == (at(65), at(65))
    bucket.record(last_seen=at(1))
    bucket.node(last_seen=at(1))
    assert bucket.last_seen == (at(65), at(65))


def test_a_write_without_a_time_keeps_the_known_one(bucket: Bucket) -> None:
    """The registrar knows of its own writes before the broker tells when they were stored."""
    bucket.beat(seconds=5)
    entry = bucket.entries["instance.i1"]
    bucket.directory.apply(Entry(entry.key, entry.value, entry.revision + 1))
    assert bucket.last_seen == (at(5), at(5))


def test_who_has_ended_was_seen_at_its_last_heartbeat(bucket: Bucket) -> None:
    """Not when it expired, nor when the registry was last watched."""
    bucket.beat(seconds=5)
    bucket.watched(seconds=15)
    bucket.expire(seconds=20)
    assert bucket.last_seen == (at(5), at(5))


def test_who_was_withdrawn_was_seen_then(bucket: Bucket) -> None:
    """Also when its process goes on without it."""
    bucket.beat(seconds=5)
    bucket.put("placement.solarius.i1", None, seconds=6)
    bucket.beat(seconds=10)
    assert bucket.last_seen == (at(5), at(10))


def test_what_is_on_record_is_believed(bucket: Bucket) -> None:
    """The registrar may have known better than a reader that came later."""
    bucket.watched(seconds=600)
    bucket.expire()
    bucket.record(last_seen=at(300))
    bucket.node(last_seen=at(301))
    assert bucket.last_seen == (at(300), at(301))


def test_what_died_with_everybody_was_seen_when_the_registry_was_watched(bucket: Bucket) -> None:
    """Of two registrars the later look counts; and nobody was seen before he registered."""
    bucket.put("reign.node5", Reign(node="node5", instance="r5"), seconds=40)
    bucket.watched(seconds=30)
    del bucket.entries["instance.i1"]
    bucket.directory.replace(bucket.entries.values())
    assert bucket.last_seen == (at(40), at(40))
    del bucket.entries["reign.node0"], bucket.entries["reign.node5"]
    bucket.directory.replace(bucket.entries.values())
    assert bucket.last_seen == (REGISTERED, REGISTERED)


def test_endings_are_what_is_to_be_written_down(bucket: Bucket) -> None:
    """Once, with the revision that was looked at, and not of those who live."""
    assert bucket.directory.endings() == []
    bucket.expire()
    found = {one.key: one for one in bucket.directory.endings()}
    assert found.keys() == {"agent.solarius", "node.node1"}
    for key, ending in found.items():
        assert ending.record.last_seen == at(0)
        assert ending.revision == bucket.entries[key].revision
        bucket.put(key, ending.record)
    assert bucket.directory.endings() == []
    assert bucket.last_seen == (at(0), at(0))


def test_what_was_never_seen_has_no_ending(bucket: Bucket) -> None:
    """A time that nobody knows is not made up."""
    bucket.put("agent.odd", AgentRecord(card=AgentCard(id="odd")))
    assert bucket.directory.last_seen(bucket.directory.standing("odd")) == ""
    assert bucket.directory.endings() == []


def test_silence_is_counted_from_the_newest_that_is_known(bucket: Bucket) -> None:
    """By the broker's clock: the reader's own may be wrong by hours."""
    bucket.registrar(seconds=30)
    bucket.beat(seconds=27)
    assert 3 <= bucket.directory.silence_s("i1") < 4
    assert 0 <= bucket.directory.silence_s("r1") < 1
    assert bucket.directory.silence_s("nobody") == 0


def test_a_process_is_on_record_with_all_it_runs(bucket: Bucket) -> None:
    """If anything of it is missing, or counts as ended, it has to announce itself again."""
    [host] = [one for one in bucket.directory.instances() if one.role is Role.HOST]
    assert bucket.directory.is_on_record(host)
    bucket.record(last_seen=at(1))
    assert not bucket.directory.is_on_record(host)
    bucket.record()
    bucket.node(last_seen=at(1))
    assert not bucket.directory.is_on_record(host)
    bucket.node()
    bucket.put("placement.solarius.i1", None)
    assert not bucket.directory.is_on_record(host)


def test_a_stranger_cannot_fill_the_memory(bucket: Bucket) -> None:
    """Anybody can say that he runs agents; only of known ones the last sign is kept."""
    liar = Instance(instance="i9", node="node1", role=Role.HOST, agents=("ghost", "solarius"))
    bucket.put("instance.i9", liar)
    bucket.put("instance.i9", None)
    bucket.put("agent.ghost", AgentRecord(card=AgentCard(id="ghost")))
    assert bucket.directory.last_seen(bucket.directory.standing("ghost")) == ""


def test_nobody_is_told_with_the_nearest(bucket: Bucket) -> None:
    """Also of nodes those that are known are named."""
    with pytest.raises(AgentNotFoundError, match="did you mean solarius"):
        bucket.directory.standing("solarus")
    with pytest.raises(NodeNotFoundError, match="known nodes: node1"):
        bucket.directory.node_standing("node7")


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("lunarus", "lunarius"),
        ("agent-01234x", "agent-01234"),
        ("agent-1234", "agent-01234"),
        ("gent-01234", "agent-01234"),
        ("agnet-01234", "agent-01234"),
    ],
)
def test_the_nearest_of_very_many(bucket: Bucket, typed: str, meant: str) -> None:
    """Not all are compared: the loop must not stand still for it."""
    for one in (*(f"agent-{number:05}" for number in range(2000)), "lunarius"):
        bucket.put(f"agent.{one}", AgentRecord(card=AgentCard(id=one)))
    assert len(list(bucket.directory._candidates(typed))) <= COMPARED
    with pytest.raises(AgentNotFoundError) as caught:
        bucket.directory.standing(typed)
    assert caught.value.suggestions[0] == meant


@pytest.mark.parametrize(
    "text", ["", "soon", "2026-11-25T12:00:00", "0001-01-01T00:00:00", "9" * 99]
)
def test_a_time_stamp_that_is_none_is_no_error(text: str) -> None:
    """Anybody can publish on the subject of an event in open mode."""
    entry = Entry.read("agent.x", {"Nats-Time-Stamp": text}, b"", 1)
    assert isinstance(entry.stored_ns, int)


def test_a_time_stamp_is_read_to_the_microsecond() -> None:
    """The broker writes nanoseconds, without the zeros at their end."""
    for text, ns in (
        ("12:00:00Z", 0),
        ("12:00:00.5Z", 500_000_000),
        ("12:00:01.000000999Z", 10**9),
    ):
        entry = Entry.read("k", {"Nats-Time-Stamp": f"2026-11-25T{text}"}, b"", 1)
        assert abs(entry.stored_ns - NOON_NS - ns) < 1_000
