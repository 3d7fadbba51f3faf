"""Logging of the long-running commands: one line a fact, on stderr."""

import logging
import os

from mesh.log_lines import JsonLines, Lines, is_json


def set_up(*, verbose: bool = False) -> None:
    """Log what matters to a person; everything with `verbose`, JSON if `MESH_LOG_FORMAT` says so.

    Under `mesh up` the parent adds time and part to each line.
    """
    is_supervised = "MESH_READY_FD" in os.environ
    handler = logging.StreamHandler()
    handler.setFormatter(JsonLines() if is_json() else Lines(has_time=not is_supervised))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    logging.getLogger("mesh").setLevel(logging.DEBUG if verbose else logging.INFO)
    logging.getLogger("handlers").setLevel(logging.DEBUG if verbose else logging.INFO)
    logging.getLogger("mesh.faststream").setLevel(logging.INFO if verbose else logging.WARNING)
    # nats-py closing over TLS, and asyncio's slow-callback notes, tell a person nothing.
    logging.getLogger("asyncio").setLevel(logging.ERROR)
