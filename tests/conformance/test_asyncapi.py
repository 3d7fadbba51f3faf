"""The AsyncAPI document: true, valid by AsyncAPI's own parser, and served by every door."""

import asyncio
import re

import httpx2
import orjson

from handlers.asyncapi import FILE, encoded
from mesh.connection import Connection
from mesh.directory import Directory
from tests.conformance.node import FOLDER, node_binary
from tests.shim import serving
from tests.wire.test_specification import README


def test_it_is_as_written() -> None:
    """`python -m handlers.asyncapi` writes it anew."""
    assert FILE.read_text() == encoded()


def test_it_has_every_subject_of_the_specification() -> None:
    """Those in the table of `schemas/README.md`, and no others."""
    table = README.read_text().partition("## Subjects")[2].partition("\n## ")[0]
    specified = {
        re.sub(r"<[a-z]+>", "*", one)
        for line in re.findall(r"(?m)^\| (.*?) \|", table)
        for one in re.findall(r"`([^`]+)`", line)
    }
    document = orjson.loads(FILE.read_bytes())
    described = {re.sub(r"{[a-z]+}", "*", one["address"]) for one in document["channels"].values()}
    assert specified - described == set()


async def test_its_own_parser_finds_nothing() -> None:
    """Neither an error nor a warning."""
    process = await asyncio.create_subprocess_exec(
        *(str(node_binary()), "asyncapi.mjs", str(FILE)),
        cwd=FOLDER,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    told, complaint = await asyncio.wait_for(process.communicate(), 60)
    assert process.returncode == 0, complaint.decode()
    assert orjson.loads(told) == []


async def test_a_door_serves_it(connection: Connection, directory: Directory) -> None:
    """With nothing from elsewhere in it."""
    async with serving(connection, directory) as url, httpx2.AsyncClient(base_url=url) as http:
        answer = await http.get("/asyncapi.json")
    assert answer.headers["content-type"] == "application/json"
    assert answer.json()["asyncapi"] == "3.0.0"
    assert "cdn" not in answer.text.lower()
