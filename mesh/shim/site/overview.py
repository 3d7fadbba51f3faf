"""`/`: the nodes and agents of the mesh, and who of the people is there."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from starlette.types import Scope

from mesh.presence import user_token
from mesh.shim.site.page import Page, page_operation
from mesh.shim.site.painting import ROWS_SHOWN, PageView, Parts, Reader, View
from mesh.shim.site.rows import AgentRow
from schemas.presence import PersonView, PresenceState


class OverviewPage(Page):
    """`GET /`: what is in the mesh."""

    operations = page_operation("getOverview", "/", "See the mesh")

    def _view(self, scope: Scope, reader: Reader) -> View:
        return Overview(*self._shown(scope, reader))


class Overview(PageView):
    """`/`: nodes and agents."""

    template = "overview.html"
    title = "Overview"

    def context(self) -> Mapping[str, Any]:
        """See `View`."""
        return {"address": self._reader.address}

    def parts(self) -> Parts:
        """See `View`."""
        rows = self._rows()
        nodes = self._nodes(rows)
        people = [_shown_person(one) for one in self._sources.people()]
        return {
            "strip": self._numbers(rows, nodes),
            "nodes": self._paint.many("node_card", "node", nodes),
            "agents": self._paint.many("agent_line", "agent", _first(rows)),
            "more": self._paint.one("more", "more", max(0, len(rows) - ROWS_SHOWN)),
            "people": self._paint.many("person", "person", people),
            "empty": self._paint.one("empty", "empty", not rows),
        }


def _first(rows: Sequence[AgentRow]) -> Sequence[AgentRow]:
    """Return as many as there is room for, those first that can be reached."""
    return sorted(rows, key=lambda row: not row.is_up)[:ROWS_SHOWN]


@dataclass(frozen=True, slots=True)
class ShownPerson:
    """A person, as the page shows one."""

    id: str
    name: str
    state: str
    message: str
    seen: str
    """When last seen, of who is not there."""


def _shown_person(one: PersonView) -> ShownPerson:
    is_gone = one.state is PresenceState.OFFLINE
    return ShownPerson(
        id=user_token(one.matrix_user_id),
        name=one.matrix_user_id,
        state=one.state.value,
        message=one.status_msg,
        seen=one.last_seen if is_gone else "",
    )
