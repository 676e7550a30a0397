"""The time limit of a search for messages that are not indexed yet: `exai.search_time`, 2.5 s by default."""

from __future__ import annotations

from urllib.parse import urlsplit

import pytest

from exai.db.conversations import ConversationRepository
from exai.db.driver.pool import Database
from exai.db.search import SearchQuery, SearchRepository
from exai.models import LOCAL_OWNER
from tests.support.database import appending, conversation_of, opened
from tests.support.migrations import run, value

DEFAULT = "interval '2.5 s'"


async def limit_time(url: str, time: str) -> None:
    """Set the time limit of searches for new sessions of the database."""
    await run(url, f"alter database \"{urlsplit(url).path[1:]}\" set exai.search_time = '{time}'")


async def index(database: Database) -> None:
    while (await SearchRepository(database).index()).left:
        pass


@pytest.mark.direct
async def test_search_at_its_time_limit_returns_indexed_matches_and_the_number_of_unread_messages(
    postgres_url: str,
) -> None:
    """With a limit of 0 s no waiting message is examined; the pages of the indexed matches continue."""
    async with opened(postgres_url) as database:
        repository = ConversationRepository(database)
        made = await conversation_of(repository, "needle one", "needle two")
        await index(database)
        await repository.append(appending(made.continuation_id, "needle three", "needle four", "needle five"))
    await limit_time(postgres_url, "0 s")
    async with opened(postgres_url) as database:
        search = SearchRepository(database)
        first = await search.search(SearchQuery(LOCAL_OWNER, "needle"), limit=1)
        assert (len(first.hits), first.unread, first.next_cursor is not None) == (1, 3, True)
        second = await search.search(SearchQuery(LOCAL_OWNER, "needle"), limit=1, cursor=first.next_cursor)
        assert {hit.seq for hit in (*first.hits, *second.hits)} == {1, 2}
        assert second.next_cursor is None
        nothing = await search.search(SearchQuery(LOCAL_OWNER, "three"), limit=9)
        assert (nothing.hits, nothing.unread) == ((), 3)
        some = await search.search(SearchQuery(LOCAL_OWNER, "needle three"), limit=9)
        assert ({hit.seq for hit in some.hits}, some.matched, some.unread) == ({1, 2}, "some", 3)
        await index(database)
        whole = await search.search(SearchQuery(LOCAL_OWNER, "needle"), limit=9)
        assert ({hit.seq for hit in whole.hits}, whole.unread) == ({1, 2, 3, 4, 5}, 0)


@pytest.mark.direct
async def test_time_limit_of_a_search_is_2_5_s_unless_it_is_set(postgres_url: str) -> None:
    """The function has the default; neither a migration nor the driver's session sets another one."""
    text = await value(postgres_url, "select prosrc from pg_proc where proname = 'search_v1'")
    assert text.count(f"coalesce(nullif(current_setting('exai.search_time', true), '')::interval, {DEFAULT})") == 1
    assert await value(postgres_url, "select current_setting('exai.search_time', true)") is None
