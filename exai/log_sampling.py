"""Chooses which lines about successful requests are logged; lines about errors always are.

Invariant: after an error every line is logged for a while, so that what happened around it can be read.
"""

from __future__ import annotations

import time
from collections.abc import Callable, MutableMapping, Sequence
from typing import Any, Final

AFTER_ERROR_S: Final = 60.0


class LogSampling:
    """`share` is the part of successful requests that is logged while there are no errors, 1 for all."""

    def __init__(self, share: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._share, self._clock = share, clock
        self._all_until = 0.0
        self._due = 0.0
        self._skipped = 0

    def select(
        self, lines: Sequence[MutableMapping[str, Any]], *, is_error: bool
    ) -> Sequence[MutableMapping[str, Any]]:
        """Return the lines to log; the first of them says how many were left out since the last one."""
        if self._share >= 1:
            return lines
        now = self._clock()
        if is_error:
            self._all_until = now + AFTER_ERROR_S
        if now < self._all_until:
            chosen = lines
        else:
            self._due += len(lines) * self._share
            number = min(int(self._due), len(lines))
            self._due -= number
            chosen = lines[len(lines) - number :]
        self._skipped += len(lines) - len(chosen)
        if chosen and self._skipped:
            chosen[0]["left_out"] = self._skipped
            self._skipped = 0
        return chosen
