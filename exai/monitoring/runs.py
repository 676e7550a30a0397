"""The record of a command that works on the store beside the daemon: what ran, how long, and how it ended.

Invariant: the record never fails or delays the command; what cannot be stored is logged.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any, Final

import structlog

from exai.errors import ExaiError
from exai.resilience import with_deadline

COMMAND_RUN: Final = "command_run"
STORE_LIMIT_S: Final = 2.0

Insert = Callable[[str, Mapping[str, Any]], Awaitable[None]]
"""Stores one metric, given its type and data."""

log = structlog.get_logger(__name__)


@asynccontextmanager
async def recorded_run(insert: Insert, command: str) -> AsyncIterator[dict[str, int]]:
    """Store a metric `command_run` when the block has ended; the yielded dictionary takes further figures."""
    figures: dict[str, int] = {}
    began = time.perf_counter()
    outcome = "failed"
    try:
        yield figures
        outcome = "ok"
    except ExaiError as error:
        outcome = error.code
        raise
    finally:
        labels = {"command": command, "outcome": outcome}
        data = {"labels": labels, "value": round(time.perf_counter() - began, 3), "figures": figures}
        try:
            with with_deadline(STORE_LIMIT_S):
                await insert(COMMAND_RUN, data)
        except ExaiError as error:
            log.warning("command_not_recorded", command=command, reason=str(error))
