"""`mesh send` and `mesh chat`: a person asks an agent. `mesh wait` gets the answer later."""

import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mesh.cli import exits

if TYPE_CHECKING:
    from mesh.attachments import Attachment
    from mesh.calls import Call
    from mesh.client import MeshClient

TIMEOUT_S = 60.0

AsJson = Annotated[bool, typer.Option("--json", "-j", help="Print the answer as one JSON line.")]
Raw = Annotated[bool, typer.Option("--raw", "-r", help="Print the answer's bytes, no newline.")]
Output = Annotated[
    Path | None,
    typer.Option("--output", "-o", help="Where to save the file that comes with the answer."),
]


@dataclass(frozen=True, slots=True)
class _Ask:
    agent: str
    question: str
    node: str | None
    source: str
    timeout_s: float | None
    """None: the default of the way it is sent."""
    wait: bool
    file: Path | None


@dataclass(frozen=True, slots=True)
class _Show:
    """How an answer is shown."""

    as_json: bool
    raw: bool
    output: Path | None


def send(
    agent: Annotated[str, typer.Argument(help="The agent to ask.")],
    text: Annotated[
        str | None,
        typer.Argument(
            help="The question; '-' or nothing reads it from stdin. With --file, nothing is the "
            "file's name."
        ),
    ] = None,
    node: Annotated[str, typer.Option("--node", "-n", help="Only the instance on this node.")] = "",
    source: Annotated[str, typer.Option("--from", "-f", help="Ask as this agent.")] = "cli",
    timeout_s: Annotated[
        float | None,
        typer.Option(
            "--timeout",
            "-t",
            help="Deadline in seconds; 60 when you wait for it, else a day.",
            show_default=False,
        ),
    ] = None,
    detach: Annotated[
        bool, typer.Option("--detach", "-d", help="Print the call's id and go: see `mesh wait`.")
    ] = False,
    no_wait: Annotated[
        bool, typer.Option("--no-wait", help="Fail at once if it is not running.")
    ] = False,
    file: Annotated[
        Path | None,
        typer.Option("--file", "-F", help="A file that goes with the question, up to 128 MiB."),
    ] = None,
    output: Output = None,
    as_json: AsJson = False,
    raw: Raw = False,
) -> None:
    """Ask an agent, and print its answer as it comes.

    An agent that is offline gets the question when it is back, until the deadline. Ctrl-C cancels
    the call. A detached call goes on without you: its answer is kept for a day. A question of any
    length and a file up to MESH_BODY_MAX travel.
    """
    if text is None:
        text = file.name if file is not None else "-"
    question = _read_question(text)
    ask = _Ask(agent, question, node or None, source, timeout_s, wait=not no_wait, file=file)
    show = _Show(as_json, raw, output)
    work = _detach(ask, as_json=as_json) if detach else _send(ask, show)
    exits.run(work, as_json=as_json)


def wait(
    call: Annotated[str, typer.Argument(help="The call's id.")],
    timeout_s: Annotated[
        float | None,
        typer.Option("--timeout", "-t", min=0, help="Give up after so many seconds."),
    ] = None,
    output: Output = None,
    as_json: AsJson = False,
    raw: Raw = False,
) -> None:
    """Wait for a call that was begun elsewhere, and print its answer as it comes.

    The exit code is that of `mesh send`. Giving up, or Ctrl-C, leaves the call alone.
    """
    exits.run(_wait(call, timeout_s, _Show(as_json, raw, output)), as_json=as_json)


def chat(
    agent: Annotated[str, typer.Argument(help="The agent to talk to.")],
    node: Annotated[str, typer.Option("--node", "-n", help="Only the instance on this node.")] = "",
    timeout_s: Annotated[
        float, typer.Option("--timeout", "-t", help="Deadline of each answer.")
    ] = TIMEOUT_S,
) -> None:
    """Talk with an agent; it gets the whole conversation each time. Ctrl-D ends it."""
    exits.run(_chat(agent, node or None, timeout_s))


def _read_question(text: str) -> str:
    from mesh.errors import InvalidInputError

    if text == "-":
        if sys.stdin.isatty():
            typer.echo("Type the question, then Ctrl-D:", err=True)
        try:
            text = sys.stdin.buffer.read().decode()
        except UnicodeDecodeError:
            exits.fail(InvalidInputError("the question is not UTF-8 text", field="text"))
    return text


async def _send(ask: _Ask, show: _Show) -> None:
    from mesh.cli.sessions import open_session
    from mesh.questions import encode_question
    from mesh.settings import Settings

    _require_folder(show.output)
    started = time.monotonic()
    async with open_session(Settings.from_env(), caller=ask.source) as client:
        body = encode_question(ask.agent, ask.question, stream=not show.as_json)
        timeout_s = TIMEOUT_S if ask.timeout_s is None else ask.timeout_s
        call = await client.start(
            ask.agent, body, file=ask.file, node=ask.node, timeout_s=timeout_s, wait=ask.wait
        )
        try:
            await _print(call, started, show)
        finally:
            client.abandon(call)


async def _detach(ask: _Ask, *, as_json: bool) -> None:
    import orjson

    from mesh.cli.sessions import open_session
    from mesh.headers import MAX_TIMEOUT_S
    from mesh.questions import encode_question
    from mesh.settings import Settings

    async with open_session(Settings.from_env(), caller=ask.source) as client:
        body = encode_question(ask.agent, ask.question, stream=True)
        timeout_s = MAX_TIMEOUT_S if ask.timeout_s is None else ask.timeout_s
        stored = await client.submit(
            ask.agent, body, file=ask.file, node=ask.node, timeout_s=timeout_s, wait=ask.wait
        )
    typer.echo(orjson.dumps({"call_id": stored.id}).decode() if as_json else stored.id)


async def _wait(call_id: str, timeout_s: float | None, show: _Show) -> None:
    import asyncio

    from mesh.connection import open_connection
    from mesh.errors import CallTimeoutError
    from mesh.followers import follow_call
    from mesh.ledger import read_record
    from mesh.settings import Settings
    from mesh.trust.login import Login

    _require_folder(show.output)
    started = time.monotonic()
    limit = asyncio.timeout(timeout_s)
    async with open_connection(Login.of(Settings.from_env()), name="mesh wait") as connection:
        record = await read_record(connection, call_id)
        async with follow_call(connection, record.call) as call:
            try:
                async with limit:
                    await _print(call, started, show)
            except TimeoutError:
                if not limit.expired():
                    raise
                message = (
                    f"call {call_id} goes on after {timeout_s:g} s: ask again with `mesh wait`"
                )
                raise CallTimeoutError(message, call_id=call_id, timeout_s=timeout_s) from None


async def _print(call: "Call", started: float, show: _Show) -> None:
    if show.as_json:
        await _print_json(call, started, show.output)
    else:
        await _print_text(call, raw=show.raw)
        await _save_and_tell(call, show.output)


async def _print_text(call: "Call", *, raw: bool) -> None:
    async for part in call.text():
        sys.stdout.write(part if raw else exits.plain(part))
        sys.stdout.flush()
    if not raw:
        sys.stdout.write("\n")


async def _print_json(call: "Call", started: float, output: Path | None) -> None:
    import orjson

    frame = await call.result()
    reply = await call.reply()
    line: dict[str, Any] = {
        "call_id": call.id,
        "agent": call.agent,
        "node": frame.node,
        "attempt": frame.attempt,
        "content": reply.content,
        "finish_reason": reply.finish_reason,
        "tool_calls": reply.tool_calls,
        "usage": reply.usage.model_dump(),
        "duration_ms": round((time.monotonic() - started) * 1000),
    }
    if saved := await _save(call, output):
        file, path = saved
        known = {"name": file.name, "size_bytes": file.size_bytes, "sha256": file.sha256}
        line["file"] = {**known, "saved_to": str(path) if path else None}
    typer.echo(orjson.dumps(line).decode())


async def _save_and_tell(call: "Call", output: Path | None) -> None:
    """Save the file of an answer, or tell that there is one."""
    if (saved := await _save(call, output)) is None:
        return
    file, path = saved
    what = f"{exits.plain(file.name) or 'a file'} ({file.size_bytes} bytes)"
    if path is not None:
        typer.echo(f"{what} is in {path}", err=True)
    else:
        typer.echo(f"{what} comes with it: `mesh wait {call.id} -o PATH` saves it", err=True)


async def _save(call: "Call", output: Path | None) -> "tuple[Attachment, Path | None] | None":
    from mesh.errors import CallError, InvalidInputError

    file = await call.file()
    if file is None:
        if output is not None:
            raise CallError(f"agent {call.agent!r} has answered without a file", agent=call.agent)
        return None
    try:
        return file, await file.save(output) if output is not None else None
    except OSError as error:
        message = f"cannot write {output}: {error.strerror or error}"
        raise InvalidInputError(message, field="output") from None


def _require_folder(output: Path | None) -> None:
    """It would be a pity to find that out after the call."""
    from mesh.errors import InvalidInputError

    if output is not None and not output.parent.is_dir():
        raise InvalidInputError(f"there is no folder {output.parent}", field="output")


async def _chat(agent: str, node: str | None, timeout_s: float) -> None:
    from mesh.cli.sessions import open_session
    from mesh.settings import Settings

    async with open_session(Settings.from_env()) as client:
        client.directory.require_target(agent, node)
        typer.echo(f"Talking with {agent}. Ctrl-D ends it.", err=True)
        messages: list[dict[str, str]] = []
        while (line := await _read_line()) is not None:
            if line.strip():
                messages.append({"role": "user", "content": line})
                await _turn(client, agent, node, timeout_s, messages)


async def _turn(
    client: "MeshClient",
    agent: str,
    node: str | None,
    timeout_s: float,
    messages: list[dict[str, str]],
) -> None:
    from mesh.errors import CallError

    answer = ""
    question = {"messages": messages}
    try:
        async for part in client.stream(agent, question, node=node, timeout_s=timeout_s):
            answer += part
            sys.stdout.write(exits.plain(part))
            sys.stdout.flush()
        messages.append({"role": "assistant", "content": answer})
    except CallError as error:
        # One failed answer does not end the conversation.
        messages.pop()
        typer.echo(f"mesh: {exits.plain(error.message)}", err=True)
    typer.echo()


async def _read_line() -> str | None:
    import asyncio

    prompt = "> " if sys.stdin.isatty() else ""
    try:
        return await asyncio.to_thread(input, prompt)
    except EOFError:
        return None
