"""A router that lets connections out, and none in: `python -m tests.relay LISTEN TARGET`.

Both are HOST:PORT. Who is at TARGET sees the router's address, as behind a NAT.
"""

import asyncio
import sys
from contextlib import suppress


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with suppress(ConnectionError):
        while data := await reader.read(65_536):
            writer.write(data)
            await writer.drain()
    writer.close()


async def relay(listen: str, target: str) -> None:
    """Pass on every connection, until cancelled."""
    host, _, port = target.rpartition(":")

    async def pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        onward = await asyncio.open_connection(host, int(port))
        await asyncio.gather(_copy(reader, onward[1]), _copy(onward[0], writer))

    own_host, _, own_port = listen.rpartition(":")
    server = await asyncio.start_server(pass_on, own_host, int(own_port))
    sys.stdout.write("relaying\n")
    sys.stdout.flush()
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(relay(sys.argv[1], sys.argv[2]))
