"""Files that come with a question or an answer, and bodies that fit into no message.

What a caller, an agent's handler and the runtime do with the object store. Whoever does not know a
message cannot name what lies beside it; in a secure mesh, only one who is named can read it.
"""

import asyncio
import os
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator
from contextlib import aclosing, asynccontextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO, Final
from uuid import uuid4

from mesh import objects
from mesh.claims import Claim, plain_name
from mesh.connection import Connection
from mesh.errors import InvalidInputError
from mesh.frames import Frame
from mesh.parcels import new_name
from mesh.uploads import put

WRITE_BYTES: Final = 512 * 1024
"""What is handed to a thread at once: each time costs as much as writing some 100 KB."""


class Attachment:
    """A file beside a message, read in pieces: what it takes of memory does not grow with it."""

    def __init__(self, connection: Connection, claim: Claim) -> None:
        self._connection = connection
        self._claim = claim

    def __repr__(self) -> str:
        return f"Attachment({self.name!r}, {self.size_bytes} bytes)"

    @property
    def name(self) -> str:
        """What its sender calls it: a plain name without a folder, or empty."""
        return self._claim.file_name

    @property
    def size_bytes(self) -> int:
        """How many bytes it has."""
        return self._claim.size_bytes

    @property
    def sha256(self) -> str:
        """Its digest, in hexadecimal."""
        return self._claim.sha256

    async def chunks(self) -> AsyncGenerator[bytes, None]:
        """Yield it in pieces. Only at the end it is known that it is whole and unchanged.

        Raises:
            BodyLostError: it is gone, or damaged.
            PayloadTooLargeError: it is over MESH_BODY_MAX.
            NotPermittedError: in a secure mesh, it is for somebody else.
            BrokerUnreachableError: no answer in time.
        """
        async with aclosing(objects.read_chunks(self._connection, self._claim)) as pieces:
            async for piece in pieces:
                yield piece

    async def read(self) -> bytes:
        """Return all of it. Raises what `chunks` raises."""
        return await objects.read(self._connection, self._claim)

    async def save(self, path: str | os.PathLike[str]) -> Path:
        """Write it to a file, which is there only when it is whole, and return where.

        In a folder it gets its own name.

        Raises what `chunks` raises, and `OSError` when it cannot be written.
        """
        target = Path(path)
        if await asyncio.to_thread(target.is_dir):
            target /= self.name or "attachment"
        partial = target.with_name(f".{target.name[:100]}.{uuid4().hex[:8]}.part")
        try:
            with await asyncio.to_thread(partial.open, "xb") as file:
                async for piece in _gathered(self.chunks()):
                    await asyncio.to_thread(file.write, piece)
            await asyncio.to_thread(partial.replace, target)
        except BaseException:
            with suppress(FileNotFoundError):
                partial.unlink()
            raise
        return target


FileSource = str | os.PathLike[str] | bytes | AsyncIterable[bytes] | Attachment
"""What a file is made of: a path, bytes, pieces as they come, or one that was received."""


async def put_body(
    connection: Connection,
    call_id: str,
    body: bytes,
    *,
    reader: str,
    lifetime_s: float | None = None,
) -> Claim:
    """Put a body beside its message, for the agent or caller that will read it.

    Raises what `mesh.uploads.put` raises.
    """
    return await put(
        connection,
        _name(connection, call_id, reader),
        _slices(body),
        size_bytes=len(body),
        lifetime_s=lifetime_s,
    )


async def put_file(
    connection: Connection,
    call_id: str,
    source: FileSource,
    name: str = "",
    *,
    reader: str,
    lifetime_s: float | None = None,
) -> Claim:
    """Put a file beside a message, for its reader; `name` is what it is called there.

    Raises what `mesh.uploads.put` raises, and:
        InvalidInputError: there is no such file, or it cannot be read.
    """
    async with _reading(source) as (pieces, size_bytes, own_name):
        return await put(
            connection,
            _name(connection, call_id, reader),
            pieces,
            size_bytes=size_bytes,
            lifetime_s=lifetime_s,
            file_name=plain_name(name or own_name),
        )


@asynccontextmanager
async def _reading(
    source: FileSource,
) -> AsyncIterator[tuple[AsyncIterable[bytes], int | None, str]]:
    """Give the pieces of a source, how many bytes they have as far as is known, and its name."""
    if isinstance(source, str | os.PathLike):
        path = Path(source)
        with await _open(path) as file:
            yield _read(file), os.fstat(file.fileno()).st_size, path.name
    elif isinstance(source, bytes):
        yield _slices(source), len(source), ""
    elif isinstance(source, Attachment):
        async with aclosing(source.chunks()) as chunks:
            yield chunks, source.size_bytes, source.name
    else:
        yield source, None, ""


async def read_body(connection: Connection, text: str) -> bytes:
    """Return the body that a header claims.

    Raises what `mesh.objects.read_chunks` raises, and:
        InvalidInputError: the header is no claim.
    """
    return await objects.read(connection, Claim.read(text))


async def whole_frame(connection: Connection, frame: Frame) -> Frame:
    """Return a frame with its body, wherever that lies. Raises what `read_body` raises."""
    if not frame.body_claim:
        return frame
    body = await read_body(connection, frame.body_claim)
    return replace(frame, body=body, body_claim="")


def _name(connection: Connection, call_id: str, reader: str) -> str:
    # Each upload is an object of its own: none is written over that somebody has a claim on.
    if connection.is_secure:
        return new_name(reader)
    return f"{call_id}.{uuid4().hex[:12]}"


async def _open(path: Path) -> BinaryIO:
    try:
        return await asyncio.to_thread(path.open, "rb")
    except OSError as error:
        raise InvalidInputError(
            f"cannot read {path}: {error.strerror or error}", field="file"
        ) from None


async def _read(file: BinaryIO) -> AsyncIterator[bytes]:
    while piece := await asyncio.to_thread(file.read, WRITE_BYTES):
        yield piece


async def _slices(body: bytes) -> AsyncIterator[bytes]:
    for start in range(0, len(body), WRITE_BYTES):
        yield body[start : start + WRITE_BYTES]


async def _gathered(chunks: AsyncGenerator[bytes, None]) -> AsyncIterator[bytes]:
    kept: list[bytes] = []
    async with aclosing(chunks) as pieces:
        async for piece in pieces:
            kept.append(piece)
            if sum(map(len, kept)) >= WRITE_BYTES:
                yield b"".join(kept)
                kept = []
    yield b"".join(kept)
