"""The router of a node: `uvicorn scripts.benchmarks.peers.guide.router:app --port 9102`.

`NODE` is its name, `ROUTER_URL` its own address, `REGISTRY_URL` the registry's.
"""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
from fastapi import FastAPI, HTTPException
from pydantic import BaseModel, ConfigDict

NODE = os.environ["NODE"]
ROUTER_URL = os.environ["ROUTER_URL"]
REGISTRY_URL = os.environ["REGISTRY_URL"]
TIMEOUT_S = 60.0

local_agents: dict[str, "LocalAgent"] = {}


class LocalAgent(BaseModel):
    """An agent of this node."""

    agent_id: str
    endpoint: str
    model: str


class ChatRequest(BaseModel):
    """The guide's request: OpenAI's, and who it is for and from."""

    model_config = ConfigDict(extra="allow")

    model: str
    messages: list[dict[str, Any]]
    agent_id: str | None = None
    target_node: str | None = None
    source_agent: str | None = None
    source_node: str | None = None


@asynccontextmanager
async def lifespan(_: FastAPI) -> AsyncIterator[None]:
    """Register this node at start."""
    async with httpx.AsyncClient() as client:
        node = {"node": NODE, "router": ROUTER_URL}
        (await client.post(f"{REGISTRY_URL}/api/v1/nodes", json=node)).raise_for_status()
    yield


app = FastAPI(title=f"DAGI Router {NODE}", lifespan=lifespan)


@app.get("/health")
async def health() -> dict[str, str]:
    """Say that the process lives."""
    return {"status": "ok", "node": NODE}


@app.post("/agents")
async def register(agent: LocalAgent) -> dict[str, str]:
    """Take in an agent of this node, and tell the registry."""
    local_agents[agent.agent_id] = agent
    record = {**agent.model_dump(), "node": NODE}
    async with httpx.AsyncClient() as client:
        (await client.post(f"{REGISTRY_URL}/api/v1/agents", json=record)).raise_for_status()
    return {"status": "registered"}


@app.post("/v1/chat/completions")
async def chat(request: ChatRequest) -> Any:
    """Deliver a request to an agent of this node, or to the router of the node that has it."""
    agent_id = request.agent_id or request.model
    body = request.model_dump(exclude_none=True)
    if (local := local_agents.get(agent_id)) is not None:
        return await post(f"{local.endpoint}/api/agent/{agent_id}/chat", body)
    found = await look_up(agent_id)
    return await post(
        f"{found['router']}/v1/chat/completions",
        {**body, "target_node": found["node"], "source_node": NODE},
    )


async def look_up(agent_id: str) -> Any:
    """Ask the registry where an agent is."""
    async with httpx.AsyncClient(timeout=TIMEOUT_S) as client:
        answer = await client.get(f"{REGISTRY_URL}/api/v1/agent/{agent_id}")
    if answer.status_code != 200:
        raise HTTPException(answer.status_code, answer.json()["detail"])
    return answer.json()


async def post(url: str, body: dict[str, Any]) -> Any:
    """Pass a request on, and return the answer."""
    async with httpx.AsyncClient(timeout=TIMEOUT_S) as client:
        answer = await client.post(url, json=body)
    if answer.status_code != 200:
        raise HTTPException(502, f"{url} answered {answer.status_code}")
    return answer.json()
