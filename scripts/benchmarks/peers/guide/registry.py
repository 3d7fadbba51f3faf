"""The node registry: `uvicorn scripts.benchmarks.peers.guide.registry:app --port 9205`."""

from typing import Any

from fastapi import FastAPI, HTTPException
from pydantic import BaseModel

app = FastAPI(title="Node Registry")
nodes: dict[str, "Node"] = {}
agents: dict[str, "Agent"] = {}


class Node(BaseModel):
    """A machine, and where its router listens."""

    node: str
    router: str


class Agent(BaseModel):
    """An agent, as its node registers it."""

    agent_id: str
    node: str
    endpoint: str
    model: str


@app.get("/health")
async def health() -> dict[str, str]:
    """Say that the process lives."""
    return {"status": "ok"}


@app.post("/api/v1/nodes")
async def register_node(node: Node) -> Node:
    """Take in a node."""
    nodes[node.node] = node
    return node


@app.get("/api/v1/nodes")
async def list_nodes() -> list[Node]:
    """Return every node."""
    return list(nodes.values())


@app.post("/api/v1/agents")
async def register_agent(agent: Agent) -> Agent:
    """Take in an agent."""
    agents[agent.agent_id] = agent
    return agent


@app.get("/api/v1/agents")
async def list_agents() -> list[Agent]:
    """Return every agent."""
    return list(agents.values())


@app.get("/api/v1/agent/{agent_id}")
async def get_agent(agent_id: str) -> dict[str, Any]:
    """Return one agent, with the router of its node."""
    agent = agents.get(agent_id)
    if agent is None or agent.node not in nodes:
        raise HTTPException(404, f"agent {agent_id} is not registered")
    return {**agent.model_dump(), "router": nodes[agent.node].router}
