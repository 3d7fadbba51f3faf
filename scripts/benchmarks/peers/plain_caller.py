"""Calls the agent `bench` under load: `python -m …plain_caller URL CALLS IN_FLIGHT`.

Knows of the mesh only what any program would, so that it can call an older or a newer one as well.
"""

import asyncio
import json
import sys

import orjson

import mesh
from mesh import connect, heap
from scripts.benchmarks.loads import load

BODY = orjson.dumps({"model": "bench", "messages": [{"role": "user", "content": "hello"}]})


async def main(url: str, calls: int, in_flight: int) -> None:
    """Say whose mesh it is, make the calls, and print what they took."""
    print(f"mesh is {mesh.__file__}", flush=True)
    async with connect(url, name="bencher", node="node1") as client:

        async def ask() -> None:
            call = await client.start("bench", BODY, timeout_s=30)
            await call.result()

        print(json.dumps(await load(ask, calls, in_flight, heap.settle)), flush=True)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3])))
