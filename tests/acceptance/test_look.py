"""`mesh tail`, `mesh top`, `mesh trace`: who looks sees what passes, and not what is said."""

import json
import re

from tests.acceptance.conftest import Mesh

SECRET = "the-word-that-nobody-shall-see"


async def test_tail_shows_what_passes_and_not_what_is_said(mesh: Mesh) -> None:
    """Live, and again from the streams; bodies only when asked for."""
    async with (
        mesh.start("tail", "--agent", "echo") as plain,
        mesh.start("tail", "--agent", "echo", "--bodies", "--json") as whole,
    ):
        for _ in range(3):  # Until both listen.
            await mesh.run("send", "echo", SECRET)
            if "answered" in plain.text and "answered" in whole.text:
                break
        line = await plain.says(r".*answered.*")
        await whole.says(SECRET)
    assert re.search(r"Z  answered   echo@node1 → cli  [0-9a-f]{12}  \d+ ms$", line)
    assert re.search(r"asked +cli@\S+ → echo", plain.text)
    assert SECRET not in plain.text
    facts = [json.loads(one) for one in whole.lines if one.startswith("{")]
    call = next(one["call_id"] for one in facts if one["what"] == "answered")
    again = await mesh.run("tail", "--since", "5m", "--no-follow", "--json", "--call", call[:10])
    assert again.code == 0
    told = [json.loads(one) for one in again.out.splitlines()]
    assert {one["call_id"] for one in told} == {call}
    assert told[-1]["what"] == "answered"
    assert SECRET not in again.out
    assert all(one["trace_id"] for one in told if one["what"] == "answered")


async def test_a_filter_that_cannot_be(mesh: Mesh) -> None:
    """Is told in one line."""
    done = await mesh.run("tail", "--since", "yesterday")
    assert (done.code, done.out) == (2, "")
    assert done.err.startswith("mesh: --since: 'yesterday' is no duration")


async def test_top_is_plain_when_piped(mesh: Mesh) -> None:
    """One look, as a table or as JSON, and then it ends."""
    done = await mesh.run("top", "--interval", "1")
    assert done.code == 0
    assert "\x1b" not in done.out
    summary, head, *rows = done.out.splitlines()
    assert re.match(r"\d+/\d+ nodes  \d+/\d+ agents  [\d.]+ calls/s", summary)
    assert head.split()[:3] == ["AGENT", "STATE", "NODE"]
    assert any(re.match(r"echo +online +node1 +0/64", one) for one in rows)
    async with mesh.start("top", "--interval", "3", "--json") as top:
        for _ in range(3):
            await mesh.run("send", "echo", "hello")
        await top.says(r"(?m)^\]")
    (echo,) = [one for one in json.loads(top.text) if one["agent"] == "echo"]
    assert echo["calls_per_s"] > 0
    assert echo["p50_ms"] > 0
    assert echo["failed"] == 0


async def test_a_call_is_traced(mesh: Mesh) -> None:
    """By its id, as `mesh send` tells it."""
    sent = json.loads((await mesh.run("send", "echo", SECRET, "--json")).out)
    done = await mesh.run("trace", sent["call_id"])
    assert done.code == 0
    assert re.match(r"cli asked echo: answered after \d+ ms\n", done.out)
    assert SECRET not in done.out
    facts = json.loads((await mesh.run("trace", sent["call_id"], "--json")).out)
    assert [one["hop"] for one in facts["steps"]][-3:] == ["began", "answered", "acknowledged"]
    unknown = await mesh.run("trace", "0" * 32)
    assert (unknown.code, unknown.out) == (3, "")
