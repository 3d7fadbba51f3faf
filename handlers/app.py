"""`handlers.app:app`, for `faststream run`; and `python -m handlers.app`, which needs no extra."""

import asyncio
import logging
import sys

from handlers.control import create_app
from mesh.errors import MeshError

app = create_app()

if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s")
    try:
        asyncio.run(app.run())
    except MeshError as error:
        sys.exit(f"mesh: {error}")
