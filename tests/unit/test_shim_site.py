"""What pages remember, which is bounded however long they are open."""

from mesh.shim.pages import Pages
from mesh.shim.site.cabinet import ShownCall
from mesh.shim.site.painting import PIECES_KEPT, Painter


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
