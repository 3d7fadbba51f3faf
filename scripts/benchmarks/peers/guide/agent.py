"""An agent: `uvicorn scripts.benchmarks.peers.guide.agent:app --port 9300`.

`AGENT_ID` is its id, `AGENT_URL` its own address, `ROUTER_URL` the router of its node.
"""

import os
import time
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
from fastapi import FastAPI, HTTPException
from pydantic import BaseModel, ConfigDict

AGENT_ID = os.environ["AGENT_ID"]
AGENT_URL = os.environ["AGENT_URL"]
ROUTER_URL = os.environ["ROUTER_URL"]


class ChatRequest(BaseModel):
    """What a router delivers."""

    model_config = ConfigDict(extra="allow")

    messages: list[dict[str, Any]]


@asynccontextmanager
async def lifespan(_: FastAPI) -> AsyncIterator[None]:
    """Register with the router of this node at start."""
    agent = {"agent_id": AGENT_ID, "endpoint": AGENT_URL, "model": AGENT_ID}
    async with httpx.AsyncClient() as client:
        (await client.post(f"{ROUTER_URL}/agents", json=agent)).raise_for_status()
    yield


app = FastAPI(title=AGENT_ID, lifespan=lifespan)


@app.post("/api/agent/{agent_id}/chat")
async def chat(agent_id: str, request: ChatRequest) -> dict[str, Any]:
    """Repeat the last message, as an OpenAI completion."""
    if agent_id != AGENT_ID:
        raise HTTPException(404, f"{agent_id} does not run here")
    message = {"role": "assistant", "content": request.messages[-1]["content"]}
    return {
        "id": f"chatcmpl-{uuid.uuid4().hex}",
        "object": "chat.completion",
        "created": int(time.time()),
        "model": AGENT_ID,
        "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0},
    }
