"""`mesh up`: the broker, the control plane and the HTTP shim, or one of them alone."""

import time
from contextlib import asynccontextmanager, nullcontext
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

from mesh.cli import exits

if TYPE_CHECKING:
    import asyncio
    from collections.abc import AsyncIterator, Mapping

    from mesh.broker import OnLog
    from mesh.cli.keeper import BrokerKeeper
    from mesh.settings import Settings
    from mesh.supervisor import Part


class Only(StrEnum):
    """A part that can be started alone."""

    BROKER = "broker"
    CONTROL = "control"
    HTTP = "http"


def up(
    only: Annotated[Only | None, typer.Argument(help="Start this part alone.")] = None,
    node: Annotated[
        str, typer.Option("--node", "-n", help="Name of this machine in the mesh.")
    ] = "",
    open_to_network: Annotated[
        bool,
        typer.Option(
            "--open-to-network", help="Listen beyond loopback although nobody is asked who he is."
        ),
    ] = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Log more.")] = False,
) -> None:
    """Start a mesh: broker, registrar and OpenAI door, on this machine's loopback.

    With MESH_NATS_URL set it uses that broker instead of starting one; on a machine that has joined
    (`mesh join`) it is the door alone. Ctrl-C stops everything; what agents were sent stays in the
    data directory and is there after the next start.
    """
    from dataclasses import replace

    from mesh import subjects
    from mesh.cli import logs
    from mesh.errors import MeshError
    from mesh.settings import Settings

    logs.set_up(verbose=verbose)
    try:
        settings = Settings.from_env()
        if node:
            settings = replace(settings, node=subjects.require_id(node, "node"))
        if open_to_network:
            settings = replace(settings, is_open_to_network=True)
    except MeshError as error:
        exits.fail(error)
    match only:
        case Only.CONTROL:
            exits.run(_run_control(settings))
        case Only.HTTP:
            exits.run(_run_http(settings))
        case _:
            exits.run(run_all(settings, broker_only=only is Only.BROKER, verbose=verbose))


async def _run_control(settings: "Settings") -> None:
    from handlers.control import create_app
    from mesh.cli import parts
    from mesh.supervisor import report_ready
    from mesh.trust.users import CONTROL

    settings = parts.logged_in_as(CONTROL, settings)
    await create_app(settings, on_ready=report_ready).run()


async def _run_http(settings: "Settings") -> None:
    from dataclasses import replace

    from mesh import heap
    from mesh.cli import parts
    from mesh.shim.server import serve
    from mesh.supervisor import report_ready
    from mesh.trust.users import DOOR

    settings = parts.logged_in_as(DOOR, settings)

    def on_ready(ports: list[int]) -> None:
        heap.settle()
        if not report_ready():
            opened = replace(settings, http_ports=tuple(ports))
            _show(opened, parts.doors(opened))

    await serve(settings, on_ready=on_ready)


async def run_all(settings: "Settings", *, broker_only: bool = False, verbose: bool) -> None:
    """Run a mesh, or a node of one, until Ctrl-C."""
    from mesh.cli import parts
    from mesh.cli.keeper import BrokerKeeper
    from mesh.cli.signals import stop_on_signals
    from mesh.supervisor import Supervisor

    started = time.monotonic()
    stop = stop_on_signals()
    ports = nullcontext(settings) if broker_only else parts.held_ports(settings)
    with ports as opened:
        keeper = BrokerKeeper(opened, on_log=broker_log(verbose=verbose))
        async with (
            _interrupted_by(stop) as starting,
            keeper.running(),
            Supervisor(on_line=print_line) as supervisor,
        ):
            try:
                if not broker_only:
                    await supervisor.start_all(_parts(opened, keeper))
            finally:
                starting.cancel()  # What is put away from here on is put away to the end.
            _greet(opened, keeper, broker_only, time.monotonic() - started)
            await run_until(stop, keeper, supervisor.gave_up)
            typer.echo("stopping …", err=True)


def _parts(settings: "Settings", keeper: "BrokerKeeper") -> "list[Part]":
    from mesh.cli import parts
    from mesh.trust.login import Login

    shim = parts.http(settings, keeper.url, monitor_url=keeper.monitor_url)
    # Who has joined, or is a node by its credentials, has the control plane of the hub.
    is_node = settings.is_joined or Login.of(settings).is_guarded
    return [shim] if is_node else [parts.control(settings, keeper.url), shim]


@asynccontextmanager
async def _interrupted_by(stop: "asyncio.Event") -> "AsyncIterator[asyncio.Task[None]]":
    """Break off what is done here when `stop` is set, until the task that it gives is cancelled.

    A server with much to read, or one that is never ready, takes its time.
    """
    import asyncio

    from mesh.errors import MeshError

    ours = asyncio.current_task()
    assert ours is not None, "there is a task wherever somebody waits"
    is_broken_off = False

    async def watch() -> None:
        nonlocal is_broken_off
        await stop.wait()
        is_broken_off = True
        ours.cancel()

    watching = asyncio.create_task(watch())
    try:
        yield watching
    except asyncio.CancelledError as error:
        if not is_broken_off or ours.uncancel():
            raise
        if isinstance(error.__context__, MeshError):
            # It had failed, and its clean-up was broken off.
            raise error.__context__ from None
        typer.echo("stopping …", err=True)
    finally:
        watching.cancel()


async def run_until(
    stop: "asyncio.Event", keeper: "BrokerKeeper", gave_up: "asyncio.Event"
) -> None:
    """Keep the broker alive until `stop` is set.

    Raises:
        EmbeddedBrokerError: it cannot be kept alive.
        CredentialsError: it lets this machine in no more, and a part gave up.
    """
    import asyncio

    from mesh.errors import CredentialsError

    watching = asyncio.create_task(keeper.watch())
    ends = {watching, asyncio.create_task(stop.wait()), asyncio.create_task(gave_up.wait())}
    await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
    if watching.done():
        watching.result()
    for one in ends:
        one.cancel()
    if gave_up.is_set() and not stop.is_set():
        raise CredentialsError("this machine is let into the mesh no more: join again", path="")


def broker_log(*, verbose: bool) -> "OnLog":
    """Return what prints the broker's log: warnings and worse, everything with `verbose`."""

    def on_log(level: str, message: str) -> None:
        if verbose or level in ("WRN", "ERR", "FTL"):
            print_line("broker", message)

    return on_log


def print_line(part: str, line: str) -> None:
    """Print what a part says, with the time and its name in front; or as JSON that has both."""
    from mesh.log_lines import is_json, of_part

    if is_json():
        typer.echo(of_part(part, exits.plain(line)), err=True)
        return
    typer.echo(f"{time.strftime('%H:%M:%S')} {part:<8} {exits.plain(line)}", err=True)


def _greet(settings: "Settings", keeper: "BrokerKeeper", broker_only: bool, took_s: float) -> None:
    from mesh.cli import parts

    typer.echo(f"mesh is up on {settings.node} after {took_s:.1f} s")
    shown = {"NATS": keeper.url}
    if settings.leaf_port:
        shown["sites"] = f"tls://{settings.nats_host}:{settings.leaf_port}"
    if keeper.monitor_url:
        shown["broker"] = f"{keeper.monitor_url}/varz"
    if not broker_only:
        shown |= parts.doors(settings)
    if not settings.is_broker_external:
        shown["data"] = str(settings.data_dir)
    _show(settings, shown)


def _show(settings: "Settings", addresses: "Mapping[str, str]") -> None:
    for name, address in addresses.items():
        typer.echo(f"  {name:<8} {address}")
    typer.echo(f"Next: {next_step(settings)}. Ctrl-C stops.")


def next_step(settings: "Settings") -> str:
    """Say what can be run here: in a secure mesh that is not everything."""
    from mesh.trust.keyring import Keyring
    from mesh.trust.login import Login

    credentials = Login.of(settings).credentials
    if credentials is None:
        return 'mesh run handlers.echo:agent, then mesh send echo "hello"'
    if Keyring.exists(settings.keys_dir):
        return "mesh keys agent echo, then mesh run handlers.echo:agent"
    agents = ", ".join(credentials.grant.agents[:8])
    return f"mesh run MODULE:AGENT, for {agents}" if agents else "mesh send AGENT TEXT"
