"""The index of words follows what is stored by itself, and no caller waits for it or pays for it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import structlog
from pydantic import SecretStr

from exai.app import App, open_app
from exai.conversations import AppendRequest
from exai.conversations.indexing import Indexing
from exai.db.conversations import ConversationRepository
from exai.db.search import PORTION, Indexed, SearchQuery, SearchRepository
from exai.errors import DatabaseBusy
from exai.models import LOCAL_OWNER, NewMessage
from exai.settings.load import CacheSettings, DatabaseSettings, Settings
from tests.support.counters import Counters
from tests.support.database import conversation_of
from tests.support.database import opened as database
from tests.support.migrations import run, value
from tests.support.waiting import wait_until

INDEXED = "messages_indexed_total"
FAILED = "indexing_failed_total"


@asynccontextmanager
async def opened(url: str, data_dir: Path, pause_s: float) -> AsyncIterator[App]:
    given = DatabaseSettings(url=SecretStr(url), pool_size=2, index_pause_s=pause_s)
    async with open_app(Settings(database=given, cache=CacheSettings(url="off"), data_dir=data_dir)) as app:
        yield app


async def append(app: App, *contents: str) -> None:
    await app.conversations.append(AppendRequest(LOCAL_OWNER, [NewMessage("user", content) for content in contents]))


async def test_stored_messages_are_indexed_in_the_background(postgres_url: str, tmp_path: Path) -> None:
    """Also those that an ended daemon left, and those of other daemons after a search."""
    async with opened(postgres_url, tmp_path, 3_600) as app:
        await append(app, "left behind", "left behind")
    async with opened(postgres_url, tmp_path, 0.001) as app:
        await wait_until(lambda: app.recorder.value(INDEXED) == 2)
        await append(app, "word")
        await wait_until(lambda: app.recorder.value(INDEXED) == 3)
        await run(
            postgres_url,
            "insert into messages (conversation_id, role, content) select id, 'user', 'x' from conversations",
        )
        await app.conversations.search(SearchQuery(LOCAL_OWNER, "x"))
        await wait_until(lambda: app.recorder.value(INDEXED) == 5)
        assert app.recorder.value("messages_unindexed") == 0
    assert await value(postgres_url, "select count(*) from exai.unindexed_messages") == 0


async def test_explicit_indexing_waits_for_its_end(postgres_url: str, tmp_path: Path) -> None:
    """Before searches are measured, or after very much was imported."""
    async with opened(postgres_url, tmp_path, 3_600) as app:
        await append(app, *["word"] * 999)
        await app.maintenance.index_words()
        assert app.recorder.value(INDEXED) == 999
    assert await value(postgres_url, "select count(*) from exai.message_words") == 999


async def test_a_fault_is_logged_once_and_indexing_continues(postgres_url: str, tmp_path: Path) -> None:
    """Appends and searches do not notice."""
    await run(postgres_url, "alter table exai.message_words rename to elsewhere")
    # The first look may be over before anything is stored.
    with structlog.testing.capture_logs() as lines:
        async with opened(postgres_url, tmp_path, 0.001) as app:
            await append(app, "word")
            await wait_until(lambda: app.recorder.value(FAILED) >= 3)
            assert [line["event"] for line in lines if line["event"] == "indexing_failed"] == ["indexing_failed"]
            await run(postgres_url, "alter table exai.elsewhere rename to message_words")
            await wait_until(lambda: app.recorder.value(INDEXED) == 1)


class Slow(SearchRepository):
    """Of messages this long no more than ten can be indexed within a statement's limit."""

    async def index(self, limit: int = PORTION) -> Indexed:
        if limit > 10:
            raise DatabaseBusy("postgres", "the statement took too long", "Try again shortly")
        return await super().index(limit)


async def test_long_messages_are_indexed_in_smaller_portions(postgres_url: str) -> None:
    """If a statement exceeds its time limit, fewer messages are indexed in each."""
    recorder = Counters()
    async with database(postgres_url) as pool:
        await conversation_of(ConversationRepository(pool), *["word"] * 40)
        indexing = Indexing(Slow(pool), asyncio.Event(), recorder, pause_s=0.001)
        with pytest.raises(DatabaseBusy):
            await indexing.finish()
        task = asyncio.create_task(indexing.run())
        await wait_until(lambda: recorder[INDEXED] == 40)
        task.cancel()
        await asyncio.wait({task})
    assert recorder[FAILED] >= 2
