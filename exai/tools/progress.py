"""Progress of a model's answer, as the client of the call receives it."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable
from typing import Final

from exai.conversations import RunningTurn
from exai.mcp.core.jsonrpc import Json
from exai.mcp.core.protocol import BegunWork, CallContext
from exai.models import Delta

PAUSE_S: Final = 0.5
"""Minimum time between two reports: an answer has thousands of parts, and a report is larger than a part."""

PART_PAUSE_S: Final = 0.1
"""Time for which parts of an answer are collected for a client that shows it while it grows."""

THOUSAND: Final = 1_000
NEWEST: Final = "its newest message will be the answer, or will state why there is none"


class AnswerProgress:
    """Reports which model does what, and how much has arrived; notes, such as on a retry, are passed on at once.

    `step` names the tool that asks the model. `expects` says which message of the conversation will be the answer.
    """

    def __init__(self, context: CallContext, step: str = "", expects: str = NEWEST) -> None:
        self._context, self._expects = context, expects
        self._step = f"{step}: " if step else ""
        self._model = ""
        self._chars = 0
        self._reported_at = -math.inf
        self._parts = AnswerParts(context.offer_part) if context.offer_part is not None else None

    def on_begun(self, turn: RunningTurn) -> None:
        """Declare that the turn is durable. From now on the periodic report names its model."""
        self._model = turn.model
        facts = {
            "continuation_id": turn.continuation_id,
            "idempotency_key": turn.request_key,
            "model": turn.model,
            "expects": self._expects,
        }
        self._context.begun(BegunWork(turn.turn_id, turn.started_at, facts))
        self._context.doing(f"{self._step}waiting for {turn.model}")

    async def on_delta(self, delta: Delta) -> None:
        """Report a part of the answer, unless the last report was a moment ago."""
        if delta.model:
            self._model = delta.model
            self._context.doing(f"{self._step}waiting for {self._model}")
        if delta.note:
            await self._context.progress(delta.note)
            return
        if self._parts is not None:
            self._parts.add(delta)
        self._chars += len(delta.content) + len(delta.reasoning)
        now = time.monotonic()
        if now - self._reported_at >= PAUSE_S:
            self._reported_at = now
            sentence = f"{self._step}{self._model} {'answering' if delta.content else 'thinking'}, {_size(self._chars)}"
            await self._context.progress(sentence.strip())


class AnswerParts:
    """Sends an answer in parts while it grows: at most one part in `PART_PAUSE_S`, and none of it twice."""

    def __init__(self, offer: Callable[[Json], bool]) -> None:
        self._offer = offer
        self._content: list[str] = []
        self._reasoning: list[str] = []
        self._timer: asyncio.TimerHandle | None = None

    def add(self, delta: Delta) -> None:
        """Add a part of the answer, to be sent in a moment."""
        self._content.append(delta.content)
        self._reasoning.append(delta.reasoning)
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(PART_PAUSE_S, self._send)

    def _send(self) -> None:
        self._timer = None
        part = {"content": "".join(self._content), "reasoning": "".join(self._reasoning)}
        # Text that the client did not receive is sent with the next part.
        if self._offer({name: text for name, text in part.items() if text}):
            self._content, self._reasoning = [], []


def _size(chars: int) -> str:
    return f"{chars} characters" if chars < THOUSAND else f"{chars // THOUSAND}k characters"
