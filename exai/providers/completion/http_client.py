"""Open the HTTP client of one provider: its connections, its headers, and the reason for a connection that failed."""

from __future__ import annotations

import os
import ssl
from typing import Final

import httpx

from exai import __version__
from exai.providers.network.transport import PacedTransport, has_proxy
from exai.providers.network.turns import ReadTurns
from exai.settings.addresses import is_loopback
from exai.settings.load import ProvidersSettings

KEEPALIVE_S: Final = 15.0
_CAUSES_EXAMINED: Final = 8


class HttpClients:
    """Opens the clients of all providers, which share certificates and the order in which their streams are read."""

    def __init__(self, settings: ProvidersSettings) -> None:
        self._settings, self._turns = settings, ReadTurns()
        self._verify: ssl.SSLContext | None = None

    def open(self, base_url: str) -> httpx.AsyncClient:
        """Return a client for one provider."""
        return open_client(base_url, self._settings, self._trust(base_url), self._turns)

    def _trust(self, base_url: str) -> ssl.SSLContext:
        # Reading the certificates of authorities takes 20 ms. Without them no TLS connection can be made.
        if httpx.URL(base_url).scheme == "http" and _is_direct(base_url):
            return ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        if self._verify is None:
            self._verify = httpx.create_ssl_context()
        return self._verify


def open_client(
    base_url: str, settings: ProvidersSettings, verify: ssl.SSLContext, turns: ReadTurns | None = None
) -> httpx.AsyncClient:
    """Return a client for one provider, so that a hung one cannot take the connections of the others.

    Proxies come from the environment as usual, except on the way to this machine itself. `turns` are shared by the
    clients of all providers.
    """
    # `ChatApi` shares the connections between owners before one is asked for here.
    limits = httpx.Limits(max_connections=None, keepalive_expiry=KEEPALIVE_S)
    is_direct = _is_direct(base_url)
    return httpx.AsyncClient(
        transport=PacedTransport(verify, limits, turns or ReadTurns()) if is_direct else None,
        verify=verify,
        limits=limits,
        trust_env=not is_direct,
        follow_redirects=False,
        timeout=httpx.Timeout(None, connect=settings.connect_timeout_s, pool=settings.connect_timeout_s),
    )


def _is_direct(base_url: str) -> bool:
    return is_loopback(httpx.URL(base_url).host) or not has_proxy()


def headers_for(key: str, accept: str) -> dict[str, str]:
    """Headers of every request; compression is declined because its result has no size until it is unpacked."""
    headers = {
        "Accept": accept,
        "Accept-Encoding": "identity",
        "Content-Type": "application/json",
        "User-Agent": f"exai/{__version__}",
    }
    return headers | {"Authorization": f"Bearer {key}"} if key else headers


def reason_of(error: BaseException) -> str:
    """Return the reason for a failed connection, as the operating system or TLS states it, in a few words."""
    reason = type(error).__name__
    cause: BaseException | None = error
    for _ in range(_CAUSES_EXAMINED):
        if cause is None:
            break
        if isinstance(cause, ssl.SSLError):
            return cause.reason or "TLS error"
        if isinstance(cause, OSError) and cause.strerror:
            # asyncio puts its own sentence, with the address, where the system's word would be; resolvers do not.
            return os.strerror(cause.errno) if cause.errno and cause.errno > 0 else cause.strerror
        cause = cause.__cause__ or cause.__context__
    return reason
