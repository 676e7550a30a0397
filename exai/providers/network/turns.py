"""Limit how much of the providers' streams is read in one iteration of the event loop.

The pieces of many streaming answers often arrive at the same moment. Reading all of them before anything else would
delay every other request by the sum of their costs; a few at a time delay it by a few.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Final

READS: Final = 4
"""Number of reads in one iteration of the event loop, each of at most `READ_BYTES`."""

READ_BYTES: Final = 4_096
"""A piece of an answer is about 200 bytes on the wire, so a read has at most 20 of them."""


class ReadTurns:
    """Lets the first readers of an iteration pass at once; the others wait, in the order in which they came."""

    def __init__(self) -> None:
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._taken = 0

    async def take(self) -> None:
        """Wait until this read may be processed."""
        loop = asyncio.get_running_loop()
        if not self._taken:
            loop.call_soon(self._renew)
        if self._taken < READS and not self._waiting:
            self._taken += 1
            return
        turn = loop.create_future()
        self._waiting.append(turn)
        await turn

    def _renew(self) -> None:
        """Begin the next iteration."""
        self._taken = 0
        while self._waiting and self._taken < READS:
            turn = self._waiting.popleft()
            if not turn.done():
                turn.set_result(None)
                self._taken += 1
        if self._taken:
            asyncio.get_running_loop().call_soon(self._renew)
