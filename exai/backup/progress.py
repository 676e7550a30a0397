"""The progress of a backup or a restoration."""

from __future__ import annotations

from typing import Protocol


class ShowsProgress(Protocol):
    """Receives what is done."""

    def expect(self, size_bytes: int) -> None:
        """State the size of all work, as far as it is known."""

    def add(self, size_bytes: int, what: str) -> None:
        """Count bytes that are done, and name what is worked on."""
