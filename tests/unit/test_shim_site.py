"""What pages remember, which is bounded however long they are open."""

from mesh.shim.pages import Pages
from mesh.shim.site.cabinet import ShownCall
from mesh.shim.site.drawings import Window
from mesh.shim.site.mermaid import flowchart
from mesh.shim.site.painting import PIECES_KEPT, Painter
from mesh.traffic_log import Edge

NOW = 1_700_000_000.0


def call(number: int) -> ShownCall:
    """A call, as a page shows it."""
    return ShownCall(f"c{number}", "ann", "node1", "node2", "answered", "", 1, 1.7e9, 2.0)


def test_rows_that_are_gone_are_forgotten() -> None:
    """A busy agent's page sees new calls all day."""
    paint = Painter(Pages().macros("parts.html"), "../")
    for number in range(3 * PIECES_KEPT):
        html = paint.many("call_line", "call", [call(number)])
        assert f"c{number}" in html[f"call-c{number}"]
    assert len(paint._made) <= PIECES_KEPT


def test_the_same_row_is_made_once() -> None:
    """Until it changes."""
    paint = Painter(Pages().macros("parts.html"), "../")
    first = paint.one("call_line", "call-x", call(1))
    assert paint.one("call_line", "call-x", call(1)) is first
    assert paint.one("call_line", "call-x", call(2)) is not first


def test_the_traffic_as_mermaid() -> None:
    """A box for each node; an agent that asks another one is one name."""
    asked = Edge("ann", "laptop", "sun", node="hub")
    nested = Edge("sun", "hub", "moon", node="laptop")
    unknown = Edge("", "", "moon")
    for edge, calls, errors in ((asked, 1, 0), (nested, 3, 2), (unknown, 1, 1)):
        for _ in range(calls):
            edge.asked.add(NOW)
        for _ in range(errors):
            edge.failed.add(NOW)
    assert flowchart([asked, nested, unknown], NOW, Window.ONE).splitlines() == [
        "flowchart LR",
        '  subgraph s1["laptop"]',
        '    n1["ann"]',
        '    n3["moon"]',
        "  end",
        '  subgraph s2["hub"]',
        '    n2["sun"]',
        "  end",
        '  subgraph s3["elsewhere"]',
        '    n4["somebody"]',
        '    n5["moon"]',
        "  end",
        '  n1 -->|"1 call"| n2',
        '  n2 -->|"3 calls; 2 failed"| n3',
        '  n4 -->|"1 call; 1 failed"| n5',
    ]
