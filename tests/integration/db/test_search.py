"""Search: an owner's messages by their words, best first, page by page."""

from __future__ import annotations

from base64 import b64encode
from datetime import UTC, datetime, timedelta

import pytest

from exai.db.conversations import ConversationRepository
from exai.db.driver.pool import Database
from exai.db.lifecycle import ConversationUpdate, CurationRepository
from exai.db.search import SearchHit, SearchPage, SearchQuery, SearchRepository
from exai.db.turns import TurnRepository
from exai.errors import InvalidArgument
from exai.models import LOCAL_OWNER, ContinuationId, ConversationId, ConversationKey, NewMessage, Owner
from tests.support.database import appending, beginning, conversation_of, ending, new_id, once


class IndexedFirst(SearchRepository):
    """Indexes all queued messages before each search."""

    async def search(self, query: SearchQuery, *, limit: int, cursor: str | None = None) -> SearchPage:
        while (await self.index()).left:
            pass
        return await super().search(query, limit=limit, cursor=cursor)


@pytest.fixture(params=["waiting", "indexed"])
def search(request: pytest.FixtureRequest, database: Database) -> SearchRepository:
    """Words are found the same before and after they are indexed."""
    return IndexedFirst(database) if request.param == "indexed" else SearchRepository(database)


@pytest.fixture
def plain(database: Database) -> SearchRepository:
    return SearchRepository(database)


def words(text: str, **filters: object) -> SearchQuery:
    return SearchQuery(**{"owner": LOCAL_OWNER, "text": text, **filters})  # type: ignore[arg-type]


def where(page: SearchPage) -> set[tuple[str, int]]:
    return {(hit.continuation_id, hit.seq) for hit in page.hits}


async def test_words_are_found_in_their_context(repository: ConversationRepository, search: SearchRepository) -> None:
    """Any language, any case, with the words marked."""
    conversation = await conversation_of(
        repository, "nothing here", "Ein Würfel liegt auf dem Tisch", "the cube lies on the table"
    )
    (hit,) = (await search.search(words("würfel"), limit=10)).hits
    assert (hit.continuation_id, hit.seq, hit.role) == (conversation.continuation_id, 2, "user")
    assert "**Würfel**" in hit.snippet
    assert hit.tool == "append"


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("alpha beta", {1, 3}),
        ('"alpha beta"', {1}),
        ("alpha or gamma", {1, 2, 3}),
        ("alpha -gamma", {1}),
        ('-"alpha beta"', {1}),
        ('-"beta alpha" -delta or gamma', {2, 3}),
        ("delta", set()),
        ("", set()),
        ("?!", set()),
        ("alpha & | ! :* ( '", {1, 3}),
    ],
)
async def test_queries_are_written_as_in_a_search_box(
    repository: ConversationRepository, search: SearchRepository, text: str, found: set[int]
) -> None:
    """Nothing a person may type is an error."""
    await conversation_of(repository, "alpha beta", "gamma", "beta alpha gamma")
    assert {hit.seq for hit in (await search.search(words(text), limit=10)).hits} == found


async def test_the_better_match_comes_first(repository: ConversationRepository, search: SearchRepository) -> None:
    """More often, in less text."""
    await conversation_of(repository, "word " + "other " * 50, "word word word", "word other")
    hits = (await search.search(words("word"), limit=10)).hits
    assert [hit.seq for hit in hits] == [2, 3, 1]
    assert [hit.rank for hit in hits] == sorted((hit.rank for hit in hits), reverse=True)


async def test_pages_join_without_hole_or_repeat(repository: ConversationRepository, search: SearchRepository) -> None:
    """Also during appends of matching messages: all pages rank the matches of the first one."""
    name = (await conversation_of(repository, *("needle " + "hay " * (i % 7) for i in range(45)))).continuation_id
    seen: list[SearchHit] = []
    cursor = None
    while True:
        page = await search.search(words("needle"), limit=10, cursor=cursor)
        seen += page.hits
        cursor = page.next_cursor
        await repository.append(appending(name, "needle needle needle"))
        if cursor is None:
            break
    assert sorted(hit.seq for hit in seen) == list(range(1, 46))


async def test_filters_narrow_the_search(
    repository: ConversationRepository, turns: TurnRepository, search: SearchRepository
) -> None:
    """By conversation, role, tool, model and time."""
    first = await conversation_of(repository, "word one")
    begun = await turns.begin(beginning(None, "word two"))
    await turns.finish(ending(begun.turn_id, "word answer"))
    assert begun.commit is not None
    chat = begun.commit.conversation.continuation_id
    assert where(await search.search(words("word", continuation_id=first.continuation_id), limit=9)) == {
        (first.continuation_id, 1)
    }
    assert where(await search.search(words("word", role="assistant"), limit=9)) == {(chat, 2)}
    assert where(await search.search(words("word", tool="chat"), limit=9)) == {(chat, 1), (chat, 2)}
    assert where(await search.search(words("word", model="model"), limit=9)) == {(chat, 1), (chat, 2)}
    now = datetime.now(UTC)
    assert len((await search.search(words("word", since=now - timedelta(hours=1)), limit=9)).hits) == 3
    assert (await search.search(words("word", until=now - timedelta(hours=1)), limit=9)).hits == ()


async def test_titles_are_found_beside_messages(repository: ConversationRepository, search: SearchRepository) -> None:
    """A title is a hit of its own, unless only messages are asked for."""
    await repository.append(appending(None, "nothing", title="Blue Whale"))
    await repository.append(appending(None, "a whale, once"))
    hits = (await search.search(words("whale"), limit=9)).hits
    assert sorted((hit.seq, hit.role, hit.kind, hit.snippet) for hit in hits) == [
        (0, None, "title", "Blue **Whale**"),
        (1, "user", "message", "a **whale**, once"),
    ]
    assert [hit.seq for hit in (await search.search(words("whale", role="user"), limit=9)).hits] == [1]
    first = await search.search(words("whale"), limit=1)
    second = await search.search(words("whale"), limit=1, cursor=first.next_cursor)
    assert {hit.seq for hit in (*first.hits, *second.hits)} == {0, 1}


async def test_a_conversation_is_not_found_twice_for_its_title(
    repository: ConversationRepository, search: SearchRepository
) -> None:
    """Titles are mostly how a question begins: they are hits where no message is one, on all pages of a search."""
    named = [await repository.append(appending(None, "blue whale", title="Blue whale")) for _ in range(3)]
    other = await repository.append(appending(None, "nothing", title="Whale watching"))
    names = {each.commit.conversation.continuation_id for each in named if each.commit}
    assert other.commit is not None
    expected = {(name, 1) for name in names} | {(other.commit.conversation.continuation_id, 0)}
    seen: list[SearchHit] = []
    cursor = None
    while True:
        page = await search.search(words("whale"), limit=1, cursor=cursor)
        seen += page.hits
        cursor = page.next_cursor
        if cursor is None:
            break
    assert len(seen) == len(expected)
    assert {(hit.continuation_id, hit.seq) for hit in seen} == expected
    name = named[0].commit.conversation.continuation_id if named[0].commit else None
    assert where(await search.search(words("whale", continuation_id=name), limit=9)) == {(name, 1)}


async def test_a_fork_is_searched_with_what_it_shares(
    repository: ConversationRepository, search: SearchRepository, database: Database
) -> None:
    """Up to where it was forked, under its own name, and also when the other one is deleted."""
    curation = CurationRepository(database)
    source = await conversation_of(repository, "needle 1", "hay", "needle 3")
    new = ConversationId(new_id())
    forked = await curation.fork(
        ConversationKey(LOCAL_OWNER, source.continuation_id), once(), new_conversation_id=new, at_seq=2
    )
    assert forked.commit is not None
    fork = forked.commit.conversation.continuation_id
    await repository.append(appending(fork, "needle 3'"))
    assert where(await search.search(words("needle", continuation_id=fork), limit=9)) == {(fork, 1), (fork, 3)}
    assert len((await search.search(words("needle"), limit=9)).hits) == 3
    await curation.mark_deleted(ConversationKey(LOCAL_OWNER, source.continuation_id), once(), deleted=True)
    assert where(await search.search(words("needle", continuation_id=fork), limit=9)) == {(fork, 1), (fork, 3)}
    other = words("needle", continuation_id=fork, owner=Owner("other"))
    assert (await search.search(other, limit=9)).hits == ()


async def test_others_and_deleted_conversations_are_not_searched(
    repository: ConversationRepository, search: SearchRepository, database: Database
) -> None:
    """Objects of other owners and deleted ones do not exist."""
    await repository.append(appending(None, "word", owner=Owner("other")))
    gone = await conversation_of(repository, "word")
    await CurationRepository(database).mark_deleted(
        ConversationKey(LOCAL_OWNER, gone.continuation_id), once(), deleted=True
    )
    assert (await search.search(words("word"), limit=9)).hits == ()


async def test_a_huge_message_is_searched_to_its_end(
    repository: ConversationRepository, search: SearchRepository
) -> None:
    """By each of its words alone and by those that are far apart together, and the excerpt shows where."""
    huge = "start " + "🙂x " * 200_000 + " finish"
    await repository.append(appending(None, messages=[NewMessage("user", huge)]))
    for text in ("start", "finish", "start finish"):
        page = await search.search(words(text), limit=9)
        assert (len(page.hits), page.matched) == (1, "all")
    assert (await search.search(words("finis"), limit=9)).hits == ()
    assert "**finish**" in (await search.search(words("finish"), limit=9)).hits[0].snippet


def written(at: str, seq: str, rank: str = "0.1", level: str = "1") -> str:
    return b64encode(f"{at} {level} {rank} 00000000-0000-0000-0000-000000000000 {seq}".encode()).decode()


async def labelled(
    repository: ConversationRepository,
    curation: CurationRepository,
    title: str,
    change: ConversationUpdate,
    owner: Owner = LOCAL_OWNER,
) -> ContinuationId:
    made = await repository.append(appending(None, "needle one", "hay", "needle two", title=title, owner=owner))
    assert made.commit is not None
    await curation.change(ConversationKey(owner, made.commit.conversation.continuation_id), once(), change)
    return made.commit.conversation.continuation_id


async def test_tags_and_metadata_narrow(
    repository: ConversationRepository, search: SearchRepository, database: Database
) -> None:
    """All of the tags, all of the metadata; also titles and matches of most words; nothing of other owners."""
    curation = CurationRepository(database)
    both = ConversationUpdate(tags=["a", "b"], metadata={"project": {"name": "x", "n": 1}})
    one = await labelled(repository, curation, "The haystack", both)
    two = await labelled(
        repository, curation, "Haystack two", ConversationUpdate(tags=["a"], metadata={"project": {"name": "y"}})
    )
    await labelled(repository, curation, "Haystack", ConversationUpdate())
    await labelled(repository, curation, "Haystack", both, Owner("other"))
    metadata = {"project": {"name": "x"}}
    for filters, found in (
        ({"tags": ["a"]}, {one, two}),
        ({"tags": ["b", "a"]}, {one}),
        ({"metadata": metadata}, {one}),
        ({"tags": ["a"], "metadata": metadata, "role": "user"}, {one}),
        ({"tags": ["c"]}, set()),
        ({"tags": ["A"]}, set()),
        ({"metadata": {"project": "x"}}, set()),
    ):
        hits = {(name, seq) for name in found for seq in (1, 3)}
        assert where(await search.search(words("needle", **filters), limit=9)) == hits, filters
        if "role" not in filters:
            titles = {(name, 0) for name in found}
            assert where(await search.search(words("haystack", **filters), limit=9)) == titles, filters
    page = await search.search(words("needle two nowhere", tags=["b"]), limit=9)
    assert (page.matched, where(page)) == ("some", {(one, 3)})


async def test_pages_of_a_search_by_tags_neither_repeat_nor_miss(
    repository: ConversationRepository, search: SearchRepository, database: Database
) -> None:
    """Also where more than is ranked has the words."""
    curation = CurationRepository(database)
    name = await labelled(repository, curation, "t", ConversationUpdate(tags=["rare"]))
    for _ in range(3):
        await conversation_of(repository, *["needle"] * 200)
    seen: list[int] = []
    cursor = None
    while cursor or not seen:
        page = await search.search(words("needle", tags=["rare"]), limit=1, cursor=cursor)
        assert {hit.continuation_id for hit in page.hits} == {name}
        seen += [hit.seq for hit in page.hits]
        cursor = page.next_cursor
    assert sorted(seen) == [1, 3]


async def test_what_a_fork_shares_is_found_by_the_forks_own_tags(
    repository: ConversationRepository, search: SearchRepository, database: Database
) -> None:
    """In one conversation its tags and metadata count, for all that it shows."""
    curation = CurationRepository(database)
    source = await labelled(repository, curation, "t", ConversationUpdate(tags=["old"]))
    forked = await curation.fork(
        ConversationKey(LOCAL_OWNER, source), once(), new_conversation_id=ConversationId(new_id())
    )
    assert forked.commit is not None
    fork = forked.commit.conversation.continuation_id
    await curation.change(
        ConversationKey(LOCAL_OWNER, fork), once(), ConversationUpdate(tags=["new"], metadata={"a": 1})
    )
    only = {"continuation_id": fork}
    shared = {(fork, 1), (fork, 3)}
    assert where(await search.search(words("needle", tags=["new"], metadata={"a": 1}, **only), limit=9)) == shared
    assert where(await search.search(words("needle", tags=["old"], **only), limit=9)) == set()


@pytest.mark.parametrize(
    "cursor",
    [
        "x",
        "MjAyNi0wMS0wMSAxIDIgMw==",
        "",
        "TmFOIE5hTiBOYU4gTmFO",
        written("0001-01-01T00:00+14:00", "1"),
        written("2026-01-01T00:00+00:00", "9" * 30),
        written("2026-01-01T00:00+00:00", "9" * 5000),
        written("2026-01-01T00:00+00:00", "1", "1e9999"),
        written("2026-01-01T00:00+00:00", "1", level="0"),
        written("2026-01-01T00:00+00:00", "1", level="9" * 30),
    ],
)
async def test_a_foreign_cursor_is_refused(plain: SearchRepository, cursor: str) -> None:
    """Cursors come from clients; an empty one is none."""
    if not cursor:
        assert (await plain.search(words("x"), limit=9, cursor=cursor)).hits == ()
        return
    with pytest.raises(InvalidArgument):
        await plain.search(words("x"), limit=9, cursor=cursor)


async def test_what_has_most_of_the_words_is_found_if_nothing_has_all(
    repository: ConversationRepository, search: SearchRepository
) -> None:
    """Marked, with the words that are missing, the most complete first; also page by page."""
    await conversation_of(repository, "alpha beta", "alpha", "nothing", "gamma alpha", "alpha beta epsilon")
    page = await search.search(words("alpha beta gamma"), limit=9)
    assert page.matched == "some"
    assert {hit.seq: hit.missing for hit in page.hits} == {1: ("gamma",), 4: ("beta",), 5: ("gamma",)}
    assert all("**alpha**" in hit.snippet for hit in page.hits)
    seen, cursor = [], None
    while True:
        part = await search.search(words("alpha beta gamma"), limit=1, cursor=cursor)
        assert part.matched == "some"
        seen += [hit.seq for hit in part.hits]
        cursor = part.next_cursor
        if cursor is None:
            break
    assert seen == [hit.seq for hit in page.hits]
    page = await search.search(words("alpha nowhere -beta"), limit=9)
    assert (page.matched, {hit.seq: hit.missing for hit in page.hits}) == (
        "some",
        {2: ("nowhere",), 4: ("nowhere",)},
    )
    page = await search.search(words('gamma "beta alpha"'), limit=9)
    assert {hit.seq: hit.missing for hit in page.hits} == {4: ("beta alpha",)}
    assert (await search.search(words("nowhere never"), limit=9)).hits == ()
    assert (await search.search(words("alpha beta"), limit=9)).matched == "all"


async def test_many_words_of_which_few_are_there_find_something(
    repository: ConversationRepository, search: SearchRepository
) -> None:
    """As many as fit into a query."""
    await conversation_of(repository, "needle in hay")
    page = await search.search(words("needle " + " ".join(f"absent{n}" for n in range(90))), limit=9)
    assert [(hit.seq, len(hit.missing)) for hit in page.hits] == [(1, 90)]


async def test_titles_are_searched_by_the_same_words(
    repository: ConversationRepository, search: SearchRepository, database: Database
) -> None:
    """After a change by any program only the new title is found."""
    curation = CurationRepository(database)
    made = await repository.append(appending(None, "nothing", title="数据库连接池 getUserName"))
    assert made.commit is not None
    name = made.commit.conversation.continuation_id
    for text in ("数据库", "user", "getUserName"):
        assert where(await search.search(words(text), limit=9)) == {(name, 0)}
    await curation.change(ConversationKey(LOCAL_OWNER, name), once(), ConversationUpdate(title="Another café"))
    assert where(await search.search(words("cafe"), limit=9)) == {(name, 0)}
    assert where(await search.search(words("数据库"), limit=9)) == set()
    await curation.change(ConversationKey(LOCAL_OWNER, name), once(), ConversationUpdate(title=""))
    assert where(await search.search(words("cafe"), limit=9)) == set()
