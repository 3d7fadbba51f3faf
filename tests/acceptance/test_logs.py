"""Log lines of real processes: which call they are about, and nothing of what is said."""

import json
from pathlib import Path

from tests.acceptance.conftest import OwnMesh
from tests.conftest import until

SECRET = "the-word-that-nobody-shall-see"
AGENT = """
import logging
from mesh import Agent, CallContext, ChatRequest

logger = logging.getLogger("handlers.mine")
agent = Agent("talker")

@agent.chat
async def answer(request: ChatRequest, call: CallContext) -> str:
    logger.info("thinking")
    if "fail" in request.last_text:
        raise ValueError("the sun does not shine")
    return request.last_text
"""


async def test_each_line_says_which_call_it_is_about(
    own_mesh: OwnMesh, agents: dict[str, str]
) -> None:
    """As JSON of every process, `mesh up` and the broker among them; and as text."""
    (Path(agents["TEST_CWD"]) / "talking.py").write_text(AGENT)
    as_json = {"MESH_LOG_FORMAT": "json", **agents}
    async with (
        own_mesh(MESH_LOG_FORMAT="json") as mesh,
        mesh.start("run", "talking:agent", **as_json) as structured,
    ):
        await structured.says("agent talker runs")
        sent = json.loads((await mesh.run("send", "talker", SECRET, "--json")).out)
        failed = await mesh.run("send", "talker", f"fail {SECRET}", "--json")
        assert failed.code == 1
        await structured.says("the sun does not shine")
        lines = [json.loads(one) for one in structured.lines]
        assert await structured.stop() == 0
        async with mesh.start("run", "talking:agent", MESH_LOG_FORMAT="text", **agents) as plain:
            await plain.says("agent talker runs")
            await mesh.run("send", "talker", SECRET)
            line = await plain.says(".*thinking.*")
        await until(lambda: "left" in mesh.up.text)
        trace = json.loads((await mesh.run("trace", sent["call_id"], "--json")).out)
        up = [json.loads(one) for one in mesh.up.lines if one.startswith("{")]
    assert {"part", "at", "level", "message"} <= set(up[-1])
    assert {one["part"] for one in up} >= {"control"}
    thinking = [one for one in lines if one["message"] == "thinking"]
    assert thinking[0]["call_id"] == sent["call_id"]
    assert all(len(one["trace_id"]) == 32 for one in thinking)
    (told,) = [one for one in lines if one["level"] == "error"]
    assert told["call_id"] == thinking[1]["call_id"]
    assert "ValueError: the sun does not shine" in told["exception"]
    assert trace["trace_id"] == thinking[0]["trace_id"]
    assert "  call=" in line
    assert " trace=" in line
    for text in (structured.text, plain.text, mesh.up.text):
        assert SECRET not in text


async def test_a_format_that_is_none(own_mesh: OwnMesh) -> None:
    """Is told in one line."""
    async with own_mesh() as mesh:
        done = await mesh.run("agents", MESH_LOG_FORMAT="xml")
    assert done.code == 2
    assert "MESH_LOG_FORMAT" in done.err
    assert "text" in done.err
