"""Commands and programs that call an agent, filled in: what is pasted works.

Texts only. In a mesh that asks for keys they read `MESH_API_KEY`, or use the machine's credentials.
"""

import shlex
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Snippet:
    """One way to call an agent."""

    id: str
    title: str
    text: str


@dataclass(frozen=True, slots=True)
class Address:
    """Where the reader has found us, and what a call needs there."""

    base: str
    """Of this door, without a path."""
    nats_url: str
    needs_key: bool = False


def snippets(agent: str, at: Address) -> Sequence[Snippet]:
    """Return every way to call `agent`, the usual ones first."""
    return (
        Snippet("mesh", "mesh send", f'mesh send {agent} "Hello!"'),
        Snippet("curl", "curl", _curl(agent, at)),
        Snippet("python", "OpenAI, Python", _openai_python(agent, at)),
        Snippet("javascript", "OpenAI, JavaScript", _openai_javascript(agent, at)),
        Snippet("direct", "HTTP, direct", _direct(agent, at)),
        Snippet("nats", "nats CLI", _nats(agent, at)),
        Snippet("nats-py", "NATS, Python", _nats_python(agent, at)),
    )


def remote_call(agent: str, node: str) -> str:
    """Return the command that calls an agent on one node, and nowhere else."""
    return f'mesh send {agent} --node {node} "Hello!"'


def test_command(at: Address, query: str) -> str:
    """Return the command that runs the connection test."""
    tail = f"?{query}" if query else ""
    url = shlex.quote(f"{at.base}/api/agents/connection-test{tail}")
    return " \\\n  ".join([f"curl -s {url}", *_key_header(at)])


def _curl(agent: str, at: Address) -> str:
    body = f'{{"model": "{agent}", "messages": [{{"role": "user", "content": "Hello!"}}]}}'
    return _post(at, "/v1/chat/completions", body)


def _direct(agent: str, at: Address) -> str:
    return _post(at, f"/api/agent/{agent}/chat", '{"message": "Hello!"}')


def _post(at: Address, path: str, body: str) -> str:
    lines = [
        f"curl -s {shlex.quote(at.base + path)}",
        "-H 'content-type: application/json'",
        *_key_header(at),
        f"-d {shlex.quote(body)}",
    ]
    return " \\\n  ".join(lines)


def _key_header(at: Address) -> list[str]:
    return ['-H "Authorization: Bearer $MESH_API_KEY"'] if at.needs_key else []


def _openai_python(agent: str, at: Address) -> str:
    key = 'os.environ["MESH_API_KEY"]' if at.needs_key else '"none"'
    return "\n".join(
        [
            *(["import os"] if at.needs_key else []),
            "from openai import OpenAI",
            "",
            f'client = OpenAI(base_url="{at.base}/v1", api_key={key})',
            "answer = client.chat.completions.create(",
            f'    model="{agent}",',
            '    messages=[{"role": "user", "content": "Hello!"}],',
            ")",
            "print(answer.choices[0].message.content)",
        ]
    )


def _openai_javascript(agent: str, at: Address) -> str:
    key = "process.env.MESH_API_KEY" if at.needs_key else '"none"'
    return "\n".join(
        [
            'import OpenAI from "openai";',
            "",
            f'const client = new OpenAI({{ baseURL: "{at.base}/v1", apiKey: {key} }});',
            "const answer = await client.chat.completions.create({",
            f'  model: "{agent}",',
            '  messages: [{ role: "user", content: "Hello!" }],',
            "});",
            "console.log(answer.choices[0].message.content);",
        ]
    )


def _nats(agent: str, at: Address) -> str:
    server = f"nats --server {shlex.quote(at.nats_url)}"
    return "\n".join(
        [
            f"{server} sub --count 1 agent.{agent}.reply &",
            f'sleep 1; {server} pub agent.{agent}.inbox "Hello!"; wait',
        ]
    )


def _nats_python(agent: str, at: Address) -> str:
    return "\n".join(
        [
            "import asyncio, nats",
            "",
            "async def main():",
            f'    client = await nats.connect("{at.nats_url}")',
            f'    answers = await client.subscribe("agent.{agent}.reply")',
            f'    await client.publish("agent.{agent}.inbox", b"Hello!")',
            "    print((await answers.next_msg(timeout=60)).data.decode())",
            "    await client.close()",
            "",
            "asyncio.run(main())",
        ]
    )
