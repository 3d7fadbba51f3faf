"""What this process counts, as Prometheus reads it.

Always counted, which takes some microseconds of a call, and told by whoever is asked: a door at
`/metrics`, other processes on `MESH_METRICS_PORT`. Labels are bounded: an agent beyond the first
`MAX_AGENTS` of a process is `other`, whatever ids are made up.
"""

from typing import Final

from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    PlatformCollector,
    ProcessCollector,
    generate_latest,
)

MAX_AGENTS: Final = 200
OTHER: Final = "other"
CONTENT_TYPE: Final = CONTENT_TYPE_LATEST
SECONDS: Final = (
    *(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5),
    *(1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0),
)

REGISTRY: Final = CollectorRegistry()
ProcessCollector(registry=REGISTRY)
PlatformCollector(registry=REGISTRY)

CALLS: Final = Counter(
    "mesh_calls",
    "Calls that this process has made and waited for, by how they ended.",
    ("agent", "outcome"),
    registry=REGISTRY,
)
CALL_S: Final = Histogram(
    "mesh_call_duration_seconds",
    "From the sending of a call to its end, as its caller sees it.",
    ("agent",),
    buckets=SECONDS,
    registry=REGISTRY,
)
CALLS_IN_FLIGHT: Final = Gauge(
    "mesh_calls_in_flight", "Calls that this process waits for.", registry=REGISTRY
)
HANDLED: Final = Counter(
    "mesh_handled",
    "Requests that agents of this process have answered, by how.",
    ("agent", "outcome"),
    registry=REGISTRY,
)
HANDLED_S: Final = Histogram(
    "mesh_handling_duration_seconds",
    "From the moment at which an agent took a request to its answer being stored.",
    ("agent",),
    buckets=SECONDS,
    registry=REGISTRY,
)
WAITED_S: Final = Histogram(
    "mesh_mailbox_wait_seconds",
    "From the storing of a request to the moment at which an agent took it.",
    ("agent",),
    buckets=SECONDS,
    registry=REGISTRY,
)
RUNNING: Final = Gauge(
    "mesh_running", "Requests that agents of this process work on.", ("agent",), registry=REGISTRY
)
SLOTS: Final = Gauge(
    "mesh_slots",
    "Requests that agents of this process work on at most.",
    ("agent",),
    registry=REGISTRY,
)
REDELIVERIES: Final = Counter(
    "mesh_redeliveries",
    "Requests that came to an agent of this process again: an attempt before had not ended.",
    ("agent",),
    registry=REGISTRY,
)
DEAD_LETTERS: Final = Counter(
    "mesh_dead_letters", "Requests that this process gave up.", ("reason",), registry=REGISTRY
)
RECONNECTS: Final = Counter(
    "mesh_reconnects", "Times that a connection to the broker came back.", registry=REGISTRY
)
CONNECTED: Final = Gauge(
    "mesh_connected", "Connections of this process to a broker that are up.", registry=REGISTRY
)
LOOP_LAG_S: Final = Gauge(
    "mesh_loop_lag_seconds",
    "How late the event loop of this process was at most, in the last 15 s.",
    registry=REGISTRY,
)
HTTP_REQUESTS: Final = Counter(
    "mesh_http_requests", "Requests to this door, by status.", ("status",), registry=REGISTRY
)
MAILBOX_DEPTH: Final = Gauge(
    "mesh_mailbox_depth",
    "Requests in a mailbox, worked on or not; told by the control plane.",
    ("agent",),
    registry=REGISTRY,
)
MAILBOX_OLDEST_S: Final = Gauge(
    "mesh_mailbox_oldest_seconds",
    "Age of the oldest request in a mailbox; told by the control plane.",
    ("agent",),
    registry=REGISTRY,
)
AGENTS: Final = Gauge(
    "mesh_agents", "Agents by state; told by the control plane.", ("state",), registry=REGISTRY
)
NODES: Final = Gauge(
    "mesh_nodes", "Nodes by state; told by the control plane.", ("state",), registry=REGISTRY
)

_agents: set[str] = set()


def agent_label(agent: str) -> str:
    """Return what an agent is called in a label."""
    if agent in _agents:
        return agent
    if len(_agents) >= MAX_AGENTS:
        return OTHER
    _agents.add(agent)
    return agent


class AgentMeter:
    """What is counted of the requests to one agent, on both sides. Made once for each."""

    __slots__ = ("_called", "_handled", "_label", "call_s", "handled_s", "redelivered", "waited_s")

    def __init__(self, label: str) -> None:
        self._label = label
        self._called: dict[str, Counter] = {}
        self._handled: dict[str, Counter] = {}
        self.call_s = CALL_S.labels(label)
        self.handled_s = HANDLED_S.labels(label)
        self.waited_s = WAITED_S.labels(label)
        self.redelivered = REDELIVERIES.labels(label)

    def called(self, outcome: str, took_s: float) -> None:
        """Count a call that was waited for."""
        counter = self._called.get(outcome)
        if counter is None:
            counter = self._called[outcome] = CALLS.labels(self._label, outcome)
        counter.inc()
        self.call_s.observe(took_s)

    def handled(self, outcome: str, took_s: float) -> None:
        """Count a request that was worked on."""
        counter = self._handled.get(outcome)
        if counter is None:
            counter = self._handled[outcome] = HANDLED.labels(self._label, outcome)
        counter.inc()
        self.handled_s.observe(took_s)


_meters: dict[str, AgentMeter] = {}


def meter(agent: str) -> AgentMeter:
    """Return the meter of an agent."""
    found = _meters.get(agent)
    if found is None:
        label = agent_label(agent)
        found = _meters.get(label) or AgentMeter(label)
        _meters[label] = found
    return found


def told() -> bytes:
    """Return all that was counted, as Prometheus's text format."""
    return generate_latest(REGISTRY)
