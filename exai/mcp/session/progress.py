"""Progress notifications of one call.

Invariant: the numbers of a call's notifications increase; nothing is sent once the call has ended.
"""

from __future__ import annotations

import asyncio

from exai.mcp.core.connection import Connection
from exai.mcp.core.jsonrpc import Json
from exai.mcp.core.protocol import Call, Send
from exai.mcp.core.versions import META_PARTS
from exai.mcp.session.outbox import Outbox


class ProgressReporter:
    """Reports the progress of a call, and repeats the last report periodically while the handler sends none."""

    def __init__(self, call: Call, connection: Connection, outbox: Outbox, interval_s: float) -> None:
        self._call = call
        self._connection = connection
        self._outbox = outbox
        self._interval_s = interval_s
        self._count = 0
        self._latest = "working"
        self._loop = asyncio.get_running_loop()
        self._started_s = self._loop.time()
        self._timer: asyncio.TimerHandle | None = self._repeat_later()

    async def report(self, message: str) -> None:
        """Send a notification; it is dropped if the client reads too slowly."""
        self._latest = message
        if self._timer is not None:
            self._timer.cancel()
            self._send(message)
            self._timer = self._repeat_later()

    def note(self, message: str) -> None:
        """Set the text of the periodic report."""
        self._latest = message

    def offer_part(self, part: Json) -> bool:
        """Send a part of the answer; returns false if the client reads too slowly, or the call has ended."""
        return self._timer is not None and self._send(self._latest, part)

    def stop(self) -> None:
        """Stop reporting."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _repeat_later(self) -> asyncio.TimerHandle:
        return self._loop.call_later(self._interval_s, self._repeat)

    def _repeat(self) -> None:
        self._send(f"{self._latest} ({self._loop.time() - self._started_s:.0f} s)")
        self._timer = self._repeat_later()

    def _send(self, message: str, part: Json | None = None) -> bool:
        data = self._connection.progress(self._call, self._count + 1, message, part)
        # Counted only if it was sent, so that the numbers which the client receives have no gaps.
        if data is None or not self._outbox.offer(Send(data)):
            return False
        self._count += 1
        return True


def takes_parts(call: Call) -> bool:
    """Return whether the client of a call takes parts of its answer."""
    meta = call.params.get("_meta")
    return isinstance(meta, dict) and meta.get(META_PARTS) is True


async def ignore_progress(message: str) -> None:
    """Do nothing: the client did not ask for progress."""
