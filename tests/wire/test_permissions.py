"""The table of permissions in `schemas/README.md` is what the accounts are written from."""

import re
from collections.abc import Iterator

import pytest

from mesh.trust.grants import (
    EXPORTS,
    JOINER_PUBLISH,
    JOINER_SUBSCRIBE,
    MEMBER_PUBLISH,
    MEMBER_SUBSCRIBE,
)
from mesh.trust.jwts import Border, Crossing
from tests.wire.test_specification import README

NAMES = {
    "{{tag(agent)}}": "<me>",
    "{{tag(caller)}}": "<me>",
    "{{tag(node)}}": "<node>",
    "{{tag(on)}}": "<durable>",
    "{{name()}}": "<user>",
}
NOBODY = ("nobody", "nobody°")


def rows() -> Iterator[tuple[list[str], str, str, str]]:
    """Yield subjects, who may publish, who may subscribe, and how they cross."""
    table = README.read_text().partition("| Subject | AGENTS: may publish")[2]
    for line in re.findall(r"^\| `.*\|$", table, re.MULTILINE):
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        subjects = re.findall(r"`([^`]+)`", cells[0])
        # "`$JS.API….INBOX.<me>`, `….INBOX.<me>@<node>`": the rest is as before.
        whole = [subjects[0]]
        for one in subjects[1:]:
            before = whole[-1].partition(".INBOX.")[0]
            whole.append(one.replace("…", before.rstrip("."), 1))
        yield whole, cells[1], cells[2], cells[3]


def named(template: str) -> str:
    """Return a permission as the table writes it."""
    for name, shown in NAMES.items():
        template = template.replace(name, shown)
    return template


@pytest.mark.parametrize("template", [*MEMBER_PUBLISH, *JOINER_PUBLISH])
def test_what_may_be_published_is_in_the_table(template: str) -> None:
    """In a row that lets somebody publish."""
    assert [one for one in rows() if named(template) in one[0] and one[1] not in NOBODY]


@pytest.mark.parametrize("template", [*MEMBER_SUBSCRIBE, *JOINER_SUBSCRIBE])
def test_what_may_be_subscribed_is_in_the_table(template: str) -> None:
    """In a row that lets somebody subscribe."""
    assert [one for one in rows() if named(template) in one[0] and one[2] not in NOBODY]


def test_the_table_lets_nobody_do_more() -> None:
    """What it allows is granted: no row is a wish."""
    publish = {named(one) for one in (*MEMBER_PUBLISH, *JOINER_PUBLISH)}
    subscribe = {named(one) for one in (*MEMBER_SUBSCRIBE, *JOINER_SUBSCRIBE)}
    for subjects, publishers, subscribers, _ in rows():
        assert publishers in NOBODY or set(subjects) <= publish, subjects
        assert subscribers in NOBODY or set(subjects) <= subscribe, subjects


@pytest.mark.parametrize("border", EXPORTS, ids=[one.subject for one in EXPORTS])
def test_what_crosses_is_in_the_table(border: Border) -> None:
    """Each export of CORE has a row, which says how it crosses."""
    kind = "stream" if border.crossing is Crossing.STREAM else "service"
    crossing = [one[3] for one in rows() if covers(border.subject, one[0]) and kind in one[3]]
    assert crossing
    if border.crossing is Crossing.ANSWERS:
        assert any("**stream**" in one for one in crossing)


def covers(exported: str, subjects: list[str]) -> bool:
    """Tell whether an export lets one of these subjects through."""
    pattern = re.escape(exported).replace(r"\*", "[^.]+").replace(">", ".+")
    return any(re.fullmatch(pattern, one) for one in subjects)


def test_what_is_never_granted() -> None:
    """Nothing reaches another's consumers, streams or keys, in whatever words."""
    granted = [*MEMBER_PUBLISH, *JOINER_PUBLISH, *(one.subject for one in EXPORTS)]
    for one in granted:
        assert not one.startswith(("$JS.API.STREAM.", "$JS.API.CONSUMER.CREATE", "$KV.", "$SYS."))
        assert not one.startswith((">", "*", "$JS.API.>", "$JS.>"))
    for one in (*MEMBER_SUBSCRIBE, *JOINER_SUBSCRIBE):
        assert not one.startswith((">", "*", "_INBOX.", "agent.", "delivered.>", "delivered.*"))
