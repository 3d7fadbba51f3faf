"""`handlers.app:app`, for `faststream run`; and `python -m handlers.app`, which needs no extra."""

import asyncio
import logging

from handlers.control import create_app

app = create_app()

if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s")
    asyncio.run(app.run())
