"""Garbage collection by memory growth, with a clock and a memory that a test sets."""

from __future__ import annotations

import gc
import weakref

from exai.monitoring.memory import GROWN_BYTES, LONGEST_S, TIME_SHARE, Collector, collect, resident_bytes
from tests.support.mcp_server import Recording


class Process:
    """A process that grows, and whose collections take a time and free an amount."""

    def __init__(self) -> None:
        self.now, self.bytes, self.took_s, self.garbage_bytes = 0.0, 100 * GROWN_BYTES, 0.0, 0
        self.collector = Collector(
            Recording(), resident_bytes=lambda: self.bytes, collect=self.collect, clock=lambda: self.now
        )

    def collect(self) -> None:
        self.now += self.took_s
        self.bytes -= self.garbage_bytes
        self.garbage_bytes = 0

    def grow(self, size_bytes: int, *, garbage: bool) -> bool:
        self.now += 2.0
        self.bytes += size_bytes
        self.garbage_bytes += size_bytes if garbage else 0
        return self.collector.look()


def test_growth_is_collected_and_what_stays_is_not_looked_at_again() -> None:
    process = Process()
    assert not process.grow(GROWN_BYTES, garbage=True)
    assert process.grow(1, garbage=True)
    assert process.bytes == 100 * GROWN_BYTES
    assert process.grow(2 * GROWN_BYTES, garbage=False)
    assert not process.grow(0, garbage=False)


def test_a_minute_without_growth_is_collected_too() -> None:
    process = Process()
    process.now += LONGEST_S
    assert process.collector.look()
    assert not process.collector.look()


def test_collections_that_take_long_are_rare() -> None:
    """With millions of objects a collection stops the event loop for a second."""
    process = Process()
    process.took_s = 1.0
    assert process.grow(2 * GROWN_BYTES, garbage=True)
    assert not process.grow(2 * GROWN_BYTES, garbage=True)
    process.now += 1.0 / TIME_SHARE
    assert process.grow(0, garbage=False)


class Node:
    """Something that refers to itself."""

    def __init__(self) -> None:
        self.me = self


def test_cycles_are_freed() -> None:
    gc.disable()
    try:
        seen = weakref.ref(Node())
        collect()
        assert seen() is None
    finally:
        gc.enable()


def test_resident_memory_is_that_of_this_process() -> None:
    found = resident_bytes()
    assert found == 0 or 1_000_000 < found < 100_000_000_000
