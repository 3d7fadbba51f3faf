"""`mesh join`: make this machine a node of a mesh elsewhere, and serve its door."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mesh.cli import exits

if TYPE_CHECKING:
    from mesh.settings import Settings

_LONGEST_PATH = 255


def join(
    token: Annotated[
        str,
        typer.Argument(
            metavar="TOKEN|URL",
            help="What `mesh keys invite` has printed, a file with it, - for stdin; or the address "
            "of an open mesh, such as nats://10.0.0.1:4222.",
        ),
    ],
    node: Annotated[
        str, typer.Option("--node", "-n", help="Name of this machine, in an open mesh.")
    ] = "",
    only_keep: Annotated[
        bool, typer.Option("--only-keep", help="Do not start the OpenAI door; `mesh up` does.")
    ] = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Log more.")] = False,
) -> None:
    """Make this machine a node of a mesh elsewhere, and open an OpenAI door on its loopback.

    Connections only go out: it works from behind NAT. A token works once; what comes of it is kept
    in the data directory, so that `mesh run`, `mesh send` and later `mesh up` need nothing else.
    """
    from mesh.cli import logs

    logs.set_up(verbose=verbose)
    exits.run(_join(token, node))
    from mesh.cli.up import next_step, run_all
    from mesh.settings import Settings

    settings = Settings.from_env()
    if only_keep:
        typer.echo(f"Next: {next_step(settings)}.", err=True)
    else:
        exits.run(run_all(settings, verbose=verbose))


async def _join(token: str, node: str) -> None:
    from mesh.joining import join_open, join_with_token
    from mesh.settings import Settings
    from mesh.trust.invites import JoinToken

    settings = Settings.from_env()
    _require_no_hub(settings)
    if "://" in token:
        await join_open(token, _named(settings, node))
        typer.echo(f"joined {token} as {node or settings.node}", err=True)
        return
    name = await join_with_token(JoinToken.parse(_read(token)), settings.data_dir)
    typer.echo(f"joined as {name}", err=True)


def _named(settings: "Settings", node: str) -> "Settings":
    from dataclasses import replace

    from mesh import subjects

    return replace(settings, node=subjects.require_id(node, "node")) if node else settings


def _require_no_hub(settings: "Settings") -> None:
    from mesh.errors import CredentialsError
    from mesh.trust.keyring import Keyring

    if Keyring.exists(settings.keys_dir):
        raise CredentialsError(
            f"this machine is the hub of a mesh itself, with keys in {settings.keys_dir}: set "
            "MESH_DATA_DIR to another folder to join with",
            path=str(settings.keys_dir),
        )


def _read(token: str) -> str:
    import sys

    from mesh.errors import InvalidInputError
    from mesh.trust.invites import PREFIX

    if token == "-":
        return sys.stdin.read()
    is_path = len(token) <= _LONGEST_PATH and ("/" in token or "." in token)
    if token.startswith(PREFIX) or not (is_path or Path(token[:_LONGEST_PATH]).is_file()):
        return token
    try:
        return Path(token).read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        raise InvalidInputError(
            f"{token} is no join token, and no file that can be read ({error.strerror})",
            field="token",
        ) from None
