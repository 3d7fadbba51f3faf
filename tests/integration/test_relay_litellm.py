"""The relay agent against a real LiteLLM proxy, called directly and through the mesh."""

import asyncio
import os
import re
import secrets
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from handlers.relay import relay_agent
from mesh.client import MeshClient
from mesh.errors import AgentFailedError
from tests.backend import deltas, failure
from tests.conftest import Running, until

pytestmark = pytest.mark.litellm

LITELLM = Path(__file__).parents[2] / ".venv-litellm" / "bin" / "litellm"
CONFIG = """
model_list:
  - {model_name: mock, litellm_params: {model: openai/m, api_key: none, mock_response: "Hello sun"}}
  - model_name: busy
    litellm_params: {model: openai/m, api_key: none, mock_response: "litellm.RateLimitError"}
router_settings: {num_retries: 0}
"""


@pytest.fixture(scope="module")
async def litellm(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[tuple[str, str]]:
    """A LiteLLM proxy whose models are mocks: its base URL and its key."""
    if os.environ.get("MESH_TEST_NO_LITELLM") or not LITELLM.exists():
        pytest.skip("NOT RUN: the LiteLLM proxy is not installed; scripts/litellm-env does it")
    folder = tmp_path_factory.mktemp("litellm")
    (folder / "config.yaml").write_text(CONFIG)
    key = f"sk-{secrets.token_hex(32)}"
    with (folder / "log").open("wb") as log:
        process = await asyncio.create_subprocess_exec(
            *(LITELLM, "--config", "config.yaml", "--host", "127.0.0.1", "--port", "0"),
            *("--telemetry", "False"),
            cwd=folder,
            # The price list that comes with it: no look-up anywhere.
            env={**os.environ, "LITELLM_MASTER_KEY": key, "LITELLM_LOCAL_MODEL_COST_MAP": "True"},
            stdout=log,
            stderr=log,
        )

    def address() -> str:
        assert process.returncode is None, (folder / "log").read_text()
        found = re.search(r"running on (http://127\.0\.0\.1:\d+)", (folder / "log").read_text())
        return found[1] if found else ""

    try:
        await until(lambda: bool(address()), within_s=60)
        yield f"{address()}/v1", key
    finally:
        if process.returncode is None:
            process.terminate()
        await process.wait()


async def test_litellm_streams_through_the_relay(litellm: tuple[str, str]) -> None:
    """A real LiteLLM proxy streams its text, its finish reason and its usage."""
    url, key = litellm
    parts = await deltas(relay_agent("relay", base_url=url, model="mock", api_key=key))
    assert "".join(part.content or "" for part in parts) == "Hello sun"
    assert len([part for part in parts if part.content]) > 1
    assert [part.finish_reason for part in parts if part.finish_reason] == ["stop"]
    assert parts[-1].usage
    assert parts[-1].usage.total_tokens > 0


@pytest.mark.parametrize(
    ("model", "is_key_right", "status", "words"),
    [
        ("busy", True, 429, "RateLimit"),
        ("nobody", True, 400, "Invalid model name"),
        ("mock", False, 400, "No connected db"),
    ],
)
async def test_litellm_errors_are_typed(
    litellm: tuple[str, str], model: str, is_key_right: bool, status: int, words: str
) -> None:
    """What LiteLLM refuses arrives with its status and its words."""
    url, key = litellm
    sent = key if is_key_right else f"{key}0"
    error = await failure(relay_agent("relay", base_url=url, model=model, api_key=sent))
    assert error.status == status
    assert words in error.message


async def test_litellm_answers_through_the_mesh(
    litellm: tuple[str, str], agent_id: str, running: Running, client: MeshClient
) -> None:
    """A model of a LiteLLM proxy is an agent: asked, streamed, and failing with its status."""
    url, key = litellm
    good = relay_agent(agent_id, base_url=url, model="mock", api_key=key)
    busy = relay_agent(f"{agent_id}-busy", base_url=url, model="busy", api_key=key)
    async with running(good, busy):
        reply = await client.ask(agent_id, "hello")
        parts = [part async for part in client.stream(agent_id, "hello")]
        with pytest.raises(AgentFailedError) as caught:
            await client.ask(busy.id, "hello")
    assert reply.text == "".join(parts) == "Hello sun"
    assert reply.usage.total_tokens > 0
    assert len(parts) > 1
    assert caught.value.status == 429
