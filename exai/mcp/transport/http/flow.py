"""Flow control of HTTP input: uvicorn's, with one more condition.

Invariant: after a refusal, and while a request waits for the answer to another, `resume_reading` changes nothing.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from exai.mcp.transport.library_parts import FlowControl


class Flow(FlowControl):
    """Resumes reading only if the protocol wants input: not while a request waits, and never after a refusal."""

    def __init__(self, transport: asyncio.Transport, wants_more: Callable[[], bool]) -> None:
        super().__init__(transport)
        self._wants_more = wants_more

    def resume_reading(self) -> None:
        """Resume reading unless the protocol wants no input."""
        if self._wants_more():
            super().resume_reading()

    def end(self) -> None:
        """Drop the reference to the protocol, so that it is freed with its connection."""
        self._wants_more = _never


def _never() -> bool:
    return False
