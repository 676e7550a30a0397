"""The database is down: cached conversations are still read, marked with their age once it exceeds the bound."""

from __future__ import annotations

import pytest
import redis

from exai.cache.entry import cache_keys
from exai.conversations import ChatRequest
from exai.errors import DatabaseError, DatabaseUnavailable
from exai.models import LOCAL_OWNER, ConversationKey
from tests.fault.service import NO_PASS_S, POOL_SIZE, Servers
from tests.support.waiting import wait_until

BOUND_S = 0.05
TOO_OLD_US = 601 * 1_000_000


async def test_cached_pages_outlive_the_database_marked_with_their_age(rig: Servers, redis_url: str) -> None:
    """Covered ones as always, others as stale for ten minutes, and none is ever the base of a write."""
    options = {"database": {"acquire_timeout_s": 0.05}, "reconcile_interval_s": NO_PASS_S}
    covered = await rig.open(max_staleness_s=60, **options)  # type: ignore[arg-type]
    uncovered = await rig.open(max_staleness_s=BOUND_S, **options)  # type: ignore[arg-type]
    name = (await covered.append(None, "one")).continuation_id
    await covered.read(name)
    for service in (covered, uncovered):
        service.database.mode = "reset"
    page = await covered.read(name)
    assert (page.source, page.stale_s) == ("cache", None)
    page = await uncovered.read(name)
    while page.stale_s is None:
        page = await uncovered.read(name)
    assert (page.source, [message.content for message in page.messages]) == ("cache", ["one"])
    assert page.stale_s > BOUND_S
    assert uncovered.count("stale_reads_total") == 1
    for service in (covered, uncovered):
        with pytest.raises(DatabaseError):
            await service.append(name, "never")
        with pytest.raises(DatabaseError):
            await service.app.chat.run(ChatRequest(LOCAL_OWNER, "never", continuation_id=name))
    assert rig.provider.chats == []
    with redis.Redis.from_url(redis_url) as client:
        where = cache_keys(ConversationKey(LOCAL_OWNER, name), 1)
        client.delete(where.watermark)
        client.hincrby(where.entry, "asof", -TOO_OLD_US)
    with pytest.raises(DatabaseUnavailable):
        await uncovered.read(name)
    for service in (covered, uncovered):
        service.database.mode = "pass"
        await wait_until(lambda service=service: service.app.database.usage()[1] == POOL_SIZE)
        assert await service.contents(name) == ["one"]
