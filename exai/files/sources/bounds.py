"""The limits of one reading of source files, which runs in a thread.

Invariant: every loop over files, directories and a program's output asks for the limits, so that the thread ends soon
after its time is over or its caller has left.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from exai.resilience import Clock

TIME_S: Final = 15.0
MAX_ENTRIES: Final = 50_000
"""Entries examined for one list of a directory's files."""

MAX_BYTES: Final = 64 * 1_048_576
"""Bytes read of files that are perhaps left out."""

MAX_DEPTH: Final = 40
MAX_FILES: Final = 150
"""Files that one reading returns; a message may have 200."""


@dataclass(slots=True)
class Bounds:
    """The remainders of the limits."""

    clock: Clock
    end_s: float
    listing_entries: int = MAX_ENTRIES
    bytes: int = MAX_BYTES
    entries: int = MAX_ENTRIES
    touch: Callable[[str, str], None] = lambda _field, _path: None
    """Called with the field and the path before each access to the file system."""

    _stopped: threading.Event = field(default_factory=threading.Event)

    @property
    def is_over(self) -> bool:
        """Return whether no more entries may be examined for this list."""
        return self.entries <= 0 or self.is_late

    @property
    def is_spent(self) -> bool:
        """Return whether no more files may be read."""
        return self.bytes <= 0 or self.is_late

    @property
    def is_late(self) -> bool:
        """Return whether the time is over, or the caller has left."""
        return self._stopped.is_set() or self.clock() >= self.end_s

    @property
    def left_s(self) -> float:
        """Return the seconds that are left."""
        return 0.0 if self._stopped.is_set() else max(self.end_s - self.clock(), 0.0)

    def stop(self) -> None:
        """End the reading; may be called from any thread."""
        self._stopped.set()

    def reason(self) -> str:
        """Return which limit was reached."""
        if self.is_late:
            return "the time limit was reached"
        if self.bytes <= 0:
            return f"more than {MAX_BYTES:,} bytes were read"
        return f"more than {self.listing_entries:,} entries of directories were examined"

    def begin_listing(self) -> None:
        """Begin to count entries anew."""
        self.entries = self.listing_entries
