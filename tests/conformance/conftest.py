"""A door for real clients, and OpenAI's own pointed at it."""

from collections.abc import AsyncIterator

import openai
import pytest

from mesh.connection import Connection
from mesh.directory import Directory
from tests.shim import serving


@pytest.fixture(scope="session")
async def door(connection: Connection, directory: Directory) -> AsyncIterator[str]:
    """The base URL of the door of these tests."""
    async with serving(connection, directory) as base:
        yield base


@pytest.fixture
async def ai(door: str) -> AsyncIterator[openai.AsyncOpenAI]:
    """The OpenAI client, with a key that nobody gave out, and without retries."""
    async with openai.AsyncOpenAI(base_url=f"{door}/v1", api_key="any", max_retries=0) as client:
        yield client
