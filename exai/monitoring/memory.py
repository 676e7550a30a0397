"""Collects reference cycles when the process has grown, and returns free memory to the system.

Python's own collections are triggered by the number of objects, and cycles with large buffers have few. Invariant:
collections take at most a small share of the time (`TIME_SHARE`), however many objects there are.
"""

from __future__ import annotations

import asyncio
import ctypes
import gc
import os
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

from exai.background import running
from exai.models import Recorder

LOOK_INTERVAL_S: Final = 2.0
GROWN_BYTES: Final = 33_554_432
"""Growth since the last collection that triggers the next one."""

LONGEST_S: Final = 60.0
"""Time since the last collection after which the next one is due without growth."""

TIME_SHARE: Final = 0.01

_STATM: Final = Path("/proc/self/statm")


class Collector:
    """Decides when to collect. `resident_bytes` is 0 if the system does not report it."""

    def __init__(
        self,
        recorder: Recorder,
        *,
        resident_bytes: Callable[[], int],
        collect: Callable[[], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._recorder, self._clock = recorder, clock
        self._resident_bytes, self._collect = resident_bytes, collect
        self._floor_bytes = resident_bytes()
        self._collected_at = self._not_before = clock()

    def look(self) -> bool:
        """Collect if due. Returns whether it did."""
        now, bytes_now = self._clock(), self._resident_bytes()
        self._floor_bytes = min(self._floor_bytes, bytes_now)
        self._recorder.gauge("process_resident_bytes", bytes_now)
        has_grown = bytes_now - self._floor_bytes > GROWN_BYTES
        if now < self._not_before or not (has_grown or now - self._collected_at >= LONGEST_S):
            return False
        self._collect()
        took_s = self._clock() - now
        self._recorder.observe("memory_collection_seconds", took_s)
        self._floor_bytes = self._resident_bytes()
        self._collected_at = now
        self._not_before = now + took_s / TIME_SHARE
        return True


def resident_bytes() -> int:
    """Return the resident memory of this process; 0 if the system does not report it."""
    try:
        return int(_STATM.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError):
        return 0


def collect() -> None:
    """Collect reference cycles, and return the freed pages to the system."""
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if os.name == "posix" else None
    if trim is not None:
        trim(0)


@asynccontextmanager
async def watch_memory(recorder: Recorder) -> AsyncIterator[None]:
    """Collect as needed until the block ends; objects that exist at its start are excluded from collections."""
    gc.collect()
    gc.freeze()
    collector = Collector(recorder, resident_bytes=resident_bytes, collect=collect)

    async def look() -> None:
        while True:
            await asyncio.sleep(LOOK_INTERVAL_S)
            collector.look()

    try:
        async with running("memory", look()):
            yield
    finally:
        gc.unfreeze()
