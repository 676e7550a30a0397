"""Open the service and its lower bounds on the same servers, and create their data.

Invariant: the service is opened as a daemon opens it, and all rows belong to the owner of the bench.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Final

from exai.app import App, open_app
from exai.bench.floors.postgres import OWNER, DatabaseFloor, make_files, make_tables, open_database_floor
from exai.bench.floors.redis import CacheFloor, open_cache_floor
from exai.bench.plan import Plan, Texts
from exai.bench.servers import ServerAddresses
from exai.conversations import AppendRequest
from exai.models import ContinuationId, FileId
from exai.settings.load import load_settings

AT_ONCE: Final = 8
"""Number of conversations created, or read into the cache, concurrently."""

PATIENT: Final = {"EXAI_DATABASE__ACQUIRE_TIMEOUT_S": "60", "EXAI_CACHE__TIMEOUT_S": "5"}
"""A daemon sheds excess load; here every operation has to complete, also on a busy machine."""

UNSAMPLED: Final = {"EXAI_CACHE__VERIFY_ONE_IN": "0"}
"""For counting: otherwise one cached read in a thousand is also verified in the database."""


@dataclass(frozen=True, slots=True)
class Data:
    """The conversations and files that a run uses."""

    continuation_ids: tuple[ContinuationId, ...]
    file_ids: tuple[FileId, ...]


@dataclass(frozen=True, slots=True)
class Contestants:
    """The service and its lower bounds, open on the same servers; `cache` is None without a Redis."""

    app: App
    database: DatabaseFloor
    cache: CacheFloor | None


async def seed(app: App, servers: ServerAddresses, plan: Plan, texts: Texts) -> Data:
    """Create the conversations and files of a run."""
    continuation_ids: list[ContinuationId] = []

    async def make() -> None:
        messages = [message for _ in range(plan.messages // 2) for message in texts.exchange()]
        continuation_ids.append((await app.conversations.append(AppendRequest(OWNER, messages))).continuation_id)

    for each in batched_range(plan.conversations):
        await asyncio.gather(*(make() for _ in each))
    await app.maintenance.index_words()
    await make_tables(servers.postgres_url)
    return Data(tuple(continuation_ids), tuple(await make_files(servers.postgres_url, plan.files)))


def batched_range(number: int) -> list[range]:
    """Cut `range(number)` into ranges of at most `AT_ONCE`."""
    return [range(start, min(start + AT_ONCE, number)) for start in range(0, number, AT_ONCE)]


@asynccontextmanager
async def open_contestants(
    servers: ServerAddresses, first_seq: int, overrides: Mapping[str, str] | None = None
) -> AsyncIterator[Contestants]:
    """Open the service and its lower bounds with long timeouts and otherwise the environment's settings.

    Rows that the floor inserts are numbered from `first_seq`. Raises as `open_app`.
    """
    addresses = {"EXAI_DATABASE__URL": servers.postgres_url, "EXAI_CACHE__URL": servers.redis_url or "off"}
    settings = load_settings(overrides={**addresses, **PATIENT, **(overrides or {})})
    async with AsyncExitStack() as stack:
        app = await stack.enter_async_context(open_app(settings))
        size = settings.database.pool_size
        database = await stack.enter_async_context(open_database_floor(servers.postgres_url, size, first_seq))
        cache = None
        if servers.redis_url is not None:
            cache = await stack.enter_async_context(open_cache_floor(servers.redis_url))
        yield Contestants(app, database, cache)
