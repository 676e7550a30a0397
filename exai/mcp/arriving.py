"""What a WebSocket's peer has sent so far, read in slices and weighed: frames, bytes and the time they cost.

Invariant: one turn of the event loop spends no more than `TURN_S` and one message on a connection's input; the bytes of
messages that are not whole, or wait, are in the owner's account; after a refusal nothing more is read.
"""

from __future__ import annotations

import asyncio
import time
from typing import Protocol

from exai.account import Account
from exai.config import ServerSettings
from exai.errors import Overloaded
from exai.mcp.frames import read_through
from exai.mcp.library_parts import ASGIReceiveEvent, Frame, WebSocketsSansIOProtocol

SLICE_BYTES = 4_096
"""What is parsed between two looks at the clock; of a long frame four times as much."""

TURN_S = 0.002
MAX_EXCESS_FRAMES = 1_000
"""Control frames and fragments beyond the owner's rate, more than within it, that one connection may send."""

UNCOUNTED_BYTES = 4_096
"""A message that has come no further than this is not counted."""

MESSAGE_PATIENCE = 6.0
"""How many times longer than a handshake a message may take to arrive: it is up to 8 MiB."""

REFUSED_CLOSE_S = 1.0
"""How long a refused peer has to read why."""

POLICY_VIOLATION = 1008
TRY_AGAIN_LATER = 1013


class Meter(Protocol):
    """What an owner's connections cost; see `exai.mcp.quota.Quota`."""

    account: Account

    def spend(self, size_bytes: int, count: int = 1) -> bool:
        """Count so many messages or frames; False when they were beyond the owner's rate."""

    def bar(self) -> None:
        """Refuse new connections of the owner for a while."""

    def spent_s(self, seconds: float) -> float:
        """Count processor time; return how long the owner's next input should wait."""


class Arriving(WebSocketsSansIOProtocol):
    """uvicorn's protocol for WebSockets with limits on what arrives; `meter` is there once the owner is known."""

    limits: ServerSettings
    meter: Meter | None = None
    is_refused = False
    _feeding: asyncio.Handle | None = None
    _late: asyncio.TimerHandle | None = None
    _odd_frames = 0
    _excess_frames = 0
    _held_bytes = 0
    _queued_bytes = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Read through a parser whose buffer can be weighed."""
        super().connection_made(transport)
        self.gathered = bytearray()
        self.unfed = bytearray()
        self.reader = read_through(self.conn)

    def connection_lost(self, exc: Exception | None) -> None:
        """Free what has arrived at once: the objects of a connection refer to each other until the next collection."""
        self.drop_input()
        super().connection_lost(exc)
        self.conn.parser.close()
        self.meter = None

    def data_received(self, data: bytes) -> None:
        """Feed the parser, in slices when there is much."""
        if self.is_refused:
            return
        if self.unfed or self._feeding is not None or len(data) > SLICE_BYTES:
            self.unfed += data
            if self._feeding is None:
                self._feed()
        else:
            super().data_received(data)
            if self._odd_frames:
                self._count()
        self._weigh()

    def handle_ping(self) -> None:
        """Count it."""
        self._odd_frames += 1
        super().handle_ping()

    def handle_pong(self, event: Frame) -> None:
        """Count it."""
        self._odd_frames += 1
        super().handle_pong(event)

    def handle_cont(self, event: Frame) -> None:
        """Gather a message of several frames in one buffer: nothing limits their number, only their size together."""
        self._odd_frames += 1
        if self.frames:
            self.gathered = bytearray(self.frames[0])
            self.frames = []
        self.gathered += event.data
        if event.fin:
            self.frames = [bytes(self.gathered)]
            self.gathered = bytearray()
            self.send_receive_event_to_app()

    async def receive(self) -> ASGIReceiveEvent:
        """Go on with what has arrived once nothing waits any more."""
        message = await super().receive()
        if self.queue.empty():
            self._queued_bytes = 0
            if not self.is_refused:
                self._weigh()
            if self.unfed and self._feeding is None and not self.read_paused:
                self._feeding = self.loop.call_soon(self._feed)
        if self.is_refused or self._feeding is not None:
            self._pause()
        return message

    def message_ended(self) -> None:
        """A message is whole: from now on it is counted where it waits or runs."""
        self._release()
        if self._late is not None:
            self._late.cancel()
            self._late = None

    def message_queued(self, size_bytes: int) -> None:
        """A whole message waits for the application."""
        self._queued_bytes += size_bytes

    def read_no_more(self) -> None:
        """Take nothing more from this peer, whatever becomes of the connection."""
        self.is_refused = True
        self.drop_input()
        self._pause()

    def refuse(self, code: int, reason: str) -> None:
        """Close with this code, and read nothing more."""
        if not self.is_refused and not self.close_sent:
            self.conn.fail(code, reason)
            self.handle_parser_exception()
        self.read_no_more()
        self.hurry_close()

    def hurry_close(self) -> None:
        """Give a refused peer a moment to read why, and no longer."""
        if self.close_timer is not None:
            self.close_timer.cancel()
        self.close_timer = self.loop.call_later(REFUSED_CLOSE_S, self.transport.abort)

    def drop_input(self) -> None:
        """Forget what has arrived and is not a message yet."""
        self.unfed = bytearray()
        self.gathered = bytearray()
        self.frames = []
        self.reader.buffer = bytearray()
        if self._feeding is not None:
            self._feeding.cancel()
            self._feeding = None
        self.message_ended()

    def _feed(self) -> None:
        """Parse for one turn, then let others have theirs."""
        self._feeding = None
        if self.transport.is_closing():
            self.unfed.clear()
            return
        began_s = now_s = time.thread_time()
        while self.unfed and not self.read_paused and now_s - began_s < TURN_S:
            size = SLICE_BYTES if len(self.reader.buffer) < SLICE_BYTES else 4 * SLICE_BYTES
            piece = bytes(self.unfed[:size])
            del self.unfed[:size]
            super().data_received(piece)
            if self.conn.parser_exc is not None:
                self.unfed.clear()
            if self.is_refused:
                return
            if self._odd_frames:
                self._count()
            now_s = time.thread_time()
        pause_s = 0.0 if self.meter is None else self.meter.spent_s(now_s - began_s)
        self._weigh()
        if self.is_refused or self.read_paused:
            return
        if pause_s:
            self._feeding = self.loop.call_later(pause_s, self._feed)
        elif self.unfed:
            self._feeding = self.loop.call_soon(self._feed)
        if self._feeding is not None:
            self._pause()
        elif not self.transport.is_closing():
            self.transport.resume_reading()

    def _pause(self) -> None:
        if not self.transport.is_closing():
            self.transport.pause_reading()

    def _count(self) -> None:
        """Count frames that are no whole messages among the owner's requests."""
        count, self._odd_frames = self._odd_frames, 0
        if self.meter is None:
            return
        if self.meter.spend(0, count):
            self._excess_frames = max(0, self._excess_frames - count)
            return
        self._excess_frames += count
        if self._excess_frames > MAX_EXCESS_FRAMES:
            self.meter.bar()
            self.refuse(POLICY_VIOLATION, "too many control frames and fragments")

    def _weigh(self) -> None:
        """Have in the owner's account what has arrived, and limit how long a message may take."""
        partial = len(self.unfed) + len(self.reader.buffer) + len(self.gathered)
        if self.frames:
            partial += len(self.frames[0])
        pending = partial + self._queued_bytes
        if pending <= UNCOUNTED_BYTES:
            if self._held_bytes or self._late is not None:
                self.message_ended()
            return
        if self.meter is None or self.is_refused:
            return
        more = pending - self._held_bytes
        if more > 0:
            try:
                self.meter.account.take(more, "messages that arrive")
            except Overloaded as error:
                self.refuse(TRY_AGAIN_LATER, str(error)[:120])
                return
        else:
            self.meter.account.give(-more)
        self._held_bytes = pending
        if self._late is None and partial > UNCOUNTED_BYTES:
            limit_s = MESSAGE_PATIENCE * self.limits.handshake_timeout_s
            self._late = self.loop.call_later(limit_s, self.refuse, POLICY_VIOLATION, "a message took too long")

    def _release(self) -> None:
        if self._held_bytes and self.meter is not None:
            self.meter.account.give(self._held_bytes)
        self._held_bytes = 0
