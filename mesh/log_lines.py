"""How a log line looks: one line for a person, or one JSON object for a machine; one fact in each.

A line that is written while a call is worked on says which call that is, and of which trace,
whoever writes it: a handler's own lines too. What is asked and answered is in no line of ours.
"""

import logging
import os
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Any, Final

import orjson

from mesh import headers as h

VARIABLE: Final = "MESH_LOG_FORMAT"
FORMATS: Final = ("text", "json")

_call: ContextVar[tuple[str, str]] = ContextVar("mesh_log_call", default=("", ""))
"""The call that this task works on, and its `traceparent`."""


def work_on(call_id: str, traceparent: str) -> None:
    """Let the lines of this task say which call they are about. Costs a call next to nothing."""
    _call.set((call_id, traceparent))


def is_json() -> bool:
    """Tell whether this process writes JSON."""
    return os.environ.get(VARIABLE, "") == "json"


class Lines(logging.Formatter):
    """For a person."""

    def __init__(self, *, has_time: bool) -> None:
        super().__init__(datefmt="%H:%M:%S")
        self._has_time = has_time

    def format(self, record: logging.LogRecord) -> str:
        """Return the line; a traceback stands below it."""
        line = record.getMessage()
        if record.levelno > logging.INFO:
            line = f"{record.levelname.lower()}: {line}"
        call_id, traceparent = _call.get()
        if call_id:
            line = f"{line}  call={call_id} trace={h.span_of(traceparent)[0]}"
        if record.exc_info:
            line = f"{line}\n{self.formatException(record.exc_info)}"
        return f"{self.formatTime(record, self.datefmt)} {line}" if self._has_time else line


class JsonLines(logging.Formatter):
    """For a machine: everything on one line, a traceback too."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        call_id, traceparent = _call.get()
        at = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        told: dict[str, Any] = {
            "at": at.replace("+00:00", "Z"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if call_id:
            told |= {"call_id": call_id, "trace_id": h.span_of(traceparent)[0]}
        if record.exc_info:
            told["exception"] = self.formatException(record.exc_info)
        return _dump(told)


def of_part(part: str, line: str) -> str:
    """Return what a child process has written as a line of JSON that names it."""
    told: Any = None
    if line.startswith('{"at":'):
        try:
            told = orjson.loads(line)
        except orjson.JSONDecodeError:
            told = None
    if not isinstance(told, dict):
        at = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        told = {"at": at, "level": "info", "message": line}
    return _dump({"part": part, **told})


def _dump(told: dict[str, Any]) -> str:
    try:
        return orjson.dumps(told).decode()
    except TypeError:  # A file name that is not UTF-8, say: Python has it as lone surrogates.
        plain = {name: str(one).encode(errors="replace").decode() for name, one in told.items()}
        return orjson.dumps(plain).decode()
