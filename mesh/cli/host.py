"""`mesh run`: an agent host."""

import io
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mesh.cli import exits

if TYPE_CHECKING:
    from mesh.agent import Agent

PATIENCE_S = 10.0


def run(
    targets: Annotated[list[str], typer.Argument(help="module:agent, one or more.")],
    node: Annotated[
        str, typer.Option("--node", "-n", help="Name of this machine in the mesh.")
    ] = "",
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Log more.")] = False,
) -> None:
    """Run agents until Ctrl-C; what they work on is finished first.

    The attribute is an Agent, a list of them, or a function that makes either.
    """
    from mesh.cli import logs

    logs.set_up(verbose=verbose)
    # What an agent prints must be seen when it prints it, also through a pipe.
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(line_buffering=True)
    exits.run(_run(targets, node))


async def _run(targets: list[str], node: str) -> None:
    import asyncio
    from dataclasses import replace

    from mesh import subjects
    from mesh.cli.signals import stop_on_signals
    from mesh.connection import open_connection
    from mesh.registry import require_registry
    from mesh.runtime import AgentHost
    from mesh.settings import Settings
    from mesh.streams import event_durable
    from mesh.supervisor import report_ready
    from mesh.trust.login import Login

    settings = Settings.from_env()
    if node:
        settings = replace(settings, node=subjects.require_id(node, "node"))
    agents = [agent for target in targets for agent in _load(target)]
    events = [event_durable(agent.id, *event) for agent in agents for event in agent.subscriptions]
    login = Login.of(settings, agents=[agent.id for agent in agents], events=events)
    name = f"mesh host {settings.node}"
    async with open_connection(login, name=name, patience_s=PATIENCE_S) as connection:
        await require_registry(connection, patience_s=PATIENCE_S)
        # Only now: until here Ctrl-C ends the wait for a broker at once.
        stop = stop_on_signals()
        host = AgentHost(connection, agents, node=settings.node, settings=settings)
        telling = asyncio.create_task(_tell_when_ready(host.ready, report_ready))
        try:
            await host.run(stop)
        finally:
            telling.cancel()


async def _tell_when_ready(ready: Any, report: Any) -> None:
    from mesh import heap

    await ready.wait()
    heap.settle()
    report()


def _load(target: str) -> "list[Agent]":
    from mesh.agent import Agent
    from mesh.errors import LoadError
    from mesh.loader import load, make

    found = load(target, folder=Path.cwd())
    if not isinstance(found, (Agent, list, tuple)) and callable(found):
        found = make(found, target)
    agents = list(found) if isinstance(found, (list, tuple)) else [found]
    for agent in agents:
        if not isinstance(agent, Agent):
            raise LoadError(f"{target} is no Agent, but {type(agent).__name__}", target=target)
        if agent.handler is None and not agent.subscriptions:
            raise LoadError(
                f"agent {agent.id!r} answers nothing: decorate a function with @agent.chat",
                target=target,
            )
    return agents
