"""`mesh demo`: a mesh of two nodes on this machine, and a call across it, three ways."""

import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mesh.cli import exits

if TYPE_CHECKING:
    from mesh.cli.keeper import BrokerKeeper
    from mesh.settings import Settings
    from mesh.supervisor import Supervisor

QUESTION = "Is the day longer in Kyiv or in Lisbon on 2026-06-21?"


def demo(
    once: Annotated[bool, typer.Option("--once", help="Stop after the tour.")] = False,
    verbose: Annotated[
        bool, typer.Option("--verbose", "-v", help="Show what the parts log.")
    ] = False,
) -> None:
    """Start a two-node mesh and ask across it: by command, by subject, by OpenAI client.

    It takes free ports and a temporary folder, and leaves nothing behind.
    """
    exits.run(_demo(once, verbose))


async def _demo(once: bool, verbose: bool) -> None:
    import tempfile
    from contextlib import ExitStack
    from dataclasses import replace
    from pathlib import Path

    from mesh.cli import parts
    from mesh.cli.keeper import BrokerKeeper
    from mesh.cli.signals import stop_on_signals
    from mesh.cli.up import broker_log, print_line, run_until
    from mesh.settings import Settings
    from mesh.supervisor import Supervisor

    stop = stop_on_signals()
    silent: Callable[[str, str], None] = lambda part, line: None  # noqa: E731
    with ExitStack() as held:
        folder = held.enter_context(tempfile.TemporaryDirectory(prefix="mesh-demo-"))
        any_ports = Settings(
            nats_port=0,
            nats_monitor_port=0,
            data_dir=Path(folder),
            node="node1",
            http_ports=(0,),
        )
        settings = held.enter_context(parts.held_ports(any_ports))
        node2 = held.enter_context(parts.held_ports(replace(any_ports, node="node2")))
        keeper = BrokerKeeper(settings, on_log=broker_log(verbose=verbose))
        on_line = print_line if verbose else silent
        async with keeper.running(), Supervisor(on_line=on_line) as supervisor:
            await _start(supervisor, settings, node2, keeper)
            await _tour(settings, node2, keeper.url)
            if not once:
                _invite(settings, keeper.url)
                await run_until(stop, keeper, supervisor.gave_up)


async def _start(
    supervisor: "Supervisor", settings: "Settings", node2: "Settings", keeper: "BrokerKeeper"
) -> None:
    """Start both nodes: each has its router and its agents."""
    from mesh.cli import parts

    started = time.monotonic()
    url = keeper.url
    await supervisor.start(parts.control(settings, url))
    await supervisor.start_all(
        [
            parts.http(settings, url, name="router1", monitor_url=keeper.monitor_url),
            parts.http(node2, url, name="router2", monitor_url=keeper.monitor_url),
            parts.host("agents1", settings, url, "handlers.daarwizz:agent", "handlers.echo:agent"),
            parts.host("agents2", node2, url, "handlers.solarius:agent"),
        ]
    )
    typer.echo(f"Two nodes are up after {time.monotonic() - started:.1f} s, broker inside:")
    typer.echo(f"  node1  daarwizz, echo   router http://127.0.0.1:{settings.http_ports[0]}/v1")
    typer.echo(f"  node2  solarius         router http://127.0.0.1:{node2.http_ports[0]}/v1")
    typer.echo(f"  broker {url}\n")


async def _tour(settings: "Settings", node2: "Settings", url: str) -> None:
    typer.echo("daarwizz on node1 knows nothing of the sun; it asks solarius on node2.\n")
    await _by_command(url)
    await _by_subject(url)
    await _by_http(node2)


async def _by_command(url: str) -> None:
    import asyncio
    import os

    _show("by command", f'mesh send daarwizz "{QUESTION}"')
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "mesh", "send", "daarwizz", QUESTION),
        env={**os.environ, "MESH_NATS_URL": url},
        stdout=asyncio.subprocess.PIPE,
    )
    output, _ = await process.communicate()
    _answer(output.decode())


async def _by_subject(url: str) -> None:
    import asyncio

    import nats

    _show("by subject, from any NATS client", "publish to agent.daarwizz.inbox")
    client = await nats.connect(url)
    try:
        replies = await client.subscribe("agent.daarwizz.reply")
        await client.publish("agent.daarwizz.inbox", QUESTION.encode())
        message = await asyncio.wait_for(replies.next_msg(timeout=20), 21)
        _answer(message.data.decode())
    finally:
        await client.close()


async def _by_http(node2: "Settings") -> None:
    import httpx2

    base = f"http://127.0.0.1:{node2.http_ports[0]}/v1"
    _show("by any OpenAI client, at node2's router", f'{base}, model="daarwizz"')
    body: dict[str, Any] = {
        "model": "daarwizz",
        "messages": [{"role": "user", "content": QUESTION}],
    }
    async with httpx2.AsyncClient(timeout=30, trust_env=False) as client:
        response = await client.post(f"{base}/chat/completions", json=body)
        response.raise_for_status()
        _answer(response.json()["choices"][0]["message"]["content"])


def _show(way: str, what: str) -> None:
    typer.echo(f"{way}:\n  $ {what}" if way == "by command" else f"{way}:\n  {what}")


def _answer(text: str) -> None:
    typer.echo(f"  {exits.plain(text.strip())}\n")


def _invite(settings: "Settings", url: str) -> None:
    typer.echo("The mesh stays up until Ctrl-C. In another terminal:")
    typer.echo(f"  export MESH_NATS_URL={url}")
    typer.echo('  mesh agents; mesh send solarius "When does the sun set in Odesa?"')
    typer.echo(f"  curl http://127.0.0.1:{settings.http_ports[0]}/v1/models")
