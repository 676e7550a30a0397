"""Requests the health of a running daemon over HTTP; light enough for a container's frequent health checks.

Invariant: it never uses a proxy, because it checks whether this address answers from here.
"""

from __future__ import annotations

import http.client
import json
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from exai.errors import ConfigError, StartupError
from exai.program import program

TIMEOUT_S = 5.0
MAX_REPLY_BYTES = 1_048_576
SCHEMES = {"http": False, "ws": False, "https": True, "wss": True}


@dataclass(frozen=True, slots=True)
class HealthResponse:
    """The response to GET /health; `healthy` is the daemon's own verdict."""

    url: str
    healthy: bool
    body: dict[str, Any]


def health_url(address: str) -> str:
    """Return the URL of the health route for any of a daemon's addresses. Raises ConfigError."""
    parts = urlsplit(address if "://" in address else f"http://{address}")
    try:
        port = parts.port
    except ValueError:
        port = -1
    if parts.scheme not in SCHEMES or not parts.hostname or port == -1 or "@" in parts.netloc:
        raise ConfigError("--url", "is not the address of a daemon", "It looks like http://127.0.0.1:8079")
    path = parts.path.rstrip("/")
    path = path if path.endswith("/health") else f"{path.removesuffix('/mcp')}/health"
    return f"{'https' if SCHEMES[parts.scheme] else 'http'}://{parts.netloc}{path}"


def local_address(host: str, port: int) -> str:
    """Return the address by which this machine reaches a server bound to `host`, which may be a wildcard."""
    reachable = {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}.get(host, host)
    return f"[{reachable}]:{port}" if ":" in reachable else f"{reachable}:{port}"


def ask_health(url: str, token: str | None = None, timeout_s: float = TIMEOUT_S) -> HealthResponse:
    """GET `url`. Raises StartupError if nothing answers there, or if the answer is not from EXAI."""
    parts = urlsplit(url)
    kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
    connection = kind(parts.hostname or "", parts.port, timeout=timeout_s)
    try:
        connection.request("GET", parts.path, headers={"Authorization": f"Bearer {token}"} if token else {})
        reply = connection.getresponse()
        data = reply.read(MAX_REPLY_BYTES)
    except TimeoutError as error:
        raise StartupError(url, f"no answer within {timeout_s:g} s", "Is the daemon overloaded or stopped?") from error
    except (OSError, http.client.HTTPException) as error:
        problem = getattr(error, "strerror", None) or type(error).__name__
        raise StartupError(
            url, f"cannot be reached ({problem})", f"Start the daemon with `{program()} serve`"
        ) from error
    finally:
        connection.close()
    if reply.status in (401, 403):
        raise ConfigError("EXAI_TOKEN", f"{url} asks for another token", "Set it to the daemon's EXAI_SERVER__TOKEN")
    return _judge(url, reply.status, data)


def _judge(url: str, status: int, data: bytes) -> HealthResponse:
    try:
        body = json.loads(data)
    except (ValueError, RecursionError):
        body = None
    if not isinstance(body, dict) or body.get("service") != "exai":
        raise StartupError(url, f"is answered by something that is not EXAI (HTTP {status})", "Check host and port")
    return HealthResponse(url, status == 200, body)
