"""The traffic as a flowchart in Mermaid's language, for documents that are not this page.

Names are ids, which mean nothing to Mermaid between quotation marks: the log keeps no others.
"""

from collections.abc import Iterable, Sequence

from mesh.shim.site.drawings import NOBODY, NOWHERE, Window
from mesh.traffic_log import Edge


def flowchart(edges: Sequence[Edge], now: float, window: Window) -> str:
    """Return who has asked whom: a box for each node, an arrow for each caller and agent."""
    names: dict[tuple[str, str], str] = {}
    for edge in edges:
        for place in _ends(edge):
            names.setdefault(place, f"n{len(names) + 1}")
    lines = ["flowchart LR"]
    for number, node in enumerate(dict.fromkeys(node for node, _ in names), 1):
        lines.append(f'  subgraph s{number}["{node}"]')
        lines += [f'    {name}["{who}"]' for (at, who), name in names.items() if at == node]
        lines.append("  end")
    for edge in edges:
        caller, agent = (names[place] for place in _ends(edge))
        lines.append(f'  {caller} -->|"{"; ".join(_counts(edge, now, window))}"| {agent}')
    return "\n".join(lines)


def _ends(edge: Edge) -> tuple[tuple[str, str], tuple[str, str]]:
    asked_on = edge.source_node or NOWHERE
    return (asked_on, edge.caller or NOBODY), (edge.node or NOWHERE, edge.agent)


def _counts(edge: Edge, now: float, window: Window) -> Iterable[str]:
    calls, errors = edge.calls(now, window.seconds), edge.errors(now, window.seconds)
    yield f"{calls} call" if calls == 1 else f"{calls} calls"
    if errors:
        yield f"{errors} failed"
