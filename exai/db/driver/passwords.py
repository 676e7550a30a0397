"""Try a password once more after a refusal, and then stop: a pooler may hold an old one just after a change.

Supavisor refuses the first connection after a password was changed although the new one is right, and locks out a
client that goes on with a wrong one. Invariant: of any number of connections that are refused, one is tried again; for
`SILENCE_S` after that has failed nothing is sent.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final

from asyncpg.exceptions import InvalidPasswordError

from exai.db.driver.connections import OneTrip
from exai.resilience import Clock

PAUSE_S: Final = 1.0
SILENCE_S: Final = 60.0


class PasswordRetry:
    """Opens connections to one address."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._trying = asyncio.Lock()
        self._accepted = 0
        self._refusal: tuple[float, InvalidPasswordError] | None = None

    async def open(self, attempt: Callable[[], Awaitable[OneTrip]]) -> OneTrip:
        """Return an open connection. Raises as `attempt`."""
        self._check()
        accepted = self._accepted
        try:
            return await attempt()
        except InvalidPasswordError:
            async with self._trying:
                self._check()
                if self._accepted == accepted:
                    await asyncio.sleep(PAUSE_S)
                try:
                    connection = await attempt()
                except InvalidPasswordError as error:
                    self._refusal = self._clock(), error
                    raise
                self._accepted += 1
                return connection

    def _check(self) -> None:
        if self._refusal is not None:
            refused_at, error = self._refusal
            if self._clock() - refused_at < SILENCE_S:
                raise error
            self._refusal = None
