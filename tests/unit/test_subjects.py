"""Subjects are built from checked ids, and from nothing else."""

from collections.abc import Callable

import pytest

from mesh import subjects
from mesh.errors import InvalidIdError, InvalidInputError

BAD_IDS = [
    *("", ".", "..", "a.b", "*", ">", "a*", "a>b", "a b", "a\tb", "a\n", "a\r\nPUB x 1", "\0"),
    *(
        "ä",
        "ⅷ",
        "а",
        "A",
        "-a",
        "a-",
        "_a",
        "a" * 33,
        "a/b",
        "a\\b",
        "$JS",
        "_INBOX",
        "{{x}}",
        "%2e",
    ),
]
GOOD_IDS = ["a", "7", "a-b", "a_b", "a" * 32, "node1", "a--b"]


@pytest.mark.parametrize("bad", BAD_IDS, ids=repr)
def test_no_builder_takes_a_bad_id(bad: str) -> None:
    """Every door checks before a subject exists."""
    builders: tuple[Callable[[str], str], ...] = (
        subjects.inbox,
        lambda one: subjects.inbox("a", one) if one else subjects.inbox(one),
        subjects.bare_reply,
        lambda one: subjects.reply(one, "i", "c", "b"),
        lambda one: subjects.reply("a", "i", "c", one),
        lambda one: subjects.delivered(one, "i"),
        lambda one: subjects.event(one, "done"),
        lambda one: subjects.cancel(one, "c"),
        lambda one: subjects.announce(one, "n"),
        lambda one: subjects.announce("a", one),
        lambda one: subjects.heartbeat(one, "i"),
        subjects.withdraw,
        subjects.lookup,
    )
    for build in builders:
        with pytest.raises(InvalidIdError) as refused:
            build(bad)
        assert refused.value.fields["value"] == bad[:80]


@pytest.mark.parametrize("good", GOOD_IDS)
def test_good_ids_become_one_token(good: str) -> None:
    """A valid id is one token of its subject."""
    assert subjects.inbox(good, good).split(".") == ["agent", good, "inbox", good]


@pytest.mark.parametrize("bad", ["", "a.b", "a b", "*", ">", "x" * 65, "a\n"], ids=repr)
def test_call_ids_are_one_token(bad: str) -> None:
    """Neither a call id nor an instance can add tokens or wildcards."""
    builders: tuple[Callable[[], str], ...] = (
        lambda: subjects.reply("a", "i", bad, "b"),
        lambda: subjects.reply("a", bad, "c", "b"),
        lambda: subjects.cancel("a", bad),
        lambda: subjects.heartbeat("n", bad),
    )
    for build in builders:
        with pytest.raises(InvalidInputError):
            build()


def test_only_reply_subjects_are_answered() -> None:
    """A `reply_to` can be a reply subject of the mesh or a NATS inbox, and nothing near it."""
    assert subjects.is_reply("agent.a.reply")
    assert subjects.is_reply("agent.a.reply.i.c")
    for other in (
        *(
            "agent.a.inbox",
            "agent.a.reply.x",
            "agent.a.reply.i.c.d.e",
            "agent.*.reply",
            "agent.a.reply.",
        ),
        *(
            "$JS.API.STREAM.PURGE.INBOX",
            "$KV.registry.a",
            "agent.a.reply.>",
            "agent.A.reply.i.c",
            "",
        ),
        *("agent.a.reply\n", "agent.a.reply.i.c\r\nPUB x 1"),
    ):
        assert not subjects.is_reply(other), other
    assert subjects.is_inbox_reply("_INBOX.abc.1")
    for other in ("INBOX.a", "_INBOX.*", "_INBOX.>", "_INBOX.a b", "_INBOX.a\r\nPUB"):
        assert not subjects.is_inbox_reply(other), other


@pytest.mark.parametrize(
    "name", ["", "a b", "*", ">", "A", "a..b", "a.b.c.d.e", "x" * 65], ids=repr
)
def test_event_names_are_checked(name: str) -> None:
    """An event name has up to four plain tokens."""
    with pytest.raises(InvalidInputError):
        subjects.event("a", name)


def test_event_filters_may_be_wild() -> None:
    """A subscription may leave out who, or what."""
    assert subjects.event_filter("*", "done") == "agent.*.event.done"
    assert subjects.event_filter("a", "*") == "agent.a.event.>"


def test_an_inbox_subject_is_taken_apart() -> None:
    """Tokens come back as they are: raw publishers check nothing."""
    assert subjects.parse_inbox("agent.X.inbox") == subjects.InboxSubject("X", None)
    assert subjects.parse_inbox("agent.a.inbox.n") == subjects.InboxSubject("a", "n")
    with pytest.raises(InvalidInputError):
        subjects.parse_inbox("agent.a.reply")


def test_dead_letters_of_no_id_have_one_name() -> None:
    """A token that is no id does not become part of a subject of ours."""
    assert subjects.dead("a") == "dead.a"
    assert subjects.dead("NO ID") == "dead.invalid-id"
