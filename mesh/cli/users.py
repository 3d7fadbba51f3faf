"""`mesh keys agent|node|user|invite|users|rotate|revoke`: who is let into a secure mesh.

The keys lie on the hub. What is changed here the broker and the registry are told at once, if they
run; else the hub reads it at its start.
"""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from mesh.cli import exits
from mesh.cli.durations import seconds
from mesh.cli.tables import print_json, print_table

if TYPE_CHECKING:
    from mesh.settings import Settings
    from mesh.trust.grants import Grant
    from mesh.trust.invites import Invite
    from mesh.trust.keyring import Keyring
    from mesh.trust.users import User

AsJson = Annotated[bool, typer.Option("--json", "-j", help="Print JSON.")]
Agents = Annotated[str, typer.Option("--agents", "-a", help="The agents it may run, with commas.")]
Events = Annotated[
    list[str] | None,
    typer.Option("--on", help="An event they may hear, as SOURCE.NAME. Repeatable."),
]
Name = Annotated[str, typer.Argument(help="As `mesh keys users` shows it.")]


def agent(
    agents: Annotated[list[str], typer.Argument(metavar="AGENT...", help="Whom it may run.")],
    node: Annotated[str, typer.Option("--node", "-n", help="Where; by default here.")] = "",
    name: Annotated[
        str, typer.Option("--name", help="What to call the credentials; by default as the agent.")
    ] = "",
    on: Events = None,
    as_json: AsJson = False,
) -> None:
    """Make credentials to run agents on a node."""
    exits.run(_agent(agents, node, name or agents[0], on or [], as_json), as_json=as_json)


def user(
    name: Annotated[str, typer.Argument(help="The name under which the person calls agents.")],
    as_json: AsJson = False,
) -> None:
    """Make credentials for a person, who calls agents and runs none."""
    exits.run(_user(name, as_json), as_json=as_json)


def node(
    name: Annotated[str, typer.Argument(metavar="NODE", help="What it is called in the mesh.")],
    agents: Agents = "",
    on: Events = None,
    as_json: AsJson = False,
) -> None:
    """Make credentials for a machine, or a whole site, which runs agents and calls as itself.

    A machine that runs `mesh join` makes its own: see `mesh keys invite`.
    """
    exits.run(_node(name, agents, on or [], as_json), as_json=as_json)


def invite(
    node: Annotated[str, typer.Argument(help="What to call the machine in the mesh.")],
    agents: Agents = "",
    on: Events = None,
    expires: Annotated[
        str, typer.Option("--expires", "-e", help="How long the token can be used.")
    ] = "1h",
    url: Annotated[
        str, typer.Option("--url", help="Where the machine finds this hub, with commas.")
    ] = "",
    as_json: AsJson = False,
) -> None:
    """Print a token with which one machine can join, once: `mesh join TOKEN`, over there."""
    exits.run(_invite(node, agents, on or [], expires, url, as_json), as_json=as_json)


def users(as_json: AsJson = False) -> None:
    """List everybody who was given credentials."""
    exits.run(_users(as_json), as_json=as_json)


def rotate(name: Name, as_json: AsJson = False) -> None:
    """Make new credentials for somebody; the old ones are cut off at once."""
    exits.run(_rotate(name, as_json), as_json=as_json)


async def _agent(agents: list[str], node: str, name: str, events: list[str], as_json: bool) -> None:
    from mesh.settings import Settings
    from mesh.trust.grants import Grant
    from schemas.registry import UserRole

    settings = Settings.from_env()
    grant = Grant(node or settings.node, tuple(agents), _durables(agents, events))
    await _issue(settings, name, UserRole.AGENT, grant, as_json)


async def _invite(
    node: str, agents: str, events: list[str], expires: str, url: str, as_json: bool
) -> None:
    from mesh.errors import InvalidInputError
    from mesh.settings import Settings, authority
    from mesh.trust.grants import Grant
    from mesh.trust.invites import JoinToken

    settings = Settings.from_env()
    keyring = _keyring(settings)
    if node == settings.node:
        raise InvalidInputError(f"{node} is this machine itself: name the other one", field="node")
    named = _split(agents)
    grant = Grant(node, tuple(named), _durables(named, events))
    made, credentials = keyring.invite(grant, lifetime_s=seconds(expires))
    path = authority(settings.keys_dir)
    certificate = path.read_text() if path.exists() else ""
    token = JoinToken(url or _url(settings, keyring), node, certificate, credentials)
    if as_json:
        shown = {"node": node, "agents": named, "expires_at_s": made.expires_at_s}
        print_json({**shown, "url": token.url, "token": token.text()})
        return
    typer.echo(token.text())
    typer.echo(
        f"For {node}, once, within {expires}: mesh join TOKEN. It finds the hub at {token.url}.",
        err=True,
    )


def _split(agents: str) -> list[str]:
    return [one.strip() for one in agents.split(",")] if agents else []


def _url(settings: "Settings", keyring: "Keyring") -> str:
    """Return where others reach the broker, as far as the hub knows."""
    from urllib.parse import urlsplit

    if settings.is_broker_external:
        return settings.nats_url
    port = urlsplit(settings.nats_url).port
    urls = [f"tls://{host}:{port}" for host in keyring.hosts]
    if settings.websocket_port:
        urls += [f"wss://{host}:{settings.websocket_port}" for host in keyring.hosts]
    return ",".join(urls) or settings.nats_url


def _durables(agents: list[str], events: list[str]) -> tuple[str, ...]:
    from mesh import streams
    from mesh.errors import InvalidInputError

    found = []
    for event in events:
        source, has_name, what = event.partition(".")
        if not has_name:
            raise InvalidInputError(f"--on: {event[:60]!r} is no SOURCE.NAME", field="on")
        found += [streams.event_durable(one, source, what) for one in agents]
    return tuple(found)


async def _user(name: str, as_json: bool) -> None:
    from mesh.settings import Settings
    from mesh.trust.grants import Grant
    from schemas.registry import UserRole

    await _issue(Settings.from_env(), name, UserRole.PERSON, Grant(callers=(name,)), as_json)


async def _node(name: str, agents: str, events: list[str], as_json: bool) -> None:
    from mesh.settings import Settings
    from mesh.trust.grants import Grant
    from schemas.registry import UserRole

    named = _split(agents)
    grant = Grant(name, tuple(named), _durables(named, events), callers=(name,))
    await _issue(Settings.from_env(), name, UserRole.NODE, grant, as_json)


async def _issue(settings: "Settings", name: str, role: Any, grant: "Grant", as_json: bool) -> None:
    keyring = _keyring(settings)
    made = keyring.issue(name, role, grant)
    await tell(settings, keyring)
    _show_made(keyring, made, as_json)


async def _rotate(name: str, as_json: bool) -> None:
    from mesh.settings import Settings

    settings = Settings.from_env()
    keyring = _keyring(settings)
    made = keyring.rotate(name)
    await tell(settings, keyring, cuts_off=not made.is_core)
    _show_made(keyring, made, as_json)
    if made.is_core:
        typer.echo("Start `mesh up` again: its processes log in with the new ones then.", err=True)


async def revoke(name: str, as_json: bool) -> bool:
    """Let somebody in no more; False where nobody is called so."""
    from mesh.errors import KeyNotFoundError
    from mesh.settings import Settings
    from mesh.trust.keyring import Keyring

    settings = Settings.from_env()
    if not Keyring.exists(settings.keys_dir):
        return False
    keyring = Keyring.open(settings.keys_dir)
    if was_invited := keyring.take_back(name):
        typer.echo(f"the invite of {name} is taken back", err=True)
    try:
        gone = keyring.revoke(name)
    except KeyNotFoundError:
        return was_invited
    await tell(settings, keyring, cuts_off=True)
    if as_json:
        print_json(_shown(gone))
    else:
        typer.echo(f"{gone.name} is revoked: its connections are cut off.")
    return True


async def _users(as_json: bool) -> None:
    from mesh.settings import Settings

    roster = _keyring(Settings.from_env()).roster
    found, invited = roster.users(), roster.open_invites()
    if as_json:
        print_json([*map(_shown, found), *map(_promised, invited)])
        return
    rows = [
        (one.name, one.role.value, one.node or "-", ", ".join(one.agents) or "-", _state(one))
        for one in found
    ]
    rows += [
        (one.node, "node", one.node, ", ".join(one.agents) or "-", "invited") for one in invited
    ]
    print_table(("NAME", "ROLE", "NODE", "AGENTS", "STATE"), rows)


async def tell(settings: "Settings", keyring: "Keyring", *, cuts_off: bool = False) -> None:
    """Tell the broker and the registry, if there are any that run."""
    from mesh.enrolment import cut_off, enrol
    from mesh.errors import BrokerUnreachableError, StreamMissingError

    try:
        await (cut_off if cuts_off else enrol)(settings, keyring)
    except (BrokerUnreachableError, StreamMissingError):
        typer.echo("Note: the mesh is not up; it reads this at its start.", err=True)


def _keyring(settings: "Settings") -> "Keyring":
    from mesh.trust.keyring import Keyring

    return Keyring.open(settings.keys_dir)


def _show_made(keyring: "Keyring", made: "User", as_json: bool) -> None:
    path = keyring.credentials_path(made.name)
    if as_json:
        print_json({**_shown(made), "credentials": str(path)})
        return
    typer.echo(path)
    typer.echo(
        f"Credentials of {made.name}. On this machine they are found by themselves; elsewhere set "
        "MESH_CREDS to a copy that only its owner can read, MESH_NATS_URL to where this hub is, "
        "and MESH_TLS_CA to a copy of keys/tls/ca.pem if there is one.",
        err=True,
    )


def _shown(one: "User") -> dict[str, Any]:
    return {**one.model_dump(mode="json", exclude={"revoked"}), "state": _state(one)}


def _promised(one: "Invite") -> dict[str, Any]:
    shown = {"name": one.node, "role": "node", "node": one.node, "agents": list(one.agents)}
    return {**shown, "expires_at_s": one.expires_at_s, "state": "invited"}


def _state(one: "User") -> str:
    return "revoked" if one.is_revoked else "valid"
