"""How a command ends: exit codes, and one line instead of a traceback."""

import asyncio
import json
import logging
import sys
from collections.abc import Coroutine
from typing import Any, Final, NoReturn

from mesh.errors import (
    AgentNotFoundError,
    AgentNotOnNodeError,
    BrokerUnreachableError,
    CallNotFoundError,
    CallRefusedError,
    CallTimeoutError,
    DeadLetterNotFoundError,
    InvalidInputError,
    KeyNotFoundError,
    LoadError,
    MeshError,
    NodeNotFoundError,
    NotPermittedError,
    SettingsError,
    StreamMissingError,
    TrustError,
)

FAILED: Final = 1
USAGE: Final = 2
NOT_FOUND: Final = 3
NOT_ALLOWED: Final = 4
TIMEOUT: Final = 5
NO_BROKER: Final = 6
INTERRUPTED: Final = 130
CANCEL_AGAIN_S: Final = 1.0

_CODES: Final[tuple[tuple[type[MeshError], int], ...]] = (
    (InvalidInputError, USAGE),
    (SettingsError, USAGE),
    (LoadError, USAGE),
    (AgentNotFoundError, NOT_FOUND),
    (NodeNotFoundError, NOT_FOUND),
    (AgentNotOnNodeError, NOT_FOUND),
    (CallNotFoundError, NOT_FOUND),
    (DeadLetterNotFoundError, NOT_FOUND),
    (KeyNotFoundError, NOT_FOUND),
    (TrustError, NOT_ALLOWED),
    (CallRefusedError, NOT_ALLOWED),
    (NotPermittedError, NOT_ALLOWED),
    (CallTimeoutError, TIMEOUT),
    (BrokerUnreachableError, NO_BROKER),
    (StreamMissingError, NO_BROKER),
)


def exit_code(error: MeshError) -> int:
    """Return the exit code of an error."""
    return next((code for kind, code in _CODES if isinstance(error, kind)), FAILED)


def fail(error: MeshError, *, as_json: bool = False) -> NoReturn:
    """Print an error on stderr, as one line, and exit."""
    if as_json:
        fields = {name: str(value) for name, value in error.fields.items()}
        body = {"error": {"code": error.code, "message": error.message, **fields}}
        sys.stderr.write(json.dumps(body) + "\n")
    else:
        sys.stderr.write(f"mesh: {plain(error.message)}\n")
    raise SystemExit(exit_code(error))


def run(work: Coroutine[Any, Any, Any], *, as_json: bool = False) -> Any:
    """Run a command to its end, and turn its errors into an exit code and one line."""
    # It warns of nats-py at the end of every connection with TLS.
    logging.getLogger("asyncio").setLevel(logging.ERROR)
    try:
        return asyncio.run(_until_cancelled(work))
    except MeshError as error:
        fail(error, as_json=as_json)
    except KeyboardInterrupt:
        raise SystemExit(INTERRUPTED) from None
    except BrokenPipeError:
        # Whoever read our output has had enough.
        sys.stderr.close()
        raise SystemExit(FAILED) from None


async def _until_cancelled(work: Coroutine[Any, Any, Any]) -> Any:
    """Await work, and cancel it until it ends: `asyncio.wait_for` before Python 3.12, in which all
    of nats-py's requests wait, swallows a cancel that comes together with its result.
    """
    task = asyncio.ensure_future(work)
    try:
        await asyncio.wait({task})
    finally:
        while not task.done():
            task.cancel()
            await asyncio.wait({task}, timeout=CANCEL_AGAIN_S)
    return task.result()


def plain(text: str) -> str:
    """Return text from elsewhere without control characters: it must not drive the terminal."""
    return "".join(c for c in text if c in "\n\t" or (c.isprintable() or c == " "))
