"""Extensions of an ASGI scope, by which the connection's protocol offers more than ASGI does."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

from exai.mcp.transport.metering import Meter

ABORT = "exai.abort"
"""The ASGI extension in which a protocol passes a function that aborts the connection."""

DIRECT = "exai.direct"
"""The ASGI extension in which a WebSocket protocol passes its `Direct`."""


class Direct(Protocol):
    """The fast path of a WebSocket, beside ASGI's `receive` and `send`, without queue, task switch or pause in reading.
    A message that cannot be handled at once takes the regular path; the order of messages is kept.
    """

    def send_now(self, data: bytes) -> bool:
        """Send a text frame, or send nothing and return False."""

    def offer_to(self, take: Callable[[bytes], bool], meter: Meter) -> None:
        """Pass whole messages to `take` from now on; those it returns False for are delivered by `receive`.

        Input is counted by `meter` from now on.
        """

    def read_no_more(self) -> None:
        """Stop reading from the peer; the caller still has to close the connection."""


def peer_of(scope: Mapping[str, Any]) -> str:
    """Return the peer's address for logs."""
    client = scope.get("client")
    return f"{client[0]}:{client[1]}" if client else "unknown"


def abort_of(scope: Mapping[str, Any]) -> Callable[[], None]:
    """Return the function that aborts this connection; it does nothing under a server without the extension."""
    abort: Callable[[], None] = (scope.get("extensions") or {}).get(ABORT, {}).get(ABORT, _cannot_abort)
    return abort


def direct_of(scope: Mapping[str, Any]) -> Direct | None:
    """Return the fast path of a WebSocket; None under a server without the extension."""
    direct: Direct | None = (scope.get("extensions") or {}).get(DIRECT, {}).get(DIRECT)
    return direct


def _cannot_abort() -> None:
    """Do nothing: without the extension only the peer's own timeouts end the connection."""
