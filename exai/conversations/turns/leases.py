"""Renew the leases of running turns, and stop turns that were ended elsewhere.

Invariant: a turn whose daemon is alive keeps its lease. A turn that this process cancelled is ended at once, and
one that another daemon cancelled or took over at the next renewal; that ends the call of its model.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import structlog

from exai.conversations.turns.request import LEASE_S
from exai.db.turns import TurnRepository
from exai.errors import Conflict, ExaiError
from exai.models import TurnId

log = structlog.get_logger(__name__)


class TurnLeases:
    """The leases of this process's turns."""

    def __init__(self, repository: TurnRepository) -> None:
        self._repository = repository
        self._held: dict[TurnId, asyncio.Timeout] = {}

    @property
    def count(self) -> int:
        """Number of turns of this process that wait for a model."""
        return len(self._held)

    @asynccontextmanager
    async def hold(self, turn_id: TurnId) -> AsyncIterator[None]:
        """Renew a turn's lease while the block runs. Raises `Conflict` if the turn was ended elsewhere."""
        scope = self._held[turn_id] = asyncio.timeout(None)
        try:
            async with scope:
                yield
        except TimeoutError as error:
            # Only `renew` makes the scope expire; any other `TimeoutError` comes from inside.
            if not scope.expired():
                raise
            raise Conflict(
                "cancelled", "this request was cancelled meanwhile", "Call again with the same key to run it again"
            ) from error
        finally:
            # Another attempt of the same turn in this process may have registered its own scope.
            if self._held.get(turn_id) is scope:
                del self._held[turn_id]

    async def run(self) -> None:
        """Renew the leases of waiting turns until cancelled; no statement is sent while there are none."""
        while True:
            await asyncio.sleep(LEASE_S / 3)
            if self._held:
                try:
                    await self.renew()
                except ExaiError as error:
                    log.warning("lease_renewal_failed", turns=len(self._held), error=str(error))
                except Exception:
                    # Continue after a defect as well: without this task every turn longer than a lease could be taken
                    # over by a repeated request, and its answer paid for twice.
                    log.exception("lease_renewal_failed", turns=len(self._held))

    async def renew(self) -> None:
        """Renew the leases of this process's turns, and cancel those that were ended elsewhere: 1 round trip."""
        # A copy, because turns come and go while the statement runs.
        held = dict(self._held)
        pending = await self._repository.renew_leases(tuple(held), lease_s=LEASE_S)
        for turn_id in held.keys() - pending:
            # The identity check leaves out a turn that has ended meanwhile, and a new attempt of the same turn, which
            # the statement may not have seen.
            if self._held.get(turn_id) is held[turn_id]:
                self.end(turn_id)

    def end(self, turn_id: TurnId) -> None:
        """Cancel a turn of this process that was ended in the database; others are ignored."""
        if (scope := self._held.get(turn_id)) is not None:
            # Rescheduling to now makes the turn's `asyncio.timeout` expire at once.
            scope.reschedule(asyncio.get_running_loop().time())
