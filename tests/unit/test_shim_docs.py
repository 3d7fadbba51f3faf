"""The commands and the little Markdown of the page of the HTTP API."""

from typing import Any

import pytest

from mesh.shim.app import make_endpoints, operations_of
from mesh.shim.docs import Command, Commands
from mesh.shim.door import Door
from mesh.shim.openapi import make_document
from mesh.shim.pages import prose
from mesh.shim.reference import read_chapters

NOWHERE: Any = None
OPERATIONS = list(operations_of(make_endpoints(Door(NOWHERE, NOWHERE, NOWHERE))))
NAMES = {"echo": "solarius", "node1": "berlin"}


def commands(operation: str, *, requires_keys: bool = False) -> list[Command]:
    """Return what the page shows for an operation of a door in Berlin."""
    document = make_document(OPERATIONS, requires_keys=requires_keys)
    described = {one.id: one for chapter in read_chapters(document) for one in chapter.operations}
    written = Commands(document, "http://192.0.2.7:9102", NAMES)
    return list(written.of(described[operation]))


@pytest.mark.parametrize(
    ("operation", "command"),
    [
        ("getNode", "curl -s http://192.0.2.7:9102/api/v1/node/berlin"),
        ("getModel", "curl -s http://192.0.2.7:9102/v1/models/solarius"),
        (
            "askAgent",
            "curl -s http://192.0.2.7:9102/api/agent/solarius/chat \\\n"
            "  -H 'content-type: application/json' \\\n"
            """  -d '{"message": "Hello!"}'""",
        ),
    ],
)
def test_commands_name_what_is_there(operation: str, command: str) -> None:
    """Not the agent and the node of the document's examples."""
    assert commands(operation)[0].text == command


def test_a_call_is_made_before_it_is_looked_at() -> None:
    """By the link from the operation that makes one."""
    (command,) = commands("cancelCall")
    first, _, last = command.text.rpartition("\n")
    assert first.startswith("id=$(curl -s http://192.0.2.7:9102/v1/chat/completions")
    assert '"background": true' in first
    assert last == 'curl -s -X DELETE "http://192.0.2.7:9102/v1/calls/$id"'


def test_keys_stand_where_they_are_required() -> None:
    """And nowhere else: not at a door without them, nor at what is open to everybody."""
    key = "Bearer $MESH_API_KEY"
    assert key in commands("listModels", requires_keys=True)[0].text
    assert key not in commands("listModels")[0].text
    assert key not in commands("getHealth", requires_keys=True)[0].text


@pytest.mark.parametrize(
    ("text", "html"),
    [
        ("one\ntwo", "<p>one two</p>"),
        ("one\n\ntwo", "<p>one</p>\n<p>two</p>"),
        ("- `a`: b\n- c", "<ul><li><code>a</code>: b</li><li>c</li></ul>"),
        ("**so** `x<y>`", "<p><strong>so</strong> <code>x&lt;y&gt;</code></p>"),
        ("<script>alert(1)</script>", "<p>&lt;script&gt;alert(1)&lt;/script&gt;</p>"),
        ("", ""),
    ],
)
def test_descriptions_are_written_as_html(text: str, html: str) -> None:
    """As much Markdown as they have, and no tag of theirs."""
    assert prose(text) == html
