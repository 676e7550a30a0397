"""An owner that floods the database does not make requests of other owners fail."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from typing import TypeVar

import pytest

from exai.db.batching.appends import MOST_APPENDS
from exai.db.conversations import ConversationRepository
from exai.db.driver.pool import Database, OneTrip, connect, open_pool
from exai.db.search import SearchQuery, SearchRepository
from exai.errors import DatabaseBusy
from exai.fairness import request_owner
from exai.models import ConversationKey, Owner
from exai.settings.load import DatabaseSettings
from tests.support.counters import Counters
from tests.support.database import appending
from tests.support.waiting import wait_until

ALICE, BOB, MALLORY = Owner("alice"), Owner("bob"), Owner("mallory")
FLOOD = 64
SIZE = 8

T = TypeVar("T")


async def as_owner(owner: Owner, work: Callable[[], Awaitable[T]]) -> T:
    """Run work in a context of its own, as a request of this owner runs."""

    async def run() -> T:
        request_owner.set(owner)
        return await work()

    return await asyncio.create_task(run())


@pytest.fixture
async def shared(postgres_url: str) -> AsyncIterator[Database]:
    settings = DatabaseSettings.model_validate({"url": postgres_url, "pool_size": SIZE, "acquire_timeout_s": 0.2})
    async with open_pool(settings, recorder=Counters(), is_shared=True) as database:
        yield database


@asynccontextmanager
async def beside(database: Database) -> AsyncIterator[OneTrip]:
    """A connection outside the pool that holds locks for the block."""
    connection = await connect(database.address, timeout_s=5)
    try:
        async with connection.transaction():
            yield connection
    finally:
        await connection.close()


@asynccontextmanager
async def flooding(work: Callable[[], Awaitable[object]]) -> AsyncIterator[list[asyncio.Task[object]]]:
    """Many requests of one owner at once, cancelled at the end of the block."""

    async def one() -> object:
        with suppress(DatabaseBusy):
            return await work()
        return None

    tasks = [asyncio.create_task(as_owner(MALLORY, one)) for _ in range(FLOOD)]
    try:
        yield tasks
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def test_searches_that_hang_leave_the_pool_to_other_owners(shared: Database) -> None:
    """Searches have half of the pool, and an owner not all of that: another owner appends, reads and searches."""
    repository, searches = ConversationRepository(shared), SearchRepository(shared)
    async with beside(shared) as other:
        await other.execute("lock table exai.message_words in access exclusive mode")
        async with flooding(lambda: searches.search(SearchQuery(MALLORY, "common"), limit=10)):
            await wait_until(lambda: shared.usage()[0] == SIZE // 2 - 1)
            for _ in range(20):
                appended = await as_owner(BOB, lambda: repository.append(appending(None, "mine", owner=BOB)))
                assert appended.commit is not None
                name = appended.commit.conversation.continuation_id
                page = await as_owner(BOB, lambda: repository.read_page(ConversationKey(BOB, name)))  # noqa: B023
                assert [message.content for message in page.messages] == ["mine"]
            assert shared.usage()[0] == SIZE // 2 - 1
            bobs = asyncio.create_task(
                as_owner(BOB, lambda: searches.search(SearchQuery(BOB, "mine"), limit=10)), name="bob"
            )
            await wait_until(lambda: shared.usage()[0] == SIZE // 2)
            await other.execute("rollback")
            assert (await bobs).hits[0].snippet == "**mine**"


async def test_statements_that_wait_for_a_lock_leave_places_to_other_owners(shared: Database) -> None:
    """Writers of one owner that wait for each other hold no more than three quarters of a shared pool."""
    repository = ConversationRepository(shared)
    appended = await as_owner(MALLORY, lambda: repository.append(appending(None, "one", owner=MALLORY)))
    assert appended.commit is not None
    name = appended.commit.conversation.continuation_id
    async with beside(shared) as other:
        await other.execute("select from public.conversations where continuation_id = $1 for update", name)
        # Too large to go in a group, so each is a statement of its own.
        large = "x" * 100_000
        async with flooding(lambda: repository.append(appending(name, large, owner=MALLORY))):
            await wait_until(lambda: shared.usage()[0] == SIZE - SIZE // 4)
            for _ in range(20):
                result = await as_owner(BOB, lambda: repository.append(appending(None, "mine", owner=BOB)))
                assert result.status == "appended"


async def test_small_appends_of_many_owners_go_together_and_in_turn(shared: Database) -> None:
    """A flood of one owner's appends does not put those of others at the end; they share statements with it."""
    repository = ConversationRepository(shared)
    done: list[Owner] = []

    async def append(owner: Owner) -> None:
        await repository.append(appending(None, "one", owner=owner))
        done.append(owner)

    tasks = [asyncio.create_task(as_owner(MALLORY, lambda: append(MALLORY))) for _ in range(20 * MOST_APPENDS)]
    tasks += [asyncio.create_task(as_owner(owner, lambda o=owner: append(o))) for owner in (ALICE, BOB)]
    await asyncio.gather(*tasks)
    last = max(done.index(ALICE), done.index(BOB))
    assert last < 4 * MOST_APPENDS
