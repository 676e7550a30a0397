"""The pools of a client's connections: which one a request is given."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

import httpx
import pytest

from exai.client.pools import POOL_CONNECTIONS, HttpPools

URL = "http://127.0.0.1:8079/mcp"


def test_requests_fill_one_pool_after_the_other_and_return_to_the_first() -> None:
    """Few requests at a time use few connections, which stay open."""
    pools = HttpPools(URL, 3 * POOL_CONNECTIONS)
    with ExitStack() as stack:
        clients = [stack.enter_context(pools.borrow()) for _ in range(3 * POOL_CONNECTIONS)]
        assert [clients.count(each) for each in dict.fromkeys(clients)] == [POOL_CONNECTIONS] * 3
    with pools.borrow() as client:
        assert client is clients[0]


@pytest.mark.parametrize("number", [1, 2, 4, 5, 64])
def test_no_more_connections_are_allowed_than_were_asked_for(number: int) -> None:
    """A request beyond them waits in the pool with the fewest."""
    pools = HttpPools(URL, number)
    with ExitStack() as stack:
        clients = [stack.enter_context(pools.borrow()) for _ in range(3 * number)]
    assert len(set(clients)) == -(-number // POOL_CONNECTIONS)
    assert sum(_connections(each) for each in set(clients)) == number
    for each in set(clients):
        assert clients.count(each) == 3 * _connections(each)


def test_certificates_are_read_once_and_only_for_an_encrypted_address() -> None:
    pools = HttpPools("https://example.org/mcp", 8)
    with ExitStack() as stack:
        first, *_, last = [stack.enter_context(pools.borrow()) for _ in range(8)]
        assert first is not last
        assert _pool(first)._ssl_context is _pool(last)._ssl_context


def _connections(client: httpx.AsyncClient) -> int:
    number = _pool(client)._max_connections
    assert isinstance(number, int)
    return number


def _pool(client: httpx.AsyncClient) -> Any:
    return client._transport._pool  # type: ignore[attr-defined]
