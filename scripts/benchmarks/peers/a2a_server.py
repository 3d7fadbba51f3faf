"""An echo agent of the A2A SDK, put together as its examples do: Starlette on uvicorn, JSON-RPC.

Answers with one message, which is the least work that the SDK knows, and logs no access. In the
environment of `scripts/setup peers`.
"""

import socket

import uvicorn
from a2a.helpers import get_message_text, new_text_message
from a2a.server.agent_execution import AgentExecutor, RequestContext
from a2a.server.events import EventQueue
from a2a.server.request_handlers import DefaultRequestHandler
from a2a.server.routes import create_agent_card_routes, create_jsonrpc_routes
from a2a.server.tasks import InMemoryTaskStore
from a2a.types import AgentCapabilities, AgentCard, AgentInterface, AgentSkill
from starlette.applications import Starlette


class Echo(AgentExecutor):
    """Repeats the message."""

    async def execute(self, context: RequestContext, event_queue: EventQueue) -> None:
        """Answer at once."""
        text = get_message_text(context.message) if context.message else ""
        await event_queue.enqueue_event(new_text_message(text, context_id=context.context_id))

    async def cancel(self, context: RequestContext, event_queue: EventQueue) -> None:
        """Do nothing: everything is answered at once."""


def card_of(url: str) -> AgentCard:
    """Return the card of the agent."""
    skill = AgentSkill(id="echo", name="echo", description="Repeats.", tags=["echo"])
    spoken = AgentInterface(url=url, protocol_binding="JSONRPC", protocol_version="1.0")
    return AgentCard(
        name="echo",
        description="Repeats the message.",
        version="1.0.0",
        supported_interfaces=[spoken],
        capabilities=AgentCapabilities(streaming=False),
        default_input_modes=["text/plain"],
        default_output_modes=["text/plain"],
        skills=[skill],
    )


def create_app(url: str) -> Starlette:
    """Make the application that serves the card and answers."""
    card = card_of(url)
    handler = DefaultRequestHandler(Echo(), InMemoryTaskStore(), card)
    routes = [*create_agent_card_routes(card), *create_jsonrpc_routes(handler, "/")]
    return Starlette(routes=routes)


def main() -> None:
    """Serve on a free port, until SIGTERM. Says where."""
    with socket.create_server(("127.0.0.1", 0), backlog=2048) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        print(f"listening on {url}", flush=True)
        # By default it closes idle connections when httpx does, and requests are lost in between.
        config = uvicorn.Config(
            create_app(url), access_log=False, log_level="warning", timeout_keep_alive=65
        )
        uvicorn.Server(config).run(sockets=[listener])


if __name__ == "__main__":
    main()
