"""What the connection test finds: one result for each method and place, and the report of all.

Bodies of `GET /api/agents/connection-test`, and what `mesh check --json` prints. What is tried
stands in `mesh.probes`.
"""

from enum import StrEnum

from pydantic import Field

from schemas.base import Id, WireModel


class Method(StrEnum):
    """A way to reach something in the mesh."""

    INBOX = "inbox"
    """A ping into an agent's mailbox, or into its mailbox on one node, and the reply."""
    ROUTER = "router"
    """`POST /v1/chat/completions` for an agent; `GET /health` for a node."""
    DIRECT = "direct"
    """`POST /api/agent/{agent_id}/chat`."""
    REGISTRY = "registry"
    """The registrar knows an agent or a node, and lists the whole registry."""
    PRESENCE = "presence"
    """The newest heartbeat of the processes of an agent or a node."""
    BROKER = "broker"
    """A message to the broker and back."""
    JETSTREAM = "jetstream"
    """JetStream answers, and holds the mailboxes."""
    MONITORING = "monitoring"
    """The broker's monitoring port over HTTP."""


class ProbeState(StrEnum):
    """What became of one try."""

    OK = "ok"
    BUSY = "busy"
    """It is there, and all its slots are taken: a call would wait."""
    OFFLINE = "offline"
    """Not running, so nothing was sent."""
    TIMEOUT = "timeout"
    """It should answer, and did not within the limit."""
    FAILED = "failed"
    NOT_TRIED = "not_tried"
    """It cannot be tried from here; `detail` says why."""


class Verdict(StrEnum):
    """Several results in one word. What was not tried counts for nothing."""

    OK = "ok"
    DEGRADED = "degraded"
    """Something works, and something does not."""
    FAILED = "failed"
    """Nothing works."""
    OFFLINE = "offline"
    NOT_TRIED = "not_tried"


class Outcome(WireModel):
    """What one try found."""

    state: ProbeState
    latency_ms: float | None = None
    """How long the answer took; null without one."""
    detail: str = ""
    fix: str = ""
    """What to do about it, where something is to be done."""


class ProbeResult(Outcome):
    """An outcome, and where it belongs. Without agent and node it is about the whole mesh."""

    method: Method
    agent_id: Id | None = None
    node: Id | None = None


class PlaceReport(WireModel):
    """An agent's mailbox on one node."""

    node: Id
    methods: dict[Method, Outcome] = Field(default_factory=dict)


class NodeReport(PlaceReport):
    """A node, by every method."""

    state: Verdict


class AgentReport(WireModel):
    """An agent, by every method; `nodes` are those where it runs, or last ran."""

    agent_id: Id
    state: Verdict
    methods: dict[Method, Outcome] = Field(default_factory=dict)
    nodes: tuple[PlaceReport, ...] = ()


class ProbeSummary(WireModel):
    """How many results there are of each state, and what they come to."""

    state: Verdict
    ok: int = 0
    busy: int = 0
    offline: int = 0
    timeout: int = 0
    failed: int = 0
    not_tried: int = 0


class ProbePlan(WireModel):
    """The first event of a streamed connection test."""

    started_at: str
    planned: int
    """How many results follow."""


class ProbeEnd(WireModel):
    """The last event of a streamed connection test."""

    started_at: str
    took_ms: float
    summary: ProbeSummary


class ConnectionReport(ProbeEnd):
    """The whole connection test."""

    broker: tuple[ProbeResult, ...] = ()
    """What is tried once for the whole mesh."""
    nodes: tuple[NodeReport, ...] = ()
    agents: tuple[AgentReport, ...] = ()
