"""The store at a daemon: `async with connect(url) as store`."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Final

import httpx

from exai.client.checkpoints import CheckpointsClient
from exai.client.connection import StoreConnection, TokenSource
from exai.client.pools import open_pools
from exai.client.services import ChatsClient, ConversationsClient, FilesClient
from exai.errors import InvalidArgument
from exai.validation import check_duration

DEFAULT_URL: Final = "http://127.0.0.1:8079/mcp"
TIMEOUT_S: Final = 30.0
CHAT_TIMEOUT_S: Final = 900.0
MAX_TIMEOUT_S: Final = 86_400.0
MAX_CONNECTIONS: Final = 64
PATH: Final = "/mcp"


@dataclass(frozen=True, slots=True)
class Client:
    """The services of a daemon; the same ones as those of `exai.app.App`. It is an `exai.store.Store`."""

    conversations: ConversationsClient
    files: FilesClient
    chat: ChatsClient
    checkpoints: CheckpointsClient


@asynccontextmanager
async def connect(
    url: str = DEFAULT_URL,
    *,
    token: TokenSource = None,
    timeout_s: float = TIMEOUT_S,
    chat_timeout_s: float = CHAT_TIMEOUT_S,
    max_connections: int = MAX_CONNECTIONS,
) -> AsyncIterator[Client]:
    """Open a client of the daemon at `url`, to which nothing is sent before the first call.

    `token` is the daemon's token, or a function that returns the token of an owner. `timeout_s` limits a call with all
    its repetitions while the daemon cannot be reached, `chat_timeout_s` a call that asks a model. A deadline of the
    context (`exai.resilience.with_deadline`) ends it earlier. Raises `InvalidArgument`.
    """
    address = _address(url)
    check_duration("timeout_s", timeout_s, MAX_TIMEOUT_S)
    check_duration("chat_timeout_s", chat_timeout_s, MAX_TIMEOUT_S)
    async with open_pools(address, max_connections) as pools:
        connection = StoreConnection(pools, address, token, timeout_s)
        yield Client(
            ConversationsClient(connection),
            FilesClient(connection),
            ChatsClient(connection, chat_timeout_s),
            CheckpointsClient(connection),
        )


def _address(url: str) -> str:
    cure = f"Write it like {DEFAULT_URL}"
    try:
        parsed = httpx.URL(url)
    except (httpx.InvalidURL, TypeError):
        raise InvalidArgument("url", "is not an address", cure) from None
    if parsed.scheme not in ("http", "https") or not parsed.host:
        raise InvalidArgument("url", "does not begin with http:// or https:// and a host", cure)
    return str(parsed.copy_with(path=PATH) if parsed.path in ("", "/") else parsed)
