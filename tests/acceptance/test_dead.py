"""`mesh dead`, `mesh send --detach` and `mesh wait`, as a person types them."""

import json
import re
from hashlib import sha256

import nats
import pytest

from tests.acceptance.conftest import Mesh
from tests.conftest import until


async def bury(mesh: Mesh, agent: str, text: str) -> str:
    """Send a bare message to an agent that nobody knows, and return the number of its letter."""
    client = await nats.connect(mesh.nats_url)
    try:
        await client.jetstream().publish(f"agent.{agent}.inbox", text.encode())
    finally:
        await client.close()

    async def is_listed() -> bool:
        return text in (await mesh.run("dead", "list", "--agent", agent)).out

    await until(is_listed, within_s=60)
    listed = json.loads((await mesh.run("dead", "list", "--agent", agent, "--json")).out)
    (number,) = [str(one["number"]) for one in listed if one["body"] == text]
    return number


async def test_a_letter_is_shown_and_discarded(mesh: Mesh) -> None:
    """Its agent, its reason and its body; and when it is gone, that."""
    number = await bury(mesh, "nobody", "is anybody there?")
    listed = await mesh.run("dead", "list")
    row = rf"^{number} +nobody +\d{{4}}-\S+ \S+ +unknown_agent +is anybody there\?$"
    assert re.search(row, listed.out, re.M), listed
    shown = await mesh.run("dead", "show", number)
    assert "reason       unknown_agent\n" in shown.out
    assert shown.out.endswith("\nis anybody there?\n")
    assert (await mesh.run("dead", "discard", number)).code == 0
    gone = await mesh.run("dead", "show", number)
    assert (gone.code, gone.out) == (3, "")
    assert f"there is no dead letter {number}" in gone.err


async def test_a_letter_is_sent_again_when_its_agent_is_there(mesh: Mesh) -> None:
    """Not before; then as a new call, whose answer `mesh wait` prints."""
    number = await bury(mesh, "late", "hello")
    early = await mesh.run("dead", "replay", number)
    assert early.code == 3
    async with mesh.start("run", "tests.acceptance.late:agent") as host:
        await host.says("agent late runs")
        replayed = await mesh.run("dead", "replay", number)
        assert replayed.code == 0, replayed.err
        assert (await mesh.run("wait", replayed.out.strip())).out == "late heard: hello\n"
        number = await bury_again(mesh)
        edited = await mesh.run("dead", "edit", number, "--json", stdin=b"hello again")
        call_id = json.loads(edited.out)["call_id"]
        assert (await mesh.run("wait", call_id)).out == "late heard: hello again\n"
    assert "No dead letters." in (await mesh.run("dead", "list", "--agent", "late")).err


async def test_a_letter_whose_body_fits_into_no_message(mesh: Mesh) -> None:
    """What was claimed is sent again, from where it lies, and so it can be edited."""
    async with mesh.start("run", "tests.acceptance.late:agent") as host:
        await host.says("agent late runs")
        number = await bury_large(mesh, b"x" * 2_000_000)
        shown = await mesh.run("dead", "show", number)
        assert "\nbody_in      large 2000000 " in shown.out
        replayed = await mesh.run("dead", "replay", number)
        assert replayed.code == 0, replayed.err
        heard = await mesh.run("wait", replayed.out.strip())
        assert heard.out == f"late heard: {'x' * 2_000_000}\n"


async def bury_large(mesh: Mesh, body: bytes) -> str:
    """Bury a request with a claim."""
    client = await nats.connect(mesh.nats_url)
    store = await client.jetstream().object_store("bodies")
    await store.put("large", body)
    headers = {
        "reply_to": "$KV.registry.agent.late",
        "mesh-body": f"large {len(body)} {sha256(body).hexdigest()}",
    }
    await client.jetstream().publish("agent.late.inbox", b"", headers=headers)
    await client.close()

    async def is_listed() -> bool:
        listed = await mesh.run("dead", "list", "--agent", "late")
        return "2000000 bytes in the object store" in listed.out

    await until(is_listed, within_s=60)
    return str(json.loads((await mesh.run("dead", "list", "-a", "late", "-j")).out)[0]["number"])


async def bury_again(mesh: Mesh) -> str:
    """Bury a request to an agent that runs: its answer may go nowhere."""
    client = await nats.connect(mesh.nats_url)
    headers = {"reply_to": "$KV.registry.agent.late"}
    await client.jetstream().publish("agent.late.inbox", b"refuse me", headers=headers)
    await client.close()

    async def is_listed() -> bool:
        return "refuse me" in (await mesh.run("dead", "list", "--agent", "late")).out

    await until(is_listed, within_s=60)
    return str(json.loads((await mesh.run("dead", "list", "-a", "late", "-j")).out)[0]["number"])


async def test_a_detached_call(mesh: Mesh) -> None:
    """Its id is printed at once; whoever has it gets the answer, as text or as JSON."""
    sent = await mesh.run("send", "echo", "hi", "--detach", "--json")
    assert sent.out.count("\n") == 1
    call_id = json.loads(sent.out)["call_id"]
    waited = await mesh.run("wait", call_id, "--json")
    assert json.loads(waited.out)["content"] == "hi"
    assert (await mesh.run("wait", call_id)).out == "hi\n"
    plain = await mesh.run("send", "echo", "ho", "-d")
    assert (await mesh.run("wait", plain.out.strip(), "--raw")).out == "ho"


async def test_waiting_is_given_up(mesh: Mesh) -> None:
    """The call goes on, and says so."""
    async with mesh.start("run", "tests.acceptance.late:agent") as host:
        await host.says("agent late runs")
    sent = await mesh.run("send", "late", "not yet", "--detach")
    given_up = await mesh.run("wait", sent.out.strip(), "--timeout", "0.2")
    assert (given_up.code, given_up.out) == (5, "")
    assert "goes on" in given_up.err
    assert "stored" in (await mesh.run("call", sent.out.strip())).out
    assert (await mesh.run("cancel", sent.out.strip())).code == 0
    stopped = await mesh.run("wait", sent.out.strip())
    assert (stopped.code, "cancelled" in stopped.err) == (1, True)


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("dead", "show", "999999"), 3, "mesh dead list"),
        (("dead", "show", "0"), 2, "NUMBER"),
        (("dead", "list", "--agent", "a.b"), 2, "not a valid agent id"),
        (("dead", "discard"), 2, "say which"),
        (("dead", "discard", "1", "--all"), 2, "say which"),
        (("dead", "replay", "999999"), 3, "mesh dead list"),
        (("wait", "nothing"), 3, "nothing is stored of call"),
        (("wait", "no.id"), 2, "is not a call id"),
    ],
)
async def test_what_cannot_be_done(
    mesh: Mesh, arguments: tuple[str, ...], code: int, said: str
) -> None:
    """In one line, with the next step."""
    done = await mesh.run(*arguments)
    assert done.code == code
    assert said in done.err
    assert "Traceback" not in done.err
