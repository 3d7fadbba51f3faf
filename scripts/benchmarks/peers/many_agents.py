"""Some of very many agents, for one process of them: `mesh run …many_agents:some` with two numbers
in the environment.
"""

import os

from mesh import Agent
from scripts.benchmarks.peers.hundred_agents import make_agent

FIRST = "BENCH_FIRST"
COUNT = "BENCH_COUNT"


def id_of(number: int) -> str:
    """Name an agent."""
    return f"one-of-many-{number:05}"


def some() -> list[Agent]:
    """Make those that the environment says."""
    first, count = int(os.environ[FIRST]), int(os.environ[COUNT])
    return [make_agent(id_of(number)) for number in range(first, first + count)]
