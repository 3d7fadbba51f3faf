"""Files that nobody else may read: written so, and refused where they are not."""

import os
import stat
from pathlib import Path
from tempfile import NamedTemporaryFile

from mesh.errors import CredentialsError

_OTHERS = stat.S_IRWXG | stat.S_IRWXO


def make_folder(folder: Path) -> None:
    """Make a folder for secrets, with its parents.

    Raises:
        CredentialsError: it cannot be made.
    """
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise CredentialsError(
            f"cannot make {folder}: {error.strerror or error}", path=str(folder)
        ) from None


def write_secret(path: Path, text: str) -> None:
    """Write a file that only its owner can read, whole or not at all.

    Raises:
        CredentialsError: it cannot be written.
    """
    make_folder(path.parent)
    try:
        # Made with 0600, whatever the umask is.
        with NamedTemporaryFile("w", dir=path.parent, prefix=".new-", delete=False) as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(file.name, path)
    except OSError as error:
        raise CredentialsError(
            f"cannot write {path}: {error.strerror or error}", path=str(path)
        ) from None


def read_secret(path: Path) -> str:
    """Read a file that only its owner can read.

    Raises:
        CredentialsError: it is not there, is not ours to read, or others may read it, too.
    """
    try:
        with path.open(encoding="utf-8") as file:
            mode = os.fstat(file.fileno()).st_mode
            if os.name == "posix" and mode & _OTHERS:
                raise CredentialsError(
                    f"others can read {path}, which is a secret: run `chmod 600 {path}`",
                    path=str(path),
                )
            return file.read()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is no text"
        raise CredentialsError(f"cannot read {path}: {reason}", path=str(path)) from None
