"""CORS for web pages of allowed origins: preflight answers, and headers on every answer.

Invariant: an origin that is not allowed gets no such header, so that its pages cannot read any answer.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from starlette.types import Message, Send

ALLOWED_METHODS = b"GET, POST, DELETE, OPTIONS"
ALLOWED_HEADERS = (
    "authorization, content-type, accept, last-event-id, mcp-protocol-version, mcp-session-id, mcp-method, mcp-name"
)
EXPOSED_HEADERS = b"www-authenticate, retry-after, mcp-protocol-version, mcp-session-id"
MAX_AGE_S = b"600"

_HEADER_NAMES = re.compile(r"[a-z0-9-]+(?:\s*,\s*[a-z0-9-]+){0,49}", re.IGNORECASE)


def is_preflight(method: str, headers: Mapping[str, str]) -> bool:
    """Return whether a request is a preflight, which browsers send before a page's request."""
    return method == "OPTIONS" and "access-control-request-method" in headers


def with_cors(send: Send, origin: str) -> Send:
    """Return a `send` that lets pages of this origin, which has been checked, read the answer."""
    added = [
        (b"access-control-allow-origin", origin.encode("latin-1")),
        (b"access-control-expose-headers", EXPOSED_HEADERS),
        (b"vary", b"Origin"),
    ]

    async def send_on(message: Message) -> None:
        if message["type"] == "http.response.start":
            message = {**message, "headers": [*message.get("headers", ()), *added]}
        await send(message)

    return send_on


async def answer_preflight(headers: Mapping[str, str], send: Send) -> None:
    """Answer a preflight request by allowing the requested method and headers; `send` adds the origin."""
    wanted = headers.get("access-control-request-headers", "")
    allowed = wanted if _HEADER_NAMES.fullmatch(wanted) else ALLOWED_HEADERS
    found = [
        (b"access-control-allow-methods", ALLOWED_METHODS),
        (b"access-control-allow-headers", allowed.encode("latin-1")),
        (b"access-control-max-age", MAX_AGE_S),
    ]
    if headers.get("access-control-request-private-network") == "true":
        found.append((b"access-control-allow-private-network", b"true"))
    await send({"type": "http.response.start", "status": 204, "headers": found})
    await send({"type": "http.response.body", "body": b""})
