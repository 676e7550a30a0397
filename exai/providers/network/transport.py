"""The transport of a provider's HTTP client: a pool of `PacedStream` connections."""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import contextmanager
from typing import Final
from urllib.request import getproxies

import httpcore
import httpx

from exai.providers.network.streams import PacedBackend
from exai.providers.network.turns import ReadTurns

_ERRORS: Final[Mapping[type[Exception], type[httpx.TransportError]]] = {
    httpcore.ConnectTimeout: httpx.ConnectTimeout,
    httpcore.ReadTimeout: httpx.ReadTimeout,
    httpcore.WriteTimeout: httpx.WriteTimeout,
    httpcore.PoolTimeout: httpx.PoolTimeout,
    httpcore.TimeoutException: httpx.TimeoutException,
    httpcore.ConnectError: httpx.ConnectError,
    httpcore.ReadError: httpx.ReadError,
    httpcore.WriteError: httpx.WriteError,
    httpcore.NetworkError: httpx.NetworkError,
    httpcore.UnsupportedProtocol: httpx.UnsupportedProtocol,
    httpcore.LocalProtocolError: httpx.LocalProtocolError,
    httpcore.RemoteProtocolError: httpx.RemoteProtocolError,
    httpcore.ProtocolError: httpx.ProtocolError,
}
"""By httpcore's error, the more specific ones first."""


def has_proxy() -> bool:
    """Return whether the environment names a proxy, through which only httpx's own transport connects."""
    return bool(getproxies().keys() & {"http", "https", "all"})


class PacedTransport(httpx.AsyncBaseTransport):
    """Sends requests over HTTP/1.1, directly."""

    def __init__(self, verify: ssl.SSLContext, limits: httpx.Limits, turns: ReadTurns) -> None:
        self._pool = httpcore.AsyncConnectionPool(
            ssl_context=verify,
            max_connections=limits.max_connections,
            max_keepalive_connections=limits.max_keepalive_connections,
            keepalive_expiry=limits.keepalive_expiry,
            network_backend=PacedBackend(turns),
        )

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Send a request; return the response with its body unread."""
        url = request.url
        sent = httpcore.Request(
            method=request.method,
            url=httpcore.URL(scheme=url.raw_scheme, host=url.raw_host, port=url.port, target=url.raw_path),
            headers=request.headers.raw,
            content=request.stream,
            extensions=request.extensions,
        )
        with _as_httpx():
            received = await self._pool.handle_async_request(sent)
        return httpx.Response(
            received.status, headers=received.headers, stream=_Body(received), extensions=received.extensions
        )

    async def aclose(self) -> None:
        """Close all connections."""
        await self._pool.aclose()


class _Body(httpx.AsyncByteStream):
    def __init__(self, received: httpcore.Response) -> None:
        self._received = received

    async def __aiter__(self) -> AsyncIterator[bytes]:
        with _as_httpx():
            async for part in self._received.aiter_stream():
                yield part

    async def aclose(self) -> None:
        await self._received.aclose()


@contextmanager
def _as_httpx() -> Iterator[None]:
    try:
        yield
    except Exception as error:
        for kind, meant in _ERRORS.items():
            if isinstance(error, kind):
                raise meant(str(error)) from error
        raise
