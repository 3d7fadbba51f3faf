"""Claims: what a message says of a body or a file that lies beside it, in the object store.

Does no I/O; `mesh.objects` puts and reads what is claimed.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final
from urllib.parse import quote, unquote

from mesh import headers as h
from mesh.errors import InvalidInputError

NAME_AT_MOST: Final = 120
"""Characters of a file's name; each may be twelve bytes in a header."""

_CLAIM: Final = re.compile(r"([!-~]{1,256}) ([0-9]{1,15}) ([0-9a-f]{64})(?: ([!-~]{1,2000}))?")
_NO_NAMES: Final = frozenset({"", ".", ".."})


@dataclass(frozen=True, slots=True)
class Claim:
    """An object, and how to know that it is the one that was meant."""

    name: str
    size_bytes: int
    sha256: str
    """In hexadecimal."""
    file_name: str = ""
    """What the file was called, where it was called anything. It has no folder in it."""

    @classmethod
    def read(cls, text: str) -> "Claim":
        """Read the value of a header.

        Raises:
            InvalidInputError: it is no claim.
        """
        found = _CLAIM.fullmatch(text)
        if found is None:
            raise InvalidInputError(f"{text[:120]!r} claims no object", field="body")
        file_name = plain_name(unquote(found[4] or ""))
        return cls(found[1], int(found[2]), found[3], file_name)

    def __str__(self) -> str:
        whole = f"{self.name} {self.size_bytes} {self.sha256}"
        return f"{whole} {quote(self.file_name, safe='')}" if self.file_name else whole


def claims_in(headers: Mapping[str, str]) -> list[Claim]:
    """Return what a message claims; what is malformed claims nothing."""
    found = []
    for name in (h.BODY, h.FILE):
        if name in headers:
            try:
                found.append(Claim.read(headers[name]))
            except InvalidInputError:
                continue
    return found


def plain_name(text: str) -> str:
    """Return the name of a file without folders, and without what drives a terminal.

    It comes from elsewhere: it must name nothing but a file in the folder of who saves it.
    """
    last = re.split(r"[/\\]", text)[-1]
    plain = "".join(one for one in last if one.isprintable()).strip()[:NAME_AT_MOST]
    return "" if plain in _NO_NAMES else plain
