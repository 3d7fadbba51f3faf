"""What tests of parcels look at, with rights that only the hub has."""

from mesh import streams, subjects
from mesh.connection import Connection


async def kept(core: Connection, reader: str = "*") -> list[str]:
    """Return the names of the parcels that are kept for `reader`."""
    info = await core.client.jsm().stream_info(streams.BODIES, subjects_filter=f"body.{reader}.*.*")
    return sorted({one.rpartition(".")[0] for one in info.state.subjects or {}})


async def forget(core: Connection) -> None:
    """Remove every parcel."""
    await core.client.jsm().purge_stream(streams.BODIES, subject=subjects.ALL_PARCELS)
