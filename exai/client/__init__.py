"""A client of a running daemon: the store of `open_app`, over `POST /mcp`.

`connect` is for asyncio, `connect_blocking` for programs without an event loop, and `blocking` gives any store, such as
that of `open_app`, without one.
"""

from exai.client.blocking import BlockingStore, blocking, connect_blocking
from exai.client.store import Client, connect

__all__ = ["BlockingStore", "Client", "blocking", "connect", "connect_blocking"]
