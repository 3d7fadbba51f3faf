"""`mesh keys init|certificate|export`: the keys of a mesh, and what its servers are given."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mesh.cli import exits

if TYPE_CHECKING:
    from mesh.settings import Settings


def init(
    host: Annotated[
        list[str] | None,
        typer.Option(
            "--host", help="Name or address under which other machines reach this one. Repeatable."
        ),
    ] = None,
) -> None:
    """Make the keys of a mesh: from the next `mesh up` on, who comes must show credentials.

    With --host, the broker also gets a certificate for that name, and speaks TLS.
    """
    exits.run(_init(host or []))


def certificate(
    hosts: Annotated[
        list[str], typer.Argument(metavar="HOST...", help="Names or addresses of this machine.")
    ],
) -> None:
    """Make a certificate for the hub, so that other machines can reach it; also a new one."""
    exits.run(_certificate(hosts))


def export(
    folder: Annotated[Path, typer.Argument(help="Where to write a folder for each server.")],
    servers: Annotated[
        list[str],
        typer.Argument(metavar="NAME=HOST[:PORT]...", help="The servers, such as n1=10.0.0.1."),
    ],
) -> None:
    """Write what the servers of a secure cluster need: a folder for each, to be copied there.

    Clients come to PORT (4222), other servers to PORT + 2000; monitoring is on PORT + 4000, for the
    machine itself.
    """
    exits.run(_export(folder, servers))


async def _init(hosts: list[str]) -> None:
    from mesh.settings import Settings
    from mesh.trust.certificates import write_server_certificate
    from mesh.trust.keyring import Keyring

    settings = Settings.from_env()
    keyring = Keyring.create(settings.keys_dir, hosts)
    if hosts:
        write_server_certificate(settings.keys_dir, [*hosts, *_own_address(settings)])
    typer.echo(
        f"the keys of the mesh are in {keyring.folder}: whoever has them owns it. Back them up."
    )
    typer.echo("Next: mesh up, then mesh keys agent AGENT for what runs here,")
    typer.echo("      and mesh keys invite NODE --agents AGENT for another machine.")


def _own_address(settings: "Settings") -> list[str]:
    """Where the processes of the hub itself find the broker, unless that is loopback."""
    from mesh.settings import EVERY_ADDRESS

    return [] if settings.nats_host in EVERY_ADDRESS else [settings.nats_host]


async def _certificate(hosts: list[str]) -> None:
    from mesh.settings import Settings, server_certificate
    from mesh.trust.certificates import write_server_certificate
    from mesh.trust.keyring import Keyring

    settings = Settings.from_env()
    keyring = Keyring.open(settings.keys_dir)
    write_server_certificate(settings.keys_dir, [*hosts, *_own_address(settings)])
    keyring.with_hosts(hosts)
    typer.echo(server_certificate(settings.keys_dir))
    typer.echo("Start `mesh up` again: it speaks TLS with it then.", err=True)


async def _export(folder: Path, given: list[str]) -> None:
    from mesh.server_folders import Server, write_server_folders
    from mesh.settings import Settings
    from mesh.trust.keyring import Keyring

    settings = Settings.from_env()
    servers = [Server.parse(one) for one in given]
    for written in write_server_folders(Keyring.open(settings.keys_dir), folder, servers):
        typer.echo(written)
    urls, copies = ",".join(one.url for one in servers), 3 if len(servers) >= 3 else 1
    typer.echo("Copy each to its machine, and start it there, in the folder:", err=True)
    typer.echo("  . ./server.env && nats-server -c server.conf", err=True)
    typer.echo("Then, where the keys are:", err=True)
    typer.echo(f"  export MESH_NATS_URL={urls} MESH_REPLICAS={copies}", err=True)
    typer.echo("  mesh up", err=True)
