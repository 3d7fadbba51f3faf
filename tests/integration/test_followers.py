"""Calls are followed by those who did not begin them, through gaps and lost connections."""

import asyncio

import orjson
import pytest

from mesh import headers as h
from mesh import subjects
from mesh.callers import new_instance_id
from mesh.calls import Call, StoredCall
from mesh.client import MeshClient
from mesh.connection import Connection, open_connection
from mesh.errors import BrokerUnreachableError, CallTimeoutError, StreamRestartedError
from mesh.followers import follow_call
from mesh.frames import Frame
from mesh.ledger import read_record
from mesh.settings import Settings
from tests.calls import Held, offline, question
from tests.conftest import Running, until
from tests.pace import stopwatch
from tests.proxy import fault_proxy


class Script:
    """Frames of a call that has no agent, written by hand."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self.id = new_instance_id()
        self.subject = subjects.reply("far", new_instance_id(), self.id, "nobody")
        self.call = StoredCall(self.id, "nobody", self.subject, 0)

    async def write(
        self, kind: str, *, seq: int = 0, attempt: int = 1, body: bytes = b"{}", ttl_s: int = 60
    ) -> None:
        """Store one frame."""
        await (await self.send(kind, seq=seq, attempt=attempt, body=body, ttl_s=ttl_s))

    async def send(
        self, kind: str, *, seq: int = 0, attempt: int = 1, body: bytes = b"{}", ttl_s: int = 60
    ) -> asyncio.Future[object]:
        """Send one frame, and return the future of its acknowledgement."""
        headers = {
            h.KIND: kind,
            h.SEQ: str(seq),
            h.ATTEMPT: str(attempt),
            h.CORRELATION_ID: self.id,
            h.CONTENT_TYPE: h.JSON,
            h.TTL: str(ttl_s),
        }
        future = await self._connection.publisher.submit(self.subject, body, headers)
        return asyncio.ensure_future(future)

    async def chunks(self, text: str, *, attempt: int = 1) -> None:
        """Store one chunk a letter."""
        for seq, letter in enumerate(text):
            await self.write("chunk", seq=seq, attempt=attempt, body=chunk(letter))


def chunk(text: str) -> bytes:
    """Return a chunk's body."""
    return orjson.dumps({"choices": [{"index": 0, "delta": {"content": text}}]})


FINAL = orjson.dumps({"choices": [{"message": {"content": "whole"}, "finish_reason": "stop"}]})


@pytest.fixture
def script(connection: Connection) -> Script:
    """A call whose frames are written by hand."""
    return Script(connection)


async def letters(call: Call) -> str:
    """Read the chunks to the end."""
    return "".join([_letter(frame) async for frame in call.chunks()])


def _letter(frame: Frame) -> str:
    letter: str = orjson.loads(frame.body)["choices"][0]["delta"]["content"]
    return letter


def subscriptions(connection: Connection) -> int:
    """Return how many subscriptions a connection has."""
    return len(connection.client._subs)


async def test_an_answer_that_comes_while_the_past_is_read(
    script: Script, connection: Connection, settings: Settings
) -> None:
    """It is heard before the chunks in front of it are read: it does not take their place."""
    count = 5_000
    sent = [await script.send("chunk", seq=seq, body=chunk("x")) for seq in range(count)]
    await asyncio.gather(*sent)
    async with open_connection(settings.nats_url, name="test follower") as own:
        before = subscriptions(own)

        async def follow() -> str:
            async with follow_call(own, script.call, has_seen_chunks=True) as call:
                return await letters(call)

        following = asyncio.create_task(follow())
        while subscriptions(own) == before:  # noqa: ASYNC110 - `until` would come too late
            await asyncio.sleep(0)
        await script.write("final", seq=count, body=FINAL)
        assert len(await following) == count


async def test_the_newest_attempt_alone(script: Script, connection: Connection) -> None:
    """Who has seen nothing is not shown what a dead attempt left, before a new one or after."""
    await script.chunks("abc")
    await script.write("working", attempt=2)
    async with follow_call(connection, script.call) as call:
        reading = asyncio.create_task(letters(call))
        await asyncio.sleep(0.3)  # Time for more than one look.
        await script.chunks("xyz", attempt=2)
        await script.write("final", seq=3, attempt=2, body=FINAL)
        assert await reading == "xyz"


async def test_a_slow_first_attempt_that_answers_after_all(
    script: Script, connection: Connection
) -> None:
    """Its chunks belong to the answer, and not those of the second attempt, which came too late."""
    await script.chunks("ab")
    await script.chunks("x", attempt=2)
    await script.write("chunk", seq=2, body=chunk("c"))
    await script.write("final", seq=3, body=FINAL)
    async with follow_call(connection, script.call) as call:
        assert await letters(call) == "abc"


@pytest.mark.parametrize("is_live", [False, True])
async def test_another_attempt_is_not_glued_to_what_was_seen(
    script: Script, connection: Connection, *, is_live: bool
) -> None:
    """Neither when it began before the reader came back, nor while it reads."""
    await script.chunks("abc")
    if not is_live:
        await script.chunks("x", attempt=2)
    async with follow_call(connection, script.call, has_seen_chunks=True) as call:
        reading = asyncio.create_task(letters(call))
        if is_live:
            await script.chunks("x", attempt=2)
        with pytest.raises(StreamRestartedError):
            await reading


async def test_a_follower_whose_connection_is_cut(
    script: Script, settings: Settings, connection: Connection
) -> None:
    """What came meanwhile is read when the connection is back, at once and in order."""
    await script.write("working")
    async with (
        fault_proxy(settings.nats_url) as proxy,
        open_connection(proxy.url, name="test cut follower") as own,
        follow_call(own, script.call) as call,
    ):
        reading = asyncio.create_task(letters(call))
        await script.chunks("abc")
        await until(lambda: call.last_sequence > 0)
        proxy.cut()
        await until(lambda: not own.client.is_connected)
        for seq, letter in enumerate("def", 3):
            await script.write("chunk", seq=seq, body=chunk(letter))
        await script.write("final", seq=6, body=FINAL)
        proxy.heal()
        await until(lambda: own.client.is_connected)
        with stopwatch() as stretch:
            assert await reading == "abcdef"
        assert stretch.took_s < 1


async def test_a_follower_whose_connection_is_closed_for_good(
    script: Script, settings: Settings
) -> None:
    """It is told; and so is who comes later."""
    await script.write("working")
    async with open_connection(settings.nats_url, name="test closed follower") as own:
        async with follow_call(own, script.call) as call:
            await own.client.close()
            with pytest.raises(BrokerUnreachableError):
                await asyncio.wait_for(call.result(), 30)
        with pytest.raises(BrokerUnreachableError):
            async with follow_call(own, script.call):
                pytest.fail("followed without a connection")


async def test_the_place_of_a_request_is_learned_late(
    agent_id: str, running: Running, client: MeshClient, connection: Connection
) -> None:
    """A follower that came before the record was written notices the end all the same."""
    await offline(running, client, agent_id)
    call_id = new_instance_id()
    subject = subjects.reply("far", new_instance_id(), call_id, agent_id)
    headers = {h.REPLY_TO: subject, h.CORRELATION_ID: call_id, h.TTL: "2", h.TIMEOUT_MS: "2000"}
    sent = await connection.publisher.publish(subjects.inbox(agent_id), b"x", headers)
    frame = {h.KIND: "working", h.CORRELATION_ID: call_id, h.CONTENT_TYPE: h.JSON}
    await connection.publisher.publish(subject, b"{}", frame)
    async with follow_call(connection, StoredCall(call_id, agent_id, subject, 0)) as call:
        body = b'{"agent":"%b","sequence":%d,"timeout_ms":2000}' % (
            agent_id.encode(),
            sent.sequence,
        )
        await connection.publisher.publish(subject, body, {**frame, h.KIND: "stored"})
        await until(lambda: call.sequence == sent.sequence)
        with pytest.raises(CallTimeoutError):
            await asyncio.wait_for(call.result(), 30)


async def test_a_call_of_which_nothing_is_left(script: Script, connection: Connection) -> None:
    """Nobody knows where its request lay, and its frames are gone: it will never be answered."""
    await script.write("working", ttl_s=1)
    async with follow_call(connection, script.call) as call:
        with pytest.raises(CallTimeoutError):
            await asyncio.wait_for(call.result(), 30)


async def test_nothing_is_left_of_a_follower(
    agent_id: str, running: Running, client: MeshClient, settings: Settings
) -> None:
    """No subscription, task or hook, however the following ended."""
    held = Held(agent_id)
    async with (
        running(held.agent),
        open_connection(settings.nats_url, name="test follower") as own,
    ):
        stored = await client.submit(agent_id, question(agent_id), timeout_s=30)
        await read_record(own, stored.id)  # nats-py keeps its one subscription for answers.
        before = subscriptions(own), len(own._hooks), len(asyncio.all_tasks())

        async def follow(seconds: float) -> None:
            async with follow_call(own, stored) as call, asyncio.timeout(seconds):
                await call.result()

        followers = [asyncio.create_task(follow(0.001 * n)) for n in range(50)]
        await asyncio.wait(followers)
        assert all(isinstance(one.exception(), TimeoutError) for one in followers)
        del followers
        assert (subscriptions(own), len(own._hooks)) == before[:2]
        held.go.set()
        await follow(10)
        assert (subscriptions(own), len(own._hooks)) == before[:2]
        await until(lambda: len(asyncio.all_tasks()) <= before[2])
