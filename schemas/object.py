"""What the object store says of an object, as NATS ADR-20 has it."""

from pydantic import Field

from schemas.base import WireModel


class ObjectOptions(WireModel):
    """How an object was cut."""

    max_chunk_size: int | None = None


class ObjectMeta(WireModel):
    """Body of `$O.<bucket>.M.<name>`."""

    name: str
    bucket: str = ""
    nuid: str = ""
    """Under which its chunks lie: each upload has its own."""
    size: int = Field(default=0, ge=0)
    chunks: int = 0
    digest: str = ""
    """`SHA-256=` and the digest in base64url."""
    mtime: str = ""
    options: ObjectOptions | None = None
    deleted: bool = False


class DiscardReceipt(WireModel):
    """The answer to a request on `registry.discard.<reader>.<nuid>`."""

    ok: bool = True
    message: str = ""
