"""WebSocket input: read in slices and metered by frames, bytes and processor time.

Invariant: one iteration of the event loop spends at most `TURN_S` and one message on a connection's input; the bytes of
incomplete and waiting messages are counted in the owner's account; after a refusal nothing more is read.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Generator
from typing import Protocol

from exai.account import Account
from exai.errors import Overloaded
from exai.mcp.transport.library_parts import ASGIReceiveEvent, Frame, StreamReader, WebSocketsSansIOProtocol
from exai.mcp.transport.library_parts import Protocol as Peer
from exai.settings.load import ServerSettings

SLICE_BYTES = 4_096
"""Bytes parsed between two reads of the clock; four times as much within a long frame."""

TURN_S = 0.002
MAX_EXCESS_FRAMES = 1_000
"""Net excess over the owner's rate, in control frames and fragments, that one connection may send."""

UNCOUNTED_BYTES = 4_096
"""An incomplete message is counted once it is larger than this."""

MESSAGE_PATIENCE = 6.0
"""Timeout of a message as a multiple of that of a handshake: a message has up to 8 MiB."""

REFUSED_CLOSE_S = 1.0
"""Time a refused peer has to read the close frame."""

POLICY_VIOLATION = 1008
TRY_AGAIN_LATER = 1013


class Meter(Protocol):
    """The owner's limits and usage; see `exai.mcp.session.quota.Quota`."""

    account: Account

    def spend(self, size_bytes: int, count: int = 1) -> bool:
        """Count messages or frames. Returns False if they exceed the owner's rate."""

    def bar(self) -> None:
        """Refuse new connections of the owner for a while."""

    def charge_time(self, seconds: float) -> float:
        """Count processor time; return the delay in seconds before the owner's next input."""


class FrameReader(StreamReader):
    """The parser's source, which knows whether the parser is at the start of a frame."""

    def __init__(self) -> None:
        super().__init__()
        self.is_between_frames = False

    def at_eof(self) -> Generator[None, None, bool]:
        """Note that the parser is between two frames: it calls this method there, and nowhere else."""
        self.is_between_frames = True
        has_ended = yield from super().at_eof()
        self.is_between_frames = False
        return has_ended


def read_through(conn: Peer) -> FrameReader:
    """Replace the source of a connection that has received nothing with a `FrameReader`, and return the reader."""
    reader = conn.reader = FrameReader()
    conn.parser = conn.parse()
    next(conn.parser)
    return reader


class Arriving(WebSocketsSansIOProtocol):
    """uvicorn's WebSocket protocol with limits on input. `meter` is set once the owner is known."""

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
        """Read through a parser whose buffer size is known."""
        super().connection_made(transport)
        self.gathered = bytearray()
        self.unfed = bytearray()
        self.reader = read_through(self.conn)

    def connection_lost(self, exc: Exception | None) -> None:
        """Free the input at once: the objects of a connection are in reference cycles until the next collection."""
        self.drop_input()
        super().connection_lost(exc)
        self.conn.parser.close()
        self.meter = None

    def data_received(self, data: bytes) -> None:
        """Feed the parser, in slices if there is much input."""
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
        """Count the frame."""
        self._odd_frames += 1
        super().handle_ping()

    def handle_pong(self, event: Frame) -> None:
        """Count the frame."""
        self._odd_frames += 1
        super().handle_pong(event)

    def handle_cont(self, event: Frame) -> None:
        """Collect the fragments of a message in one buffer: only their total size is limited, not their number."""
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
        """Resume with buffered input once no message waits."""
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
        """Release the bytes and timer of a complete message: from now on it is counted where it waits or runs."""
        self._release()
        if self._late is not None:
            self._late.cancel()
            self._late = None

    def message_queued(self, size_bytes: int) -> None:
        """Note that a complete message waits for the application."""
        self._queued_bytes += size_bytes

    def read_no_more(self) -> None:
        """Stop reading from this peer for the rest of the connection."""
        self.is_refused = True
        self.drop_input()
        self._pause()

    def refuse(self, code: int, reason: str) -> None:
        """Close with this code and stop reading."""
        if not self.is_refused and not self.close_sent:
            self.conn.fail(code, reason)
            self.handle_parser_exception()
        self.read_no_more()
        self.hurry_close()

    def hurry_close(self) -> None:
        """Limit the time a refused peer has to read the close frame."""
        if self.close_timer is not None:
            self.close_timer.cancel()
        self.close_timer = self.loop.call_later(REFUSED_CLOSE_S, self.transport.abort)

    def drop_input(self) -> None:
        """Discard input that is not a complete message yet."""
        self.unfed = bytearray()
        self.gathered = bytearray()
        self.frames = []
        self.reader.buffer = bytearray()
        if self._feeding is not None:
            self._feeding.cancel()
            self._feeding = None
        self.message_ended()

    def _feed(self) -> None:
        """Parse for one time slice, then yield to other connections."""
        self._feeding = None
        if self.transport.is_closing():
            self.unfed.clear()
            return
        began_s = now_s = time.thread_time()
        # Thread time, not wall time: the owner is charged for it, but not for the time of other processes.
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
        pause_s = 0.0 if self.meter is None else self.meter.charge_time(now_s - began_s)
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
        """Count frames that are not complete messages against the owner's rate."""
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
        """Count the input in the owner's account, and limit the time in which a message may arrive."""
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
