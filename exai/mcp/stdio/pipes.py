"""Newline-delimited messages on two file descriptors, each of them read or written by its own thread.

Invariant: a line is read in time linear to its length and held only up to a limit. Neither thread prevents the process
from exiting, although both may be blocked on a pipe.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import queue
import select
import threading
from concurrent.futures import CancelledError
from dataclasses import dataclass
from typing import Any, TypeAlias

READ_BYTES = 65_536
EDGE_BYTES = 65_536
"""Bytes kept of either end of a line that is too long."""

LOOK_INTERVAL_S = 0.5
BYTE_ORDER_MARK = b"\xef\xbb\xbf"


@dataclass(frozen=True, slots=True)
class OverlongLine:
    """A line above the limit: its size and its two ends."""

    size_bytes: int
    head: bytes
    tail: bytes


InputLine: TypeAlias = bytes | OverlongLine
Job: TypeAlias = "tuple[bytes, asyncio.Future[None]]"


class LineSplitter:
    """Splits input into lines. Empty lines are omitted; line ends and byte order marks are removed."""

    def __init__(self, limit_bytes: int) -> None:
        self._limit_bytes = limit_bytes
        self._parts: list[bytes] = []
        self._size_bytes = 0
        self._head: bytes | None = None

    def feed(self, data: bytes) -> list[InputLine]:
        """Return the lines that `data` completes."""
        *whole, rest = data.split(b"\n")
        lines = []
        for part in whole:
            self._add(part)
            if (line := self.end()) is not None:
                lines.append(line)
        self._add(rest)
        return lines

    def end(self) -> InputLine | None:
        """Return the last line at the end of input, or None if it is empty."""
        parts, size_bytes, head = self._parts, self._size_bytes, self._head
        self._parts, self._size_bytes, self._head = [], 0, None
        if head is not None:
            return OverlongLine(size_bytes, head, b"".join(parts)[-EDGE_BYTES:])
        return b"".join(parts).strip().removeprefix(BYTE_ORDER_MARK).strip() or None

    def _add(self, part: bytes) -> None:
        self._parts.append(part)
        self._size_bytes += len(part)
        if self._size_bytes <= self._limit_bytes:
            return
        if self._head is None:
            self._head = b"".join(self._parts)[:EDGE_BYTES].removeprefix(BYTE_ORDER_MARK)
        kept = sum(map(len, self._parts))
        if kept > 2 * EDGE_BYTES + READ_BYTES:
            self._parts = [b"".join(self._parts)[-EDGE_BYTES:]]


def start_reading(
    descriptor: int,
    loop: asyncio.AbstractEventLoop,
    lines: asyncio.Queue[InputLine | None],
    ended: asyncio.Event,
    limit_bytes: int,
) -> None:
    """Put each line into the queue, and None after the last. `ended` is set as soon as the end of input is known."""
    _start_thread("stdin", _read, descriptor, loop, lines, ended, limit_bytes)


def start_writing(descriptor: int, loop: asyncio.AbstractEventLoop) -> queue.SimpleQueue[Job]:
    """Return a queue of messages to write, each with a future that is resolved once the message is written."""
    jobs: queue.SimpleQueue[Job] = queue.SimpleQueue()
    _start_thread("stdout", _write, descriptor, loop, jobs)
    return jobs


def _start_thread(name: str, target: Any, *arguments: Any) -> None:
    """Start a daemon thread, which may still be blocked on a pipe when the process exits."""
    threading.Thread(target=target, args=arguments, name=f"bridge {name}", daemon=True).start()


def _read(
    descriptor: int,
    loop: asyncio.AbstractEventLoop,
    lines: asyncio.Queue[InputLine | None],
    ended: asyncio.Event,
    limit_bytes: int,
) -> None:
    """Read the descriptor itself: the interpreter aborts if a thread holds a buffered file at exit."""
    splitter = LineSplitter(limit_bytes)

    def put(line: InputLine | None) -> None:
        waiting = asyncio.run_coroutine_threadsafe(lines.put(line), loop)
        while True:
            with contextlib.suppress(TimeoutError):
                return waiting.result(LOOK_INTERVAL_S)
            if _is_hung_up(descriptor):
                loop.call_soon_threadsafe(ended.set)

    with contextlib.suppress(RuntimeError, CancelledError):  # the loop is gone: so is the bridge
        try:
            while data := os.read(descriptor, READ_BYTES):
                for line in splitter.feed(data):
                    put(line)
        except OSError:
            pass  # The other end is gone.
        loop.call_soon_threadsafe(ended.set)
        if (rest := splitter.end()) is not None:
            put(rest)
        put(None)


def _is_hung_up(descriptor: int) -> bool:
    """Return whether the other end is closed, even if there is more to read."""
    if not hasattr(select, "poll"):
        return False
    poll = select.poll()
    poll.register(descriptor, 0)
    return bool(poll.poll(0))


def _write(descriptor: int, loop: asyncio.AbstractEventLoop, jobs: queue.SimpleQueue[Job]) -> None:
    with contextlib.suppress(RuntimeError):  # the loop is gone: so is the bridge
        while True:
            data, written = jobs.get()
            view = memoryview(data)
            try:
                while view:
                    view = view[os.write(descriptor, view) :]
            except OSError as error:
                loop.call_soon_threadsafe(_settle, written, BrokenPipeError(str(error)))
                return
            loop.call_soon_threadsafe(_settle, written, None)


def _settle(future: asyncio.Future[None], problem: Exception | None) -> None:
    if future.done():
        return
    if problem is None:
        future.set_result(None)
    else:
        future.set_exception(problem)
