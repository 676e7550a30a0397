"""Long messages are searched as a whole; messages that wait to be indexed match as they will afterwards."""

from __future__ import annotations

import pytest

from exai.db.conversations import ConversationRepository
from exai.db.driver.pool import Database
from exai.db.search import SearchPage, SearchQuery, SearchRepository
from exai.models import LOCAL_OWNER
from tests.support.database import conversation_of

FILLER = " filler text" * 5_000


@pytest.fixture
def search(database: Database) -> SearchRepository:
    return SearchRepository(database)


async def page_of(search: SearchRepository, text: str) -> SearchPage:
    return await search.search(SearchQuery(LOCAL_OWNER, text), limit=99)


async def found(search: SearchRepository, text: str) -> tuple[list[int], str]:
    page = await page_of(search, text)
    assert page.unread == 0
    return sorted(hit.seq for hit in page.hits), page.matched


async def index(search: SearchRepository) -> None:
    while (await search.index()).left:
        pass


@pytest.mark.parametrize("many_words", [False, True])
async def test_terms_count_wherever_in_a_message_they_are(
    repository: ConversationRepository, search: SearchRepository, many_words: bool
) -> None:
    """All of them, also excluded ones, in any index rows of the message, and beside messages with them together."""
    filler = " ".join(f"word{n:012}" for n in range(60_000)) if many_words else FILLER
    await conversation_of(
        repository, f"alpha {filler} beta", "alpha beta", f"alpha {filler} gamma", f"beta {filler} delta", "alpha"
    )
    for _ in ("waiting", "indexed"):
        assert await found(search, "alpha beta") == ([1, 2], "all")
        assert await found(search, "alpha -beta") == ([3, 5], "all")
        assert await found(search, "alpha -gamma -beta") == ([5], "all")
        assert await found(search, "beta gamma or beta delta") == ([4], "all")
        assert await found(search, "delta or alpha gamma -beta") == ([3, 4], "all")
        page = await page_of(search, "alpha gamma beta delta")
        assert {hit.seq: hit.missing for hit in page.hits} == {
            1: ("gamma", "delta"),
            2: ("gamma", "delta"),
            3: ("beta", "delta"),
            4: ("alpha", "gamma"),
        }
        assert await found(search, "alpha beta nowhere -delta") == ([1, 2], "some")
        await index(search)


@pytest.mark.parametrize(
    ("text", "query"),
    [
        ("concatenate " * 2_000 + "the cat sat", "cat"),
        ("scatter_cats category " * 2_000 + "theCat", "cat"),
        ("foo x " * 3_000 + "foo,\n\n\nbar", '"foo bar"'),
        ("foo x " * 3_000 + "foo" + "\n" * 3_000 + "bar", '"foo bar"'),
        ("foo x " * 3_000 + "foo-bar", "foo_bar"),
        ("foo x " * 5_000 + "fooBar", "foo/bar"),
        ("cafés " * 2_000 + "CAFE\u0301", "café"),
        ("数据 库连 " * 2_000 + "数据库连", "据库"),
        ("encoded " + "cat/" * 2_000 + " cat.", "cat"),
    ],
)
async def test_a_term_is_found_after_any_number_of_places_that_look_like_it(
    repository: ConversationRepository, search: SearchRepository, text: str, query: str
) -> None:
    """Before the message is indexed and afterwards."""
    await conversation_of(repository, text, "other")
    for _ in ("waiting", "indexed"):
        assert await found(search, query) == ([1], "all")
        await index(search)


@pytest.mark.parametrize(
    ("text", "query"), [("concatenate " * 2_000, "cat"), ("foo x filler filler filler " * 200 + "bar foo", '"foo bar"')]
)
async def test_what_only_looks_like_a_term_is_not_found(
    repository: ConversationRepository, search: SearchRepository, text: str, query: str
) -> None:
    """Before the message is indexed and afterwards."""
    await conversation_of(repository, text)
    for _ in ("waiting", "indexed"):
        assert await found(search, query) == ([], "all")
        await index(search)


async def test_a_search_says_how_many_waiting_messages_it_did_not_look_through(
    repository: ConversationRepository, search: SearchRepository
) -> None:
    """Its work is limited, small messages come first, and an empty result has the number, too."""
    huge = "ночь " * 320_000
    await conversation_of(repository, huge, huge, huge, "дверь")
    page = await page_of(search, "дверь")
    assert ([hit.seq for hit in page.hits], page.unread > 0) == ([4], True)
    page = await page_of(search, "дверь окно")
    assert ([hit.seq for hit in page.hits], page.matched, page.unread > 0) == ([4], "some", True)
    page = await page_of(search, "окно")
    assert (page.hits, page.unread > 0, page.next_cursor) == ((), True, None)


async def test_huge_waiting_messages_are_searched_where_the_words_are_rare(
    repository: ConversationRepository, search: SearchRepository
) -> None:
    """Only the segments that hold something like the term are read closely."""
    huge = "plain text " * 350_000
    await conversation_of(repository, *(f"{huge} needle{n} {huge[:100]}" for n in range(3)))
    assert await found(search, "needle1") == ([2], "all")
