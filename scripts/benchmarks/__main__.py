"""`python -m scripts.benchmarks [calls | http | look | pages] …`: chooses the bench."""

import sys

from scripts.benchmarks import calls, door, look, pages

BENCHES = {"calls": calls.main, "http": door.main, "look": look.main, "pages": pages.main}


def main() -> None:
    """Run the bench that is named first, and `calls` when none is."""
    arguments = sys.argv[1:]
    name = arguments.pop(0) if arguments and arguments[0] in BENCHES else "calls"
    BENCHES[name](arguments)


if __name__ == "__main__":
    main()
