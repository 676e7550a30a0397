"""Bounded waiting for something that another process does; within one process, wait for its event instead."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

WAIT_LIMIT_S = 5.0
POLL_S = 0.01
START_WAIT_S = 30.0
"""How long the application of a test waits for its servers: on a busy machine, longer than one attempt."""


async def wait_until(
    condition: Callable[[], bool],
    problem: Callable[[], str] = lambda: "it did not happen",
    limit_s: float = WAIT_LIMIT_S,
) -> None:
    """Until `condition` holds; fails with `problem` when that takes longer than the limit."""
    end = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < end, f"{problem()} after {limit_s:g} s"
        await asyncio.sleep(POLL_S)
