"""Reads of this machine's files in threads of their own, of which one that hangs delays no other.

A file system that does not answer, such as that of a network, blocks a thread until it answers. Invariant: a caller
waits at most for its limit, and the thread is then replaced. The error names the path that hangs, and neither it nor
anything below it is read again while it hangs; at most `MAX_HUNG` threads hang at once, `MAX_OWN_HUNG` of one owner.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import PurePath
from typing import Final, TypeVar

from exai.errors import DeadlineExceeded, InvalidArgument, Overloaded, shown
from exai.fairness import Places
from exai.models import Owner
from exai.resilience import bounded

MAX_HUNG: Final = 32
MAX_OWN_HUNG: Final = MAX_HUNG // 2
"""Of one owner, whose network file system keeps no other owner from reading."""

SOMEWHERE: Final = "the file system"
CURE: Final = "Check that its file system answers, or name other files"

T = TypeVar("T")


class PathReading:
    """What one thread reads now. `touch` is called by it before each path."""

    def __init__(self, threads: ReadingThreads, owner: Owner) -> None:
        self._threads, self.owner = threads, owner
        self.path = ""
        self.has_ended = False

    def touch(self, field: str, path: str) -> None:
        """Note that a path is read next. Raises `InvalidArgument` if an earlier reading hangs there."""
        self._threads.check(field, path)
        self.path = path


class ReadingThreads:
    """Threads for readings, `size` at a time and shared fairly between owners; those that hang do not count."""

    def __init__(self, size: int, limit_s: float) -> None:
        self._places, self._limit_s = Places(size), limit_s
        self._left: dict[PathReading, bool] = {}
        """Readings whose callers have left, and whether they did so because of the limit."""

        self._lock = threading.Lock()

    async def run(self, owner: Owner, work: Callable[[PathReading], T]) -> T:
        """Run blocking work in a thread of its own.

        Raises:
            DeadlineExceeded: it, or a free thread, took longer than the limit or the request's deadline.
            Overloaded: as many readings hang as may, of the owner or of all.

        """
        async with self._places.hold(owner, what="a thread that reads files"):
            self._refuse_beyond(owner)
            reading = PathReading(self, owner)
            ended: Future[T] = Future()
            # A thread of an executor would keep the process from ending as long as it hangs.
            thread = threading.Thread(target=self._work, args=(work, reading, ended), name="exai-sources", daemon=True)
            thread.start()
            try:
                return await bounded(asyncio.wrap_future(ended), self._limit_s, SOMEWHERE)
            except TimeoutError as error:
                self._leave(reading, is_late=True)
                at = f"{SOMEWHERE} at {shown(reading.path)}" if reading.path else SOMEWHERE
                raise DeadlineExceeded(at, self._limit_s) from error
            except (DeadlineExceeded, asyncio.CancelledError):
                self._leave(reading, is_late=False)
                raise

    def check(self, field: str, path: str) -> None:
        """Raise `InvalidArgument` if a reading hangs at a path, or beside it."""
        with self._lock:
            hung = [reading.path for reading, is_late in self._left.items() if is_late]
        place = PurePath(path)
        for each in map(PurePath, filter(None, hung)):
            if place == each or each in place.parents:
                raise InvalidArgument(
                    field, f"{shown(path)} is not read, because reading {shown(str(each))} hangs", CURE
                )

    def _refuse_beyond(self, owner: Owner) -> None:
        """Raise `Overloaded` if as many readings hang as may. It names no path that another owner has read."""
        with self._lock:
            hung = list(self._left)
        own = [reading for reading in hung if reading.owner == owner]
        if len(own) >= MAX_OWN_HUNG:
            raise Overloaded(f"readings of files that hang, such as of {shown(own[0].path or SOMEWHERE)}", MAX_OWN_HUNG)
        if len(hung) >= MAX_HUNG:
            raise Overloaded("readings of files that hang", MAX_HUNG)

    def _leave(self, reading: PathReading, *, is_late: bool) -> None:
        with self._lock:
            if not reading.has_ended:
                self._left[reading] = is_late

    def _work(self, work: Callable[[PathReading], T], reading: PathReading, ended: Future[T]) -> None:
        # From now on it cannot be cancelled; its result is dropped if its caller has left.
        if not ended.set_running_or_notify_cancel():
            return
        try:
            found = work(reading)
        except BaseException as error:  # noqa: BLE001 - raised where it is awaited
            self._end(reading)
            ended.set_exception(error)
        else:
            self._end(reading)
            ended.set_result(found)

    def _end(self, reading: PathReading) -> None:
        with self._lock:
            reading.has_ended = True
            self._left.pop(reading, None)
