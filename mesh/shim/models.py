"""The models endpoints: to OpenAI clients, agents are models. Source: the API reference, "Models".

Answers from memory, and keeps what it has written as long as it is true.
"""

from collections.abc import Callable
from datetime import datetime
from functools import partial
from typing import Any, Final

from starlette.types import Receive, Scope, Send

from mesh import codec
from mesh.errors import AgentNotFoundError, InvalidIdError
from mesh.shim.door import Door
from mesh.shim.failures import OF_AN_AGENT
from mesh.shim.guard import may_call, require_agent, sees_everybody
from mesh.shim.http import read_query, send_json
from mesh.shim.operations import EXAMPLE_AGENT, Answer, Operation, Parameter, Tag
from mesh.shim.target import split_model
from mesh.standing import AgentStanding
from schemas.door import ModelList, ModelObject
from schemas.registry import State

_ALL: Final = {"type": "string", "enum": ["0", "1"]}


class Models:
    """`GET /v1/models`: who can be called now; with `?all=1`, everybody who is known."""

    operations = (
        Operation(
            "listModels",
            "GET",
            "/v1/models",
            Tag.MODELS,
            "List the agents that can be asked now",
            parameters=(
                Parameter(
                    "all", "query", "`1` lists those too that are known and not running.", _ALL
                ),
            ),
            answers=(Answer(200, "The agents, by id.", ModelList),),
        ),
    )

    def __init__(self, door: Door) -> None:
        self._door = door
        self._bodies: dict[bool, tuple[int, bytes]] = {}
        """By `?all=1`, with the version of the directory that each was made of."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        shows_all = read_query(scope).get("all") == "1"
        if sees_everybody(scope):
            body = self._kept(shows_all)
        else:
            body = self._written(shows_all, partial(may_call, scope))
        await send_json(send, 200, body)

    def _kept(self, shows_all: bool) -> bytes:
        version, body = self._bodies.get(shows_all, (-1, b""))
        if version != (now := self._door.client.directory.version):
            body = self._written(shows_all, lambda _: True)
            self._bodies[shows_all] = (now, body)
        return body

    def _written(self, shows_all: bool, is_visible: Callable[[str], bool]) -> bytes:
        found = [
            model_object(one, one.id)
            for one in self._door.client.directory.standings()
            if (shows_all or one.state is not State.OFFLINE) and is_visible(one.id)
        ]
        return codec.dumps({"object": "list", "data": found})


class Model:
    """`GET /v1/models/{id}`: one agent, or one on one node."""

    operations = (
        Operation(
            "getModel",
            "GET",
            "/v1/models/{id:path}",
            Tag.MODELS,
            "Look an agent up as a model",
            parameters=(
                Parameter(
                    "id",
                    "path",
                    "An agent, or an agent and a node: `solarius@node2`.",
                    example=EXAMPLE_AGENT,
                ),
            ),
            answers=(Answer(200, "The agent.", ModelObject),),
            failures=OF_AN_AGENT,
        ),
    )

    def __init__(self, door: Door) -> None:
        self._door = door

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        name = scope["path_params"]["id"]
        directory = self._door.client.directory
        agent, node = split_model(name)
        require_agent(scope, agent)
        try:
            directory.require_target(agent, node)
        except InvalidIdError as error:
            # Clients probe for the models they know by heart, such as gpt-3.5-turbo.
            raise AgentNotFoundError(f"no agent: {error.message}", agent=name) from None
        await send_json(send, 200, codec.dumps(model_object(directory.standing(agent), name)))


def model_object(one: AgentStanding, name: str) -> dict[str, Any]:
    """Return an agent as a model called `name`."""
    return {
        "id": name,
        "object": "model",
        "created": _created(one.record.registered_at),
        "owned_by": "mesh",
        "name": f"{name} ({', '.join(one.nodes)})" if one.nodes else name,
    }


def _created(registered_at: str) -> int:
    try:
        return int(datetime.fromisoformat(registered_at).timestamp())
    except ValueError:
        return 0
