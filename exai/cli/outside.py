"""The checks of `exai doctor --url`: what a client at another place sees of a daemon behind a proxy.

Invariant: nothing is changed; each check is one request with a time limit, and never uses a proxy of the environment.
"""

from __future__ import annotations

import http.client
import ssl
import time
from typing import Final
from urllib.parse import urlsplit

from exai.cli.health_client import health_url
from exai.models import Finding

LIMIT_S: Final = 10.0
SLOW_EVENT_S: Final = 5.0
UPGRADE: Final = {
    "Connection": "Upgrade",
    "Upgrade": "websocket",
    "Sec-WebSocket-Key": "ZXhhaS1kb2N0b3ItZXhhaQ==",
    "Sec-WebSocket-Version": "13",
    "Sec-WebSocket-Protocol": "mcp",
}
NGINX_UPGRADE: Final = (
    "Let the proxy pass the upgrade on. nginx: proxy_http_version 1.1; proxy_set_header Upgrade $http_upgrade; "
    'proxy_set_header Connection "upgrade". Caddy and Traefik do it by themselves'
)
NGINX_STREAM: Final = "Turn off buffering in the proxy. nginx: proxy_buffering off; Caddy: flush_interval -1"


class Visitor:
    """A client at `address`, with a token or without one."""

    def __init__(self, address: str, token: str | None) -> None:
        parts = urlsplit(health_url(address))
        self.host, self._port, self._is_secure = parts.hostname or "", parts.port, parts.scheme == "https"
        self._base = parts.path.removesuffix("/health")
        self.origin = f"{parts.scheme}://{parts.netloc}"
        self._token = {"Authorization": f"Bearer {token}"} if token else {}

    def get(
        self, path: str, headers: dict[str, str] | None = None, *, with_token: bool = True
    ) -> tuple[http.client.HTTPResponse, http.client.HTTPConnection]:
        """Send a request; returns the reply's head, and the connection to close. Raises `OSError`."""
        kind = http.client.HTTPSConnection if self._is_secure else http.client.HTTPConnection
        connection = kind(self.host, self._port, timeout=LIMIT_S)
        own = self._token if with_token else {}
        connection.request("GET", f"{self._base}{path}", headers={**own, **(headers or {})})
        return connection.getresponse(), connection

    def status(self, path: str, headers: dict[str, str] | None = None, *, with_token: bool = True) -> int:
        """Return the status of the reply; 0 if the server closed the connection instead."""
        try:
            reply, connection = self.get(path, headers, with_token=with_token)
        except http.client.HTTPException:
            return 0
        connection.close()
        return reply.status


def check_from_outside(address: str, token: str | None) -> list[Finding]:
    """Return findings, beginning with whether a daemon answers there at all."""
    visitor = Visitor(address, token)
    try:
        first = _reachable(visitor)
        if first.state == "fail":
            return [first]
        return [
            first,
            _upgrade(visitor, has_token=token is not None),
            *_origin(visitor),
            _stream(visitor),
            _metrics(visitor),
        ]
    except (OSError, http.client.HTTPException) as error:
        return [Finding("connection", "fail", f"{visitor.origin}: {error}", "Check the proxy and its log")]


def _reachable(visitor: Visitor) -> Finding:
    part = "address"
    try:
        status = visitor.status("/health/live")
    except ssl.SSLCertVerificationError as error:
        cure = "Give the proxy a certificate of a public authority for this name; Caddy gets one by itself"
        return Finding(part, "fail", f"{visitor.origin}: the certificate is not valid ({error.verify_message})", cure)
    except TimeoutError:
        return Finding(
            part, "fail", f"{visitor.origin}: no answer within {LIMIT_S:g} s", "Check the firewall and the port"
        )
    except OSError as error:
        return Finding(part, "fail", f"{visitor.origin}: {error.strerror or error}", "Check the name and the port")
    if status in (200, 401):
        return Finding(part, "ok", visitor.origin)
    cure = "Check that the daemon runs, and that the proxy passes / to it"
    if status == 421:
        cure = f"The daemon does not serve this name: set EXAI_SERVER__ALLOWED_HOSTS={visitor.host}"
    return Finding(part, "fail", f"GET /health/live answers {status}", cure)


def _upgrade(visitor: Visitor, *, has_token: bool) -> Finding:
    part, status = "websocket", visitor.status("/ws", UPGRADE)
    if status == 101:
        return Finding(part, "ok", "the upgrade is passed on")
    if status == 401:
        said = "refused the token" if has_token else "asks for a token"
        return Finding(part, "warn", f"the daemon {said}; the upgrade itself was not tried", "Set EXAI_TOKEN")
    if status == 403:
        return Finding(part, "fail", "refused with 403", f"Set EXAI_SERVER__ALLOWED_ORIGINS={visitor.origin}")
    return Finding(
        part, "fail", f"the upgrade was answered with {status or 'the end of the connection'}", NGINX_UPGRADE
    )


def _origin(visitor: Visitor) -> list[Finding]:
    """Return a finding if a page from this address may not connect, as a browser would."""
    status = visitor.status("/ws", {**UPGRADE, "Origin": visitor.origin})
    if status == 403:
        cure = f"Set EXAI_SERVER__ALLOWED_ORIGINS={visitor.origin}, and let the proxy pass Host on"
        return [Finding("origin", "fail", f"a page of {visitor.origin} may not connect", cure)]
    return [Finding("origin", "ok", f"a page of {visitor.origin} may connect")] if status == 101 else []


def _stream(visitor: Visitor) -> Finding:
    part, began = "event stream", time.monotonic()
    try:
        reply, connection = visitor.get("/live", {"Accept": "text/event-stream"})
        if reply.status != 200:
            connection.close()
            return Finding(part, "warn", f"GET /live answers {reply.status}", "Set EXAI_TOKEN to try it")
        reply.read(1)
        connection.close()
    except TimeoutError:
        return Finding(part, "fail", f"no event arrived within {LIMIT_S:g} s: the proxy holds it back", NGINX_STREAM)
    took_s = time.monotonic() - began
    if took_s > SLOW_EVENT_S:
        return Finding(part, "warn", f"the first event took {took_s:.1f} s", NGINX_STREAM)
    return Finding(part, "ok", f"the first event came after {took_s:.1f} s")


def _metrics(visitor: Visitor) -> Finding:
    if visitor.status("/metrics", with_token=False) == 200:
        cure = "Let the proxy refuse /metrics, or set EXAI_SERVER__METRICS_TOKEN"
        return Finding("metrics", "warn", "everyone can read /metrics", cure)
    return Finding("metrics", "ok", "not readable without a token")
