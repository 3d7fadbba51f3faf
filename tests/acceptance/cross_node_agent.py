"""The guide's `CrossNodeAgent`, as its reader writes it: no library of the mesh, three addresses.

    python cross_node_agent.py ask|publish|chat AGENT TEXT

asks through the router, by NATS, or by direct HTTP, and prints the answer. Run by `test_guide.py`,
which changes the addresses and nothing else.
"""

import asyncio
import os
import sys

import httpx2
import nats

ROUTER = os.environ.get("ROUTER", "http://localhost:9102")
REGISTRY = os.environ.get("REGISTRY", "http://localhost:9205")
NATS = os.environ.get("NATS", "nats://localhost:4222")


class CrossNodeAgent:
    """An agent that contacts agents on other nodes, in each of the guide's ways."""

    def __init__(self, agent_id: str, node: str) -> None:
        self.agent_id = agent_id
        self.node = node

    async def ask(self, agent_id: str, text: str) -> str:
        """The main way: look the agent up, then go through the router."""
        async with httpx2.AsyncClient(timeout=30, trust_env=False) as client:
            found = await client.get(f"{REGISTRY}/api/v1/agent/{agent_id}")
            found.raise_for_status()
            target = found.json()
            answer = await client.post(
                f"{ROUTER}/v1/chat/completions",
                json={
                    "model": target["model"],
                    "messages": [{"role": "user", "content": text}],
                    "agent_id": agent_id,
                    "target_node": target["node"],
                    "source_agent": self.agent_id,
                    "source_node": self.node,
                },
            )
            answer.raise_for_status()
            return str(answer.json()["choices"][0]["message"]["content"])

    async def publish(self, agent_id: str, text: str) -> str:
        """By NATS: publish to its inbox, then subscribe to its replies and wait for one."""
        client = await nats.connect(NATS)
        try:
            await client.publish(f"agent.{agent_id}.inbox", text.encode())
            replies = await client.subscribe(f"agent.{agent_id}.reply")
            return (await replies.next_msg(timeout=30)).data.decode()
        finally:
            await client.close()

    async def chat(self, agent_id: str, text: str) -> str:
        """By HTTP, directly."""
        async with httpx2.AsyncClient(timeout=30, trust_env=False) as client:
            answer = await client.post(
                f"{ROUTER}/api/agent/{agent_id}/chat", json={"message": text}
            )
            answer.raise_for_status()
            return str(answer.json()["response"])


async def main(way: str, agent_id: str, text: str) -> None:
    """Ask one question, and print the answer."""
    me = CrossNodeAgent("daarwizz", "node1")
    ways = {"ask": me.ask, "publish": me.publish, "chat": me.chat}
    print(await ways[way](agent_id, text))  # noqa: T201


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
