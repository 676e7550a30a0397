"""Progress of a model's answer, as the client of the call receives it."""

from __future__ import annotations

import math
import time
from typing import Final

from exai.mcp.core.protocol import CallContext
from exai.models import Delta

PAUSE_S: Final = 0.5
"""Minimum time between two reports: an answer has thousands of parts, and a report is larger than a part."""


class AnswerProgress:
    """Reports how much of one answer has arrived; notes, such as on a retry, are passed on at once."""

    def __init__(self, context: CallContext) -> None:
        self._context = context
        self._chars = 0
        self._reported_at = -math.inf

    async def on_delta(self, delta: Delta) -> None:
        """Report a part of the answer, unless the last report was a moment ago."""
        if delta.note:
            await self._context.progress(delta.note)
            return
        self._chars += len(delta.content) + len(delta.reasoning)
        now = time.monotonic()
        if now - self._reported_at >= PAUSE_S:
            self._reported_at = now
            doing = "answering" if delta.content else "thinking"
            await self._context.progress(f"{doing}, {self._chars:,} characters so far")
