"""Logging of the long-running commands: one readable line an event, on stderr."""

import logging
import os


class _Lines(logging.Formatter):
    def __init__(self) -> None:
        super().__init__(datefmt="%H:%M:%S")
        self._is_supervised = "MESH_READY_FD" in os.environ

    def format(self, record: logging.LogRecord) -> str:
        line = record.getMessage()
        if record.levelno > logging.INFO:
            line = f"{record.levelname.lower()}: {line}"
        if record.exc_info:
            line = f"{line}\n{self.formatException(record.exc_info)}"
        return line if self._is_supervised else f"{self.formatTime(record, self.datefmt)} {line}"


def set_up(*, verbose: bool = False) -> None:
    """Log what matters to a person; everything with `verbose`.

    Under `mesh up` the parent adds time and part to each line.
    """
    handler = logging.StreamHandler()
    handler.setFormatter(_Lines())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    logging.getLogger("mesh").setLevel(logging.DEBUG if verbose else logging.INFO)
    logging.getLogger("handlers").setLevel(logging.DEBUG if verbose else logging.INFO)
    logging.getLogger("mesh.faststream").setLevel(logging.INFO if verbose else logging.WARNING)
    # nats-py closing over TLS, and asyncio's slow-callback notes, tell a person nothing.
    logging.getLogger("asyncio").setLevel(logging.ERROR)
