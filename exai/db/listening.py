"""Listens to notifications of Postgres on a connection of its own, which must not pass through a transaction pooler.

Invariant: a notification that is missed costs time and nothing else, because its reader also polls.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

import structlog
from asyncpg.exceptions import InterfaceError, PostgresError

from exai.db.driver.address import Address
from exai.db.driver.pool import connect
from exai.errors import ExaiError
from exai.resilience import backoff_s

CONNECT_LIMIT_S: Final = 10.0
PROBE_S: Final = 60.0
"""Interval of a statement that shows whether the server still answers."""

PAUSE_BASE_S: Final = 1.0
PAUSE_CAP_S: Final = 60.0

log = structlog.get_logger(__name__)


async def listen(address: Address, channel: str, on_notice: Callable[[], None]) -> None:
    """Call `on_notice` for each notification on `channel`, and after each new connection, until cancelled."""
    failures = 0
    while True:
        try:
            await _listen_once(address, channel, on_notice)
        except (ExaiError, PostgresError, InterfaceError, OSError, TimeoutError) as error:
            failures += 1
            log.warning("listening_failed", reason=str(error), failures=failures)
        else:
            failures = 0
        await asyncio.sleep(backoff_s(failures, base_s=PAUSE_BASE_S, cap_s=PAUSE_CAP_S))


async def _listen_once(address: Address, channel: str, on_notice: Callable[[], None]) -> None:
    connection = await connect(address, timeout_s=CONNECT_LIMIT_S)
    try:
        ended = asyncio.Event()
        connection.add_termination_listener(lambda _: ended.set())
        await connection.add_listener(channel, lambda *_: on_notice())
        # Notifications sent before are lost.
        on_notice()
        while not ended.is_set():
            try:
                async with asyncio.timeout(PROBE_S):
                    await ended.wait()
            except TimeoutError:
                await connection.execute("select 1", timeout=CONNECT_LIMIT_S)
    finally:
        connection.terminate()
