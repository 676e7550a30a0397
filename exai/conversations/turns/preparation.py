"""The part of a turn before its question is known, in which the files are read that the question is asked with.

A turn usually begins once its files are read, by one statement. If its caller cannot wait so long, it is reserved:
begun without a question, so that any daemon can state that it is running, cancel it, or take it over. The statement
that begins turns then stores the question later, under the same ids and the same request key.

Invariant: a reserved turn ends like any other, and for one whose files could not be read the conversation states why.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any, Final, TypeVar

from exai.conversations.publishing import Publisher
from exai.conversations.refusals import refusal
from exai.conversations.requests import OnBegun, RunningTurn
from exai.conversations.turns.leases import TurnLeases
from exai.conversations.turns.outcomes import OutcomeWriter
from exai.conversations.turns.result import cause_of, failed_rows
from exai.db.records import TurnBegun, TurnEnd, TurnStart
from exai.db.turns import TurnRepository
from exai.errors import ExaiError
from exai.models import NewMessage

T = TypeVar("T")

Reserve = Callable[[], Awaitable[None]]
"""Makes a call durable whose caller can wait no longer: 1 database round trip, none if it is durable already."""

OnPreparing = Callable[[Reserve], None]
"""Called before the files of a call are read."""

DEFAULT_MODEL: Final = "the model"


class Preparation:
    """One turn before its question is known. `start` is that turn without messages; `question` is what was asked."""

    def __init__(
        self,
        repository: TurnRepository,
        outcomes: OutcomeWriter,
        leases: TurnLeases,
        publisher: Publisher,
        start: TurnStart,
        *,
        question: str,
        asked: str | None = None,
        on_begun: OnBegun | None = None,
    ) -> None:
        self._repository, self._outcomes, self._leases, self._publisher = repository, outcomes, leases, publisher
        self.start, self._question, self._on_begun = start, question, on_begun
        self._asked = asked or DEFAULT_MODEL
        self._is_over = False
        self._reserving: asyncio.Task[TurnBegun] | None = None
        self._begun: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def reserve(self) -> None:
        """Begin the turn without its question, unless its files are read: `on_begun` is then called soon.

        Raises as the beginning of a turn.
        """
        if self._is_over:
            return
        if self._reserving is None:
            self._reserving = self._outcomes.start(self._reserve(), "turn-reserve")
        await asyncio.shield(self._reserving)

    async def read(self, reading: Awaitable[T]) -> T:
        """Return what `reading` returns; meanwhile the lease of the turn is renewed if it is reserved.

        Raises `Conflict` if the turn was ended elsewhere.
        """
        work = asyncio.ensure_future(reading)
        try:
            either: set[asyncio.Future[Any]] = {work, self._begun}
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
            if not work.done():
                async with self._leases.hold(self._reserved().turn_id):
                    return await work
            return work.result()
        finally:
            self._is_over = True
            if not work.done():
                work.cancel()
                await asyncio.wait({work})
            if self._reserving is not None:
                # The statement that stores the question comes after the one that reserves the turn.
                await asyncio.wait({self._reserving})

    @asynccontextmanager
    async def guarded(self) -> AsyncIterator[None]:
        """Record the failure of a reserved turn if the block fails."""
        try:
            yield
        except BaseException as error:
            self._is_over = True
            if self._reserving is not None:
                await self._outcomes.complete(self._fail(self._reserving, error))
            raise

    async def _reserve(self) -> TurnBegun:
        begun = await self._repository.begin(self.start)
        if begun.commit is None or begun.status not in ("started", "resumed", "finished", "pending"):
            raise refusal(begun.status, self.start.continuation_id, begun.current_revision, begun.missing)
        if begun.status == "started":
            # It changed the revision and added nothing, which no cached page can express.
            await self._publisher.publish(replace(begun.commit, added=None))
        if self._on_begun is not None and begun.started_at is not None:
            name = begun.commit.conversation.continuation_id
            self._on_begun(RunningTurn(begun.turn_id, begun.started_at, name, self.start.request_key, self._asked))
        if begun.status in ("started", "resumed"):
            self._begun.set_result(None)
        return begun

    def _reserved(self) -> TurnBegun:
        if self._reserving is None:
            raise AssertionError("the turn is reserved")
        return self._reserving.result()

    async def _fail(self, reserving: asyncio.Task[TurnBegun], error: BaseException) -> None:
        await asyncio.wait({reserving})
        if reserving.cancelled() or reserving.exception() is not None:
            return
        begun = reserving.result()
        if begun.status not in ("started", "resumed") or begun.commit is None:
            return
        if isinstance(error, ExaiError):
            error.continuation_id = begun.commit.conversation.continuation_id
        asked = (NewMessage("user", self._question, kind="failed"),) if begun.first_seq is None else ()
        failure = TurnEnd(
            owner=self.start.owner,
            turn_id=begun.turn_id,
            attempt=begun.attempt,
            state="failed",
            messages=(*asked, *failed_rows(error)),
            error=cause_of(error),
        )
        finished = await self._outcomes.record(failure)
        if finished is not None and finished.commit is not None and finished.commit.added:
            await self._publisher.publish(finished.commit)
