"""Progress of a consensus: which models have answered, which have not, and how much text each has sent."""

from __future__ import annotations

import math
import time
from collections.abc import Awaitable, Callable
from typing import Final

from exai.resilience import Clock

PAUSE_S: Final = 0.5
"""Minimum time between two updates of the state that the periodic report shows."""


async def _silent(_: str) -> None:
    """Report nothing."""


class PanelWatch:
    """The progress of one consensus, which its caller receives while it runs.

    `report` sends a sentence at once; `doing` sets the one that is repeated while nothing else is reported.
    """

    def __init__(
        self,
        report: Callable[[str], Awaitable[None]] = _silent,
        doing: Callable[[str], None] = lambda _: None,
        clock: Clock = time.monotonic,
    ) -> None:
        self._report, self._doing, self._clock = report, doing, clock
        self._chars: dict[str, int] = {}
        self._since: dict[str, float] = {}
        self._ended: list[str] = []
        self._shown_at = -math.inf

    def begin(self, key: str) -> Callable[[int], None]:
        """Show the call `key` as running; return what counts the characters of its answer."""
        self._chars[key], self._since[key] = 0, self._clock()
        self._show()

        def count(chars: int) -> None:
            self._chars[key] += chars
            if self._clock() - self._shown_at >= PAUSE_S:
                self._show()

        return count

    async def end(self, key: str, how: str) -> None:
        """Report how a call ended, and which others are being waited for."""
        seconds = self._clock() - self._since.pop(key)
        del self._chars[key]
        self._ended.append(f"{key} {how} after {seconds:.0f} s")
        self._show()
        waiting = f"; waiting for {', '.join(self._chars)}" if self._chars else ""
        await self._report(f"{self._ended[-1]}{waiting}")

    def _show(self) -> None:
        self._shown_at = self._clock()
        running = (f"{key}: {chars:,} characters" for key, chars in self._chars.items())
        self._doing("; ".join([*self._ended, *running]))
