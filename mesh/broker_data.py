"""Whose data lies in a data directory: that of an open mesh, or of the secure one with these keys.

nats-server keeps the streams of each account in a folder of its own, and is never ready with one
whose account it does not know.
"""

import logging
import os
import shutil
from pathlib import Path
from typing import Final

from mesh.errors import DataDirError
from mesh.trust.keyring import Keyring, Secret

logger = logging.getLogger(__name__)

OPEN: Final = "$G"
"""The account of who does not log in: an open mesh has all of its streams there."""


def settle(data_dir: Path, keyring: Keyring | None) -> None:
    """See to it that the streams in a data directory are those of the mesh that is to be started.

    What an open mesh has stored goes on in the secure one that is made of it: the agents, and the
    requests in their mailboxes. `keyring` is None for an open mesh. No server may be running there.

    Raises:
        DataDirError: they are of another mesh, or cannot be moved.
    """
    wanted = OPEN if keyring is None else keyring.public[Secret.CORE]
    folder = data_dir / "jetstream"
    others = _accounts(folder) - {wanted}
    if keyring is not None and others == {OPEN} and not _has_streams(folder / wanted):
        _adopt(data_dir, wanted)
    elif others and keyring is None:
        raise _foreign(
            data_dir,
            "has the data of a secure mesh, and its keys are not there: set MESH_KEYS_DIR to them, "
            "or MESH_DATA_DIR to another folder",
        )
    elif others:
        raise _foreign(
            data_dir,
            "has the data of another mesh than that of these keys: set MESH_DATA_DIR to another "
            "folder, or MESH_KEYS_DIR to its keys",
        )


def _accounts(folder: Path) -> set[str]:
    if not folder.is_dir():
        return set()
    return {one.name for one in folder.iterdir() if _has_streams(one)}


def _has_streams(account: Path) -> bool:
    streams = account / "streams"
    return streams.is_dir() and any(streams.iterdir())


def _adopt(data_dir: Path, account: str) -> None:
    folder = data_dir / "jetstream"
    try:
        if (folder / account).exists():  # Of a start that has made nothing in it.
            shutil.rmtree(folder / account)
        os.replace(folder / OPEN, folder / account)
    except OSError as error:
        raise _foreign(data_dir, f"cannot be made that of a secure mesh: {error}") from error
    logger.warning("what the open mesh has stored goes on in the secure one that is made of it")


def _foreign(data_dir: Path, reason: str) -> DataDirError:
    return DataDirError(f"the data directory {data_dir} {reason}", path=str(data_dir))
