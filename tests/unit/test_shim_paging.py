"""Filters and pages of a list, as a query string asks for them."""

from enum import StrEnum

import pytest

from mesh.errors import InvalidInputError
from mesh.shim.paging import Page, Query


class Colour(StrEnum):
    """Something to choose from."""

    RED = "red"
    BLUE = "blue"


def read(text: str) -> Query:
    scope = {"query_string": text.encode()}
    return Query.read(scope, ("node", "colour", "q"))


def test_filters_are_read() -> None:
    """Each as what it is; an empty one counts as missing."""
    query = read("node=node1&colour=blue&q=%D0%A1%D0%9E%D0%9D%D0%A6%D0%95+&limit=")
    assert query.id("node") == "node1"
    assert query.choice("colour", Colour) is Colour.BLUE
    assert query.text("q") == "сонце"
    assert Page.read(query).limit == 100
    empty = read("node=&colour=&q=")
    assert (empty.id("node"), empty.choice("colour", Colour), empty.text("q")) == (None, None, "")


@pytest.mark.parametrize(
    ("text", "field"),
    [
        ("node=a.b", "node"),
        ("node=%00", "node"),
        ("colour=green", "colour"),
        ("colour=RED", "colour"),
        ("q=" + "x" * 201, "q"),
        ("limit=0", "limit"),
        ("limit=1001", "limit"),
        ("limit=-1", "limit"),
        ("limit=ten", "limit"),
        ("limit=%D9%A3", "limit"),
        ("limit=" + "9" * 5000, "limit"),
        ("offset=-1", "offset"),
        ("offset=1e3", "offset"),
        ("offset=9999999999", "offset"),
        ("node=a&node=b", "node"),
        ("nodes=node1", "nodes"),
        ("=x", ""),
        ("%ff=x", "\ufffd"),
    ],
)
def test_what_cannot_be_is_blamed(text: str, field: str) -> None:
    """The parameter is named."""

    def read_all() -> None:
        query = read(text)
        query.id("node")
        query.choice("colour", Colour)
        query.text("q")
        Page.read(query)

    with pytest.raises(InvalidInputError) as caught:
        read_all()
    assert caught.value.field == field


def test_a_misspelt_filter_is_told_the_nearest() -> None:
    """Ignoring it would show everything."""
    with pytest.raises(InvalidInputError, match="did you mean colour"):
        read("color=red")


def test_pages_follow_each_other_to_the_end() -> None:
    """With the filters, and the address at which the list was asked for."""
    everything = list(range(5))
    page = Page.read(read("limit=2&colour=red&q=a%26b"))
    assert page.of(everything) == [0, 1]
    facts = page.facts(5, "http://h:1/list")
    assert facts["next"] == "http://h:1/list?limit=2&colour=red&q=a%26b&offset=2"
    page = Page.read(read(facts["next"].partition("?")[2]))
    assert (page.offset, page.of(everything)) == (2, [2, 3])
    last = Page.read(read("limit=2&offset=4"))
    assert last.of(everything) == [4]
    assert last.facts(5, "x") == {"total": 5, "limit": 2, "offset": 4, "next": None}
    assert Page.read(read("offset=4&limit=1")).facts(5, "x")["next"] is None
    assert Page.read(read("offset=50")).of(everything) == []
