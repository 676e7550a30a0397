"""The measured operations of the service, each with a lower bound: the minimal requests for the same result.

Invariant: an operation and its floor move the same content, between the same processes, the same way.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final

from exai.bench.batch import Run
from exai.bench.contestants import Contestants, Data, batched_range
from exai.bench.floors.postgres import OWNER
from exai.bench.plan import FILES_PER_APPEND, Texts
from exai.conversations import AppendRequest
from exai.db.conversations import ConversationRepository
from exai.db.search import SearchQuery
from exai.models import PAGE_MESSAGES, ContinuationId, ConversationKey, FileId, NewMessage, Source

EXCHANGES: Final = 512
"""Number of different exchanges to append; created in advance, so that their creation is not measured."""

HIT, MISS, UNCACHED = "load, cached", "load, missed", "load, no cache"
APPEND, APPEND_FILES, FULL = "append", f"append, {FILES_PER_APPEND} files", "full request"
LIST, SEARCH = "list", "search"
GET, SELECT, INSERT, TRIPS = "redis.asyncio GET", "asyncpg select", "asyncpg insert", "1 + 2 round trips"

NO_CACHE: Final = "no Redis is configured"
SEARCH_HITS: Final = 20


async def nothing() -> None:
    """Prepare nothing."""


@dataclass(frozen=True, slots=True)
class Operation:
    """An operation to repeat. `run(n)` runs the n-th and returns whether it was of the kind that its name states.

    `prepare` comes before each batch and `settle` after it, and neither is timed. With `once` a batch does it at most
    once per conversation. `finish` waits for what an operation still does when its caller has the answer.
    """

    name: str
    run: Run
    prepare: Callable[[], Awaitable[None]] = nothing
    once: bool = False
    settle: Callable[[], Awaitable[None]] = nothing
    finish: Callable[[], Awaitable[None]] = nothing


@dataclass(frozen=True, slots=True)
class Pair:
    """An operation of the service and its lower bound."""

    operation: Operation
    floor: Operation


@dataclass(frozen=True, slots=True)
class Absent:
    """An operation that cannot be measured, and why."""

    name: str
    reason: str


class Operations:
    """The operations on one set of contestants. Await `prepare` before the first of them."""

    def __init__(self, contestants: Contestants, data: Data, texts: Texts) -> None:
        self._service, self._filled = contestants.app.conversations, contestants.app.cache.wait_settled
        self._maintenance = contestants.app.maintenance
        self._repository = ConversationRepository(contestants.app.database)
        self._database_floor, self._cache_floor = contestants.database, contestants.cache
        self._data, self._texts = data, texts
        self._exchanges = [texts.exchange() for _ in range(EXCHANGES)]
        self._rows = [[(message.role, message.content) for message in each] for each in self._exchanges]

    async def prepare(self) -> None:
        """Store the pages that the lower bound reads in Redis."""
        if self._cache_floor is not None:
            for continuation_id in self._data.continuation_ids:
                page = await self._service.read(OWNER, continuation_id)
                await self._cache_floor.put(continuation_id, page.messages)

    async def clean(self) -> None:
        """Remove what `prepare` put there, and the cached conversations."""
        if self._cache_floor is not None:
            await self._cache_floor.remove(self._data.continuation_ids)
            await self._cache_floor.forget(OWNER, self._data.continuation_ids)

    def all(self) -> tuple[Pair | Absent, ...]:
        """Return every operation, in the order of the report."""
        get = Operation(GET, self._get)
        select = Operation(SELECT, self._select)
        insert = Operation(INSERT, self._insert)
        cached = self._cache_floor is not None
        return (
            Pair(Operation(HIT, self.hit, self.warm), get) if cached else Absent(HIT, NO_CACHE),
            Pair(Operation(MISS, self._miss, self._chill, once=True, finish=self._filled), select)
            if cached
            else Absent(MISS, NO_CACHE),
            Pair(Operation(UNCACHED, self._read_database), select),
            Pair(Operation(APPEND, self.append, self.warm, settle=self.settle), insert),
            Pair(
                Operation(APPEND_FILES, self._append_files, self.warm, settle=self.settle),
                Operation(f"{INSERT}, links", self._insert_with_files),
            ),
            Pair(Operation(FULL, self.full, self.warm, settle=self.settle), self._bare_full())
            if cached
            else Pair(
                Operation(FULL, self.full, settle=self.settle), Operation(f"{SELECT}, insert", self._select_insert)
            ),
            Pair(Operation(LIST, self._list), Operation(SELECT, self._select_list)),
            Pair(Operation(SEARCH, self._search), Operation(SELECT, self._select_search)),
        )

    def far(self) -> tuple[Pair | Absent, ...]:
        """Return the pair measured with a far database: a full request and its bare round trips."""
        if self._cache_floor is None:
            return (Absent(FULL, NO_CACHE),)
        return (Pair(Operation(FULL, self.full, self.warm, settle=self.settle), Operation(TRIPS, self._trips)),)

    def _bare_full(self) -> Operation:
        return Operation(f"{GET}, insert", self._get_insert)

    def _id(self, number: int) -> ContinuationId:
        return self._data.continuation_ids[number % len(self._data.continuation_ids)]

    def _exchange(self, number: int) -> tuple[NewMessage, NewMessage]:
        return self._exchanges[number % EXCHANGES]

    def _files(self, number: int) -> list[FileId]:
        """Return the next eight of all files, so that a conversation is linked to other ones each time."""
        file_ids, conversations = self._data.file_ids, len(self._data.continuation_ids)
        start = number // conversations * FILES_PER_APPEND % len(file_ids)
        return list(file_ids[start : start + FILES_PER_APPEND])

    async def _read(self, number: int) -> Source:
        return (await self._service.read(OWNER, self._id(number))).source

    async def warm(self) -> None:
        """Load every conversation into the cache."""
        for each in batched_range(len(self._data.continuation_ids)):
            await asyncio.gather(*(self._read(number) for number in each))

    async def settle(self) -> None:
        """Index the words of appended messages, so that the next operation does not pay for it."""
        await self._maintenance.index_words()

    async def _chill(self) -> None:
        await self._filled()
        if self._cache_floor is not None:
            await self._cache_floor.forget(OWNER, self._data.continuation_ids)

    async def hit(self, number: int) -> bool:
        """Read the newest page; return whether it came from the cache."""
        return await self._read(number) == "cache"

    async def _miss(self, number: int) -> bool:
        return await self._read(number) == "database"

    async def _read_database(self, number: int) -> bool:
        page = await self._repository.read_page(ConversationKey(OWNER, self._id(number)), limit=PAGE_MESSAGES)
        return len(page.messages) == PAGE_MESSAGES

    async def append(self, number: int) -> bool:
        """Store a question and its answer."""
        await self._service.append(AppendRequest(OWNER, self._exchange(number), self._id(number)))
        return True

    async def _append_files(self, number: int) -> bool:
        files = self._files(number)
        await self._service.append(AppendRequest(OWNER, self._exchange(number), self._id(number), files=files))
        return True

    async def full(self, number: int) -> bool:
        """Read, then store; return whether the page came from the cache."""
        source = await self._read(number)
        await self.append(number)
        return source == "cache" or self._cache_floor is None

    async def _list(self, number: int) -> bool:
        del number
        return bool((await self._service.list(OWNER, limit=PAGE_MESSAGES)).conversations)

    async def _search(self, number: int) -> bool:
        await self._service.search(SearchQuery(OWNER, self._texts.query(number)), limit=SEARCH_HITS)
        return True

    async def _get(self, number: int) -> bool:
        return self._cache_floor is not None and await self._cache_floor.get(self._id(number)) == PAGE_MESSAGES

    async def _select(self, number: int) -> bool:
        return await self._database_floor.select_page(self._id(number), PAGE_MESSAGES) == PAGE_MESSAGES

    async def _insert(self, number: int) -> bool:
        await self._database_floor.insert(self._id(number), self._rows[number % EXCHANGES])
        return True

    async def _insert_with_files(self, number: int) -> bool:
        rows = self._rows[number % EXCHANGES]
        await self._database_floor.insert(self._id(number), rows, self._files(number))
        return True

    async def _get_insert(self, number: int) -> bool:
        return await self._get(number) and await self._insert(number)

    async def _select_insert(self, number: int) -> bool:
        return await self._select(number) and await self._insert(number)

    async def _select_list(self, number: int) -> bool:
        del number
        return await self._database_floor.select_list(PAGE_MESSAGES) > 0

    async def _select_search(self, number: int) -> bool:
        await self._database_floor.select_search(self._texts.query(number), SEARCH_HITS)
        return True

    async def _trips(self, number: int) -> bool:
        del number
        if self._cache_floor is None:
            return False
        await self._cache_floor.round_trip()
        await self._database_floor.round_trip()
        await self._cache_floor.round_trip()
        return True
