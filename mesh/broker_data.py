"""Whose data lies in a data directory: that of an open mesh, or of the secure one with these keys.

nats-server keeps the streams of each account in a folder of its own, and is never ready with one
whose account it does not know.
"""

import logging
import os
import re
import shutil
from pathlib import Path
from typing import Final

from mesh.errors import DataDirError
from mesh.trust.keyring import Keyring, Secret

logger = logging.getLogger(__name__)

OPEN: Final = "$G"
"""The account of who does not log in: an open mesh has all of its streams there."""
_ACCOUNT: Final = re.compile(r"\$G|A[A-Z2-7]{55}")


def settle(data_dir: Path, keyring: Keyring | None) -> None:
    """See to it that the streams in a data directory are those of the mesh that is to be started.

    What an open mesh has stored goes on in the secure one that is made of it: its agents, its
    calls and their answers. Requests that still wait are refused by their agents, since nobody has
    signed them. `keyring` is None for an open mesh. No server may be running there.

    Raises:
        DataDirError: they are of another mesh, or cannot be read or moved.
    """
    try:
        _settle(data_dir, keyring)
    except OSError as error:
        raise _foreign(data_dir, f"cannot be used: {error}; set MESH_DATA_DIR") from error


def _settle(data_dir: Path, keyring: Keyring | None) -> None:
    wanted = OPEN if keyring is None else keyring.public[Secret.CORE]
    folder = data_dir / "jetstream"
    if not folder.is_dir():
        return
    others = {one.name for one in folder.iterdir() if one.name != wanted and _is_in_use(one)}
    if not others:
        return
    if keyring is None:
        reason = (
            "has the data of a secure mesh, and its keys are not there: set MESH_KEYS_DIR to them, "
            "or MESH_DATA_DIR to another folder"
        )
    elif others != {OPEN}:
        reason = (
            "has the data of another mesh than that of these keys: set MESH_DATA_DIR to another "
            "folder, or MESH_KEYS_DIR to its keys"
        )
    elif _is_in_use(folder / wanted):
        reason = (
            f"has the data of an open mesh beside that of the secure one: move {folder / OPEN} away"
        )
    else:
        _adopt(folder, wanted)
        return
    raise _foreign(data_dir, reason)


def _is_in_use(account: Path) -> bool:
    """Tell whether there is anything of an account; what a first start may leave is removed."""
    if not _ACCOUNT.fullmatch(account.name) or not account.is_dir():
        return False
    if any(one.is_file() for one in account.rglob("*")):
        return True
    shutil.rmtree(account)
    return False


def _adopt(folder: Path, account: str) -> None:
    os.replace(folder / OPEN, folder / account)
    logger.warning("what the open mesh has stored goes on in the secure one that is made of it")


def _foreign(data_dir: Path, reason: str) -> DataDirError:
    return DataDirError(f"the data directory {data_dir} {reason}", path=str(data_dir))
