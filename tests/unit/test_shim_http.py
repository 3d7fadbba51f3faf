"""Bodies, headers and waiting, on plain ASGI."""

import asyncio
import time
from collections.abc import MutableMapping
from contextlib import suppress
from typing import Any, cast

import pytest
from starlette.requests import ClientDisconnect

from mesh.errors import CallError, DoorBusyError, InvalidInputError, PayloadTooLargeError
from mesh.shim.door import Door
from mesh.shim.http import (
    MAX_DEPTH,
    SMALL_BYTES,
    BodyRoom,
    read_body,
    release_body,
    request_id,
    require_shallow,
)
from mesh.shim.waiting import settle
from tests.conftest import until

LIMIT = 10


class Sender:
    """A client that sends a body in parts, and then waits, or leaves."""

    def __init__(self, *parts: bytes, leaves: bool = False) -> None:
        self.parts = list(parts)
        self.leaves = leaves
        self.is_gone = asyncio.Event()

    async def receive(self) -> MutableMapping[str, Any]:
        if self.parts:
            part = self.parts.pop(0)
            more = bool(self.parts) or self.leaves
            return {"type": "http.request", "body": part, "more_body": more}
        if not self.leaves:
            await self.is_gone.wait()
        return {"type": "http.disconnect"}


def scope(length: bytes | None = None) -> dict[str, Any]:
    return {"type": "http", "headers": [(b"content-length", length)] if length else []}


async def test_a_body_in_parts_is_put_together() -> None:
    """Up to the limit, to the byte."""
    assert await read_body(scope(b"10"), Sender(b"12345", b"67890").receive, LIMIT) == b"1234567890"


async def test_a_body_that_says_it_is_too_long_is_not_read() -> None:
    """The answer comes before the body."""
    sender = Sender(b"12345678901")
    with pytest.raises(PayloadTooLargeError) as caught:
        await read_body(scope(b"11"), sender.receive, LIMIT)
    assert (caught.value.actual_bytes, caught.value.limit_bytes) == (11, LIMIT)
    assert sender.parts


async def test_a_body_without_a_length_is_read_up_to_the_limit() -> None:
    """Nobody can fill the memory with a chunked body."""
    sender = Sender(b"1234567", b"8901234", b"never read")
    with pytest.raises(PayloadTooLargeError):
        await read_body(scope(), sender.receive, LIMIT)
    assert sender.parts == [b"never read"]


async def test_large_bodies_share_a_room() -> None:
    """A small one takes none of it; a large one, until it is answered, with a length or not."""
    large, room = b"x" * SMALL_BYTES, BodyRoom(2 * SMALL_BYTES + 2)
    first, second, third = scope(), scope(), scope()
    for one in (first, second):
        await read_body(one, Sender(large, b"x").receive, 10 * SMALL_BYTES, room)
    await read_body(third, Sender(large).receive, 10 * SMALL_BYTES, room)
    with pytest.raises(DoorBusyError):
        await read_body(third, Sender(large, b"x").receive, 10 * SMALL_BYTES, room)
    release_body(third)
    for _ in range(2):
        release_body(first)
    await read_body(third, Sender(large, b"x").receive, 10 * SMALL_BYTES, room)
    with pytest.raises(DoorBusyError):
        await read_body(first, Sender(large, b"x").receive, 10 * SMALL_BYTES, room)


async def test_a_client_that_leaves_half_way_is_noticed() -> None:
    """Half a body is no body."""
    with pytest.raises(ClientDisconnect):
        await read_body(scope(), Sender(b"123", leaves=True).receive, LIMIT)


def named(given: str) -> dict[str, Any]:
    return {"type": "http", "headers": [(b"x-request-id", given.encode("latin-1"))]}


@pytest.mark.parametrize("given", ["abc-123", "req_1", "!~", "x" * 128])
def test_a_client_may_name_its_request(given: str) -> None:
    """Short printable ASCII comes back as it is."""
    assert request_id(named(given)) == given


@pytest.mark.parametrize("given", ["", "a b", "é", "x" * 129, "a\tb", "\x7f"])
def test_other_names_are_replaced(given: str) -> None:
    """Nothing odd gets into our headers and logs."""
    made = request_id(named(given))
    assert made.startswith("req_")
    assert made != request_id(named(given))


@pytest.fixture
def door() -> Door:
    """A door on which nobody calls: only its waiting is looked at."""
    return Door(*cast(tuple[Any, Any, Any], (None, None, None)))


async def test_waiting_ends_when_it_is_settled(door: Door) -> None:
    """And takes its watcher along, if it took so long that there is one."""
    before = len(asyncio.all_tasks())
    with door.waiting(Sender().receive) as over:
        asyncio.get_running_loop().call_soon(settle, over)
        await over
        assert len(asyncio.all_tasks()) == before
    with door.waiting(Sender().receive) as over:
        await until(lambda: len(asyncio.all_tasks()) > before)
    await until(lambda: len(asyncio.all_tasks()) == before)


async def test_waiting_ends_when_the_client_leaves(door: Door) -> None:
    """Nobody is left to wait for."""
    sender = Sender()
    with door.waiting(sender.receive) as over:
        sender.is_gone.set()
        with pytest.raises(ClientDisconnect):
            await over


async def test_waiting_ends_when_the_door_closes(door: Door) -> None:
    """Those who wait are told, and those who come too late as well."""
    with door.waiting(Sender().receive) as over:
        door.close()
        with pytest.raises(CallError, match="stopping"):
            await over
    with door.waiting(Sender().receive) as over, pytest.raises(CallError, match="stopping"):
        await over


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[" * MAX_DEPTH + b"]" * MAX_DEPTH,
        b"[[]," * 32 + b"1" + b"]" * 32,
        b"[" + b"{},[]," * 500 + b"1]",
        b'{"a":"' + b"[" * 1_000 + b'"}',
        b'["' + rb"\"[" * 1_000 + b'"]',
        rb'["\\",' + b'"[",' * 1_000 + b"1]",
        b'{"a":"' + b"[" * 1_000,
    ],
)
def test_json_that_is_not_deep(body: bytes) -> None:
    """Many brackets beside each other, or in strings, make no depth."""
    require_shallow(body)


@pytest.mark.parametrize(
    "body",
    [
        b"[" * (MAX_DEPTH + 1) + b"]" * (MAX_DEPTH + 1),
        b"[" * 100_000,
        b'{"a":' * 100_000 + b"1" + b"}" * 100_000,
        b'[{"a":' * 40 + b"1" + b"}]" * 40,
        b"[[]," * 65 + b"1" + b"]" * 65,
        rb'["\\",' + b"[" * 65,
        b'["\xff\xfe"' + b"[" * 65,
    ],
)
def test_json_that_is_too_deep(body: bytes) -> None:
    """Arrays, objects, both in turn, valid or not."""
    with pytest.raises(InvalidInputError, match="deeper than 64") as caught:
        require_shallow(body)
    assert caught.value.field == "body"


async def test_a_deep_body_is_refused_when_it_is_read() -> None:
    """Before anybody parses it."""
    sender = Sender(b"[" * 40, b"[" * 40)
    with pytest.raises(InvalidInputError):
        await read_body(scope(), sender.receive, 1_000)


@pytest.mark.parametrize("body", [b'["' + rb"\"" * 400_000, b"[" * 65 + b'"' * 900_000])
def test_no_body_makes_the_check_slow(body: bytes) -> None:
    """Each byte is looked at a few times at most: these took minutes with a naive pattern."""
    begun = time.perf_counter()
    with suppress(InvalidInputError):
        require_shallow(body)
    assert time.perf_counter() - begun < 30
