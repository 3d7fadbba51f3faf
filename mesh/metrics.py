"""What this process counts: plain numbers, which cost a call less than a microsecond each.

Told to Prometheus by `mesh.exposition`, at a door or on `MESH_METRICS_PORT`. Labels are bounded:
an agent beyond the first `MAX_AGENTS` of a process is `other`, whatever ids are made up.
"""

from bisect import bisect_left
from collections.abc import Callable
from typing import Final

MAX_AGENTS = 200
OTHER: Final = "other"
SECONDS: Final = (
    *(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5),
    *(1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0),
)
"""Upper limits of the buckets of a histogram."""

Labels = tuple[str, ...]


class Metric:
    """Something that is counted, for each value of its labels."""

    def __init__(self, name: str, about: str, labels: Labels = ()) -> None:
        self.name = name
        self.about = about
        self.labels = labels
        ALL.append(self)


ALL: Final[list[Metric]] = []
"""Every metric of the process."""


class Counter(Metric):
    """Only ever grows."""

    def __init__(self, name: str, about: str, labels: Labels = ()) -> None:
        super().__init__(name, about, labels)
        self.values: dict[Labels, int] = {}

    def inc(self, *labels: str, by: int = 1) -> None:
        """Count."""
        self.values[labels] = self.values.get(labels, 0) + by


class Gauge(Metric):
    """A number that is so, now."""

    def __init__(self, name: str, about: str, labels: Labels = ()) -> None:
        super().__init__(name, about, labels)
        self.values: dict[Labels, float | Callable[[], float]] = {}

    def set(self, value: float | Callable[[], float], *labels: str) -> None:
        """Set it, or what tells it when it is asked for, in whatever thread that is."""
        self.values[labels] = value

    def remove(self, *labels: str) -> None:
        """Tell it no longer."""
        self.values.pop(labels, None)


class Histogram(Metric):
    """Seconds that something took."""

    def __init__(self, name: str, about: str, labels: Labels = ()) -> None:
        super().__init__(name, about, labels)
        self.values: dict[Labels, Times] = {}

    def times(self, *labels: str) -> "Times":
        """Return where to add to."""
        found = self.values.get(labels)
        if found is None:
            found = self.values[labels] = Times()
        return found


class Times:
    """How often something took how long."""

    __slots__ = ("buckets", "sum_s")

    def __init__(self) -> None:
        self.buckets = [0] * (len(SECONDS) + 1)
        """By upper limit, the last one without."""
        self.sum_s = 0.0

    def add(self, took_s: float) -> None:
        """Count one."""
        self.buckets[bisect_left(SECONDS, took_s)] += 1
        self.sum_s += took_s


CALLS: Final = Counter(
    "mesh_calls",
    "Calls that this process has made and waited for, by how they ended.",
    ("agent", "outcome"),
)
CALL_S: Final = Histogram(
    "mesh_call_duration_seconds",
    "From the sending of a call to its end, as its caller sees it.",
    ("agent",),
)
IN_FLIGHT: Final = Gauge("mesh_calls_in_flight", "Calls that this process waits for.")
HANDLED: Final = Counter(
    "mesh_handled",
    "Requests that agents of this process have answered, by how.",
    ("agent", "outcome"),
)
HANDLED_S: Final = Histogram(
    "mesh_handling_duration_seconds",
    "From the moment at which an agent took a request to its answer being stored.",
    ("agent",),
)
WAITED_S: Final = Histogram(
    "mesh_mailbox_wait_seconds",
    "From the storing of a request to the moment at which an agent took it.",
    ("agent",),
)
RUNNING: Final = Gauge("mesh_running", "Requests that agents of this process work on.", ("agent",))
SLOTS: Final = Gauge(
    "mesh_slots", "Requests that agents of this process work on at most.", ("agent",)
)
REDELIVERIES: Final = Counter(
    "mesh_redeliveries",
    "Requests that came to an agent of this process again: an attempt before had not ended.",
    ("agent",),
)
DEAD_LETTERS: Final = Counter(
    "mesh_dead_letters", "Requests that this process gave up.", ("reason",)
)
RECONNECTS: Final = Counter("mesh_reconnects", "Times that a connection to the broker came back.")
CONNECTED: Final = Gauge("mesh_connected", "Connections of this process to a broker that are up.")
SPANS_DROPPED: Final = Counter("mesh_spans_dropped", "Spans that no collector has taken.")
LOOP_LAG_S: Final = Gauge(
    "mesh_loop_lag_seconds",
    "How late the event loop of this process was at most, in the last 15 s.",
)
HTTP_REQUESTS: Final = Counter(
    "mesh_http_requests", "Requests to this door, by status.", ("status",)
)
MAILBOX_DEPTH: Final = Gauge(
    "mesh_mailbox_depth",
    "Requests in a mailbox, worked on or not; told by the control plane.",
    ("agent",),
)
MAILBOX_OLDEST_S: Final = Gauge(
    "mesh_mailbox_oldest_seconds",
    "Age of the oldest request in a mailbox; told by the control plane.",
    ("agent",),
)
AGENTS: Final = Gauge("mesh_agents", "Agents by state; told by the control plane.", ("state",))
NODES: Final = Gauge("mesh_nodes", "Nodes by state; told by the control plane.", ("state",))

_agents: set[str] = set()


def agent_label(agent: str) -> str:
    """Return what an agent is called in a label."""
    if agent in _agents:
        return agent
    if len(_agents) >= MAX_AGENTS:
        return OTHER
    _agents.add(agent)
    return agent


class InFlight:
    """Counts the calls that this process waits for."""

    def __init__(self) -> None:
        self._count = 0
        IN_FLIGHT.set(lambda: self._count)

    def begin(self) -> None:
        """One more."""
        self._count += 1

    def end(self) -> None:
        """One less."""
        self._count -= 1


CALLS_IN_FLIGHT: Final = InFlight()


def called(agent: str, outcome: str, took_s: float) -> None:
    """Count a call that was waited for."""
    label = agent_label(agent)
    CALLS.inc(label, outcome)
    CALL_S.times(label).add(took_s)


def handled(agent: str, outcome: str, took_s: float) -> None:
    """Count a request that was worked on."""
    label = agent_label(agent)
    HANDLED.inc(label, outcome)
    HANDLED_S.times(label).add(took_s)


def arrived(agent: str, attempt: int, waited_s: float) -> None:
    """Count a request that an agent has taken."""
    label = agent_label(agent)
    if attempt == 1:
        WAITED_S.times(label).add(waited_s)
    else:
        REDELIVERIES.inc(label)
