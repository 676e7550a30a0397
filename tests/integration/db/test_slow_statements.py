"""Statements of half a second and more: a warning, and an event of the history, with what they waited for."""

from __future__ import annotations

import asyncio
import time
from datetime import UTC, datetime, timedelta

import pytest
from structlog.testing import capture_logs

from exai.db.conversations import ConversationRepository
from exai.db.driver.pool import connect, open_pool
from exai.db.history import HistoryQuery, HistoryRepository
from exai.models import LOCAL_OWNER, ConversationKey
from exai.monitoring.events import EventRecorder, encode
from exai.monitoring.metrics import MetricsRecorder
from exai.settings.load import DatabaseSettings
from exai.slowness import SLOW_S
from tests.support.database import appending, new_id
from tests.support.waiting import wait_until


@pytest.mark.direct
async def test_a_statement_that_waits_is_logged_and_stored_with_the_reason(postgres_url: str) -> None:
    """The first waits for a lock on the server, the second for the only connection; a fast one is not reported."""
    recorder = MetricsRecorder()
    events = EventRecorder(recorder)
    events.open()
    settings = DatabaseSettings.model_validate(
        {"url": postgres_url, "pool_size": 1, "acquire_timeout_s": 5, "statement_timeout_s": 10}
    )
    async with open_pool(settings, recorder=recorder) as database:
        repository = ConversationRepository(database)
        stored = await repository.append(appending(None, "one"))
        assert stored.commit is not None
        key = ConversationKey(LOCAL_OWNER, stored.commit.conversation.continuation_id)
        other = await connect(database.address, timeout_s=5)
        with capture_logs() as lines:
            await repository.read_page(key)
            began = time.monotonic()
            async with other.transaction():
                await other.execute("lock table conversations in access exclusive mode")
                first = asyncio.create_task(repository.read_page(key))
                await wait_until(lambda: database.usage()[0] == 1)
                second = asyncio.create_task(repository.list_conversations(LOCAL_OWNER))
                await wait_until(lambda: database.waiting == 1)
                await wait_until(lambda: time.monotonic() - began > 2 * SLOW_S)
            await asyncio.gather(first, second)
        await other.close()
        slow = {line["operation"]: line for line in lines if line["event"] == "slow_operation"}
        assert set(slow) == {"read_page", "list_conversations"}
        assert {line["log_level"] for line in slow.values()} == {"warning"}
        for operation, cause in (("read_page", "server"), ("list_conversations", "connection")):
            waited_ms = slow[operation]["waited_ms"]
            assert max(waited_ms, key=waited_ms.__getitem__) == cause
            assert waited_ms[cause] >= SLOW_S * 1000
        events.collect()
        items = [item for item in events.take(100) if item.type == "slow_operation"]
        history = HistoryRepository(database)
        await history.store(encode(items), new_id(), "test")
        since = datetime.now(UTC).replace(minute=0, second=0, microsecond=0) - timedelta(hours=1)
        asked = HistoryQuery("slow_operation", since, since + timedelta(hours=3), 3_600, by=("operation", "waited_for"))
        found = {
            (point.labels["operation"], point.labels["waited_for"]): (point.count, (point.sum or 0) >= SLOW_S)
            for point in await history.read(asked)
        }
        assert found == {("read_page", "server"): (1, True), ("list_conversations", "connection"): (1, True)}
