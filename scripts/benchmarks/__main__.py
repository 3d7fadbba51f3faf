"""`python -m scripts.benchmarks [calls | http | streams | …] …`: chooses the bench."""

import sys
from collections.abc import Callable
from importlib import import_module
from typing import Final

MODULES: Final = {
    "calls": "calls",
    "http": "door",
    "streams": "chunks",
    "nested": "nested",
    "sizes": "sizes",
    "machines": "machines",
    "peers": "beside_peers",
    "lookups": "lookups",
    "starts": "starts",
    "agents": "many",
    "backlog": "backlog",
    "look": "look",
    "pages": "pages",
    "all": "every",
}
"""Of each bench. Only the one that runs is imported: each has needs of its own."""


def main() -> None:
    """Run the bench that is named first, and `calls` when none is."""
    arguments = sys.argv[1:]
    name = arguments.pop(0) if arguments and arguments[0] in MODULES else "calls"
    run: Callable[[list[str]], None] = import_module(f"scripts.benchmarks.{MODULES[name]}").main
    run(arguments)


if __name__ == "__main__":
    main()
