"""Words are indexed after a message was stored, and found before and after, for every writer."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import asyncpg
import pytest

from exai.db.conversations import ConversationRepository
from exai.db.driver.pool import Database, OneTrip, connect
from exai.db.driver.statements import load_statements
from exai.db.lifecycle import CurationRepository
from exai.db.search import Indexed, SearchQuery, SearchRepository
from exai.db.transfer import ImportBatch, TransferRepository
from exai.db.turns import TurnRepository
from exai.models import LOCAL_OWNER, ContinuationId, ConversationId, ConversationKey, NewMessage, Owner, TurnId
from tests.support.database import appending, beginning, conversation_of, ending, new_id, once, opened
from tests.support.waiting import wait_until

WAITING = "select count(*) from exai.unindexed_messages"
WORDS = "select count(distinct (conversation_id, seq)) from exai.message_words"
PARTS = "select count(*) from exai.message_words"
INDEX = "select o_indexed, o_left from exai.index_messages_v1(500)"


@pytest.fixture
async def sql(database: Database) -> AsyncIterator[OneTrip]:
    connection = await connect(database.address, timeout_s=5)
    yield connection
    await connection.close()


@pytest.fixture
def search(database: Database) -> SearchRepository:
    return SearchRepository(database)


async def found(search: SearchRepository, text: str) -> list[int]:
    return sorted(hit.seq for hit in (await search.search(SearchQuery(LOCAL_OWNER, text), limit=99)).hits)


async def test_a_message_is_found_before_and_after_it_is_indexed(
    repository: ConversationRepository,
    turns: TurnRepository,
    search: SearchRepository,
    sql: OneTrip,
    database: Database,
) -> None:
    """Stored in any way, the hits, their order and their ranks are the same."""
    name = (await conversation_of(repository, "word one", "nothing")).continuation_id
    begun = await turns.begin(beginning(name, "word three"))
    await turns.finish(ending(begun.turn_id, "a word, a word"))
    curation = CurationRepository(database)
    new = ConversationId(new_id())
    forked = await curation.fork(ConversationKey(LOCAL_OWNER, name), once(), new_conversation_id=new, at_seq=3)
    assert forked.commit is not None
    await repository.append(appending(forked.commit.conversation.continuation_id, "word four'"))
    await TransferRepository(database).store_batch(importing("word 1", "word 2"))
    await sql.execute(
        "insert into messages (conversation_id, role, content) select id, 'user', 'word' from conversations"
    )
    before = (await search.search(SearchQuery(LOCAL_OWNER, "word"), limit=99)).hits
    assert len(before) == 9
    assert await search.index() == Indexed(10, 0)
    assert (await search.search(SearchQuery(LOCAL_OWNER, "word"), limit=99)).hits == before
    assert await search.index() == Indexed(0, 0)


def importing(*contents: str) -> ImportBatch:
    return ImportBatch(
        owner=LOCAL_OWNER,
        continuation_id=ContinuationId("imported"),
        new_conversation_id=ConversationId(new_id()),
        turn_id=TurnId(new_id()),
        request_key=new_id(),
        request_hash="h",
        first_seq=1,
        messages=[NewMessage("user", content) for content in contents],
        times=[None for _ in contents],
        title=None,
        metadata={},
        tags=(),
        created_at=None,
        updated_at=None,
    )


@pytest.mark.parametrize("indexed", [False, True])
async def test_what_others_change_is_found_as_it_is_now(
    repository: ConversationRepository, search: SearchRepository, sql: OneTrip, indexed: bool
) -> None:
    """An older client may change, delete and put back messages."""
    conversation = await conversation_of(repository, "old", "gone", "kept")
    put_back = "insert into messages (conversation_id, seq, role, content) values ($1::text::uuid, 2, 'user', $2)"
    if indexed:
        await search.index()
    await sql.execute("update messages set content = 'new' where seq = 1")
    await sql.execute("delete from messages where seq = 2")
    for _ in ("waiting", "indexed"):
        seen = [await found(search, each) for each in ("old", "new", "gone", "kept")]
        assert seen == [[], [1], [], [3]]
        await search.index()
    assert await sql.fetchval(WORDS) == 2
    await sql.execute("update messages set created_at = created_at - interval '1 day' where seq = 3")
    await sql.execute(put_back, conversation.id, "back")
    for _ in ("waiting", "indexed"):
        assert [await found(search, each) for each in ("gone", "back", "kept")] == [[], [2], [3]]
        await search.index()
    same = "select count(*) from messages m join exai.message_words w using (conversation_id, seq, created_at)"
    assert await sql.fetchval(same) == await sql.fetchval(WORDS) == 3


async def test_a_change_that_the_indexing_did_not_see_is_found(
    repository: ConversationRepository, search: SearchRepository, sql: OneTrip, database: Database
) -> None:
    """The words that are stored then are outdated and not used."""
    await conversation_of(repository, "old")
    other = await connect(database.address, timeout_s=5)
    async with sql.transaction():
        assert tuple(await sql.fetchrow(INDEX)) == (1, 0)
        await other.execute("update messages set content = 'new'")
    await other.close()
    for _ in ("waiting", "indexed"):
        assert [await found(search, each) for each in ("old", "new")] == [[], [1]]
        await search.index()


async def test_only_one_daemon_indexes_and_none_waits_for_it(
    repository: ConversationRepository, search: SearchRepository, sql: OneTrip
) -> None:
    """The other one returns at once, and searches find everything meanwhile."""
    await conversation_of(repository, "word", "word")
    async with sql.transaction():
        assert tuple(await sql.fetchrow(INDEX)) == (2, 0)
        assert await search.index() == Indexed(0, 2)
        await conversation_of(repository, "word")
        assert await found(search, "word") == [1, 1, 2]
    assert await found(search, "word") == [1, 1, 2]
    assert await search.index() == Indexed(1, 0)


async def test_many_at_once_index_everything_once(repository: ConversationRepository, search: SearchRepository) -> None:
    """Daemons are stateless: any number may try."""
    for _ in range(5):
        await conversation_of(repository, *["word"] * 7)
    results = await asyncio.gather(*(search.index(10) for _ in range(20)))
    rest = 0
    while (more := await search.index(10)).indexed:
        rest += more.indexed
    assert sum(each.indexed for each in results) + rest == 35
    assert len(await found(search, "word")) == 35


async def test_an_indexing_that_is_killed_leaves_everything_as_it_was(
    repository: ConversationRepository, search: SearchRepository, sql: OneTrip, database: Database
) -> None:
    """The messages are in the queue again."""
    await conversation_of(repository, "word", "word")
    other = await connect(database.address, timeout_s=5)
    await other.execute("begin")
    assert tuple(await other.fetchrow(INDEX)) == (2, 0)
    await sql.fetchval("select pg_terminate_backend($1::int, 5000)", await other.fetchval("select pg_backend_pid()"))
    assert (await sql.fetchval(WAITING), await sql.fetchval(WORDS)) == (1, 0)
    assert await found(search, "word") == [1, 2]
    assert await search.index() == Indexed(2, 0)


async def test_a_portion_is_no_larger_than_asked_for(
    repository: ConversationRepository, search: SearchRepository, sql: OneTrip
) -> None:
    """Also where one statement has stored more, and the oldest come first."""
    first = await conversation_of(repository, "first")
    await conversation_of(repository, *(f"word {n}" for n in range(25)))
    assert await search.index(10) == Indexed(10, 16)
    of_first = "select count(*) from exai.message_words where conversation_id = $1::text::uuid"
    assert await sql.fetchval(of_first, first.id) == 1
    assert len(await found(search, "word")) == 25
    assert [await search.index(10) for _ in range(3)] == [Indexed(10, 6), Indexed(6, 0), Indexed(0, 0)]
    assert len(await found(search, "word")) == 25


async def test_a_purged_conversation_leaves_no_words(
    repository: ConversationRepository, search: SearchRepository, sql: OneTrip, database: Database
) -> None:
    """Indexed or waiting."""
    curation = CurationRepository(database)
    for indexed in (True, False):
        name = (await conversation_of(repository, "word", "word")).continuation_id
        if indexed:
            await search.index()
        await curation.mark_deleted(ConversationKey(LOCAL_OWNER, name), once(), deleted=True)
        assert await curation.purge(after_s=-1) == 1
        await search.index()
        assert (await sql.fetchval(WAITING), await sql.fetchval(WORDS)) == (0, 0)


async def test_messages_that_are_truncated_leave_no_words(
    repository: ConversationRepository, search: SearchRepository, sql: OneTrip
) -> None:
    """As a dashboard does it; also together with their conversations."""
    for tables in ("messages", "conversations cascade"):
        await conversation_of(repository, "word", "word")
        await search.index()
        await conversation_of(repository, "word")
        await sql.execute(f"truncate {tables}")
        assert await found(search, "word") == []
        await search.index()
        assert (await sql.fetchval(WAITING), await sql.fetchval(WORDS)) == (0, 0)


async def test_a_concurrent_deletion_of_a_conversation_is_not_waited_for(
    repository: ConversationRepository, search: SearchRepository, sql: OneTrip
) -> None:
    """Its words are indexed later, if it still exists."""
    first, _ = [await conversation_of(repository, "word") for _ in range(2)]
    async with sql.transaction():
        await sql.execute("delete from conversations where id = $1::text::uuid", first.id)
        assert await search.index() == Indexed(1, 1)
        assert await found(search, "word") == [1, 1]
    assert await found(search, "word") == [1]
    assert await search.index() == Indexed(0, 0)
    assert (await sql.fetchval(WAITING), await sql.fetchval(WORDS)) == (0, 1)


async def test_a_conversation_that_is_held_for_long_is_passed_over(
    repository: ConversationRepository, search: SearchRepository, sql: OneTrip
) -> None:
    """Also where it alone is more than a portion, and has waited longest."""
    first, _ = await conversation_of(repository, *["word"] * 12), await conversation_of(repository, "word")
    async with sql.transaction():
        await sql.execute("select from conversations where id = $1::text::uuid for update", first.id)
        assert await search.index(10) == Indexed(1, 12)
    assert await search.index(10) == Indexed(10, 2)


# In each of these the server's parser looks far ahead from every second character.
@pytest.mark.parametrize("text", ["a_", "~/", "/.", "<!--"])
async def test_a_long_text_that_is_hard_to_parse_is_found_and_indexed(
    repository: ConversationRepository, search: SearchRepository, sql: OneTrip, text: str
) -> None:
    """It must not block the searches of its owner or the indexing for all owners."""
    await conversation_of(repository, "word one", f"word {text * 50_000} far", "word three")
    for _ in ("waiting", "indexed"):
        assert await found(search, "word") == [1, 2, 3]
        await search.index()
    assert await sql.fetchval(WORDS) == 3


async def test_long_texts_are_found_by_each_of_their_words(
    repository: ConversationRepository, search: SearchRepository
) -> None:
    """To their end. Of encoded data the beginning is a word, and it takes no other word along."""
    long = "x" * 5_000
    await conversation_of(repository, f"begin {long} <!-- middle end", f"{'word ' * 25_000} beyond")
    for _ in ("waiting", "indexed"):
        assert [await found(search, each) for each in ("begin", "middle", "end", "beyond", long[:200])] == [
            [1], [1], [1], [2], [1],
        ]  # fmt: skip
        await search.index()


async def test_a_text_of_more_words_than_fit_is_indexed_in_parts(
    repository: ConversationRepository, search: SearchRepository, sql: OneTrip
) -> None:
    """Found by the first, the last and each in between, and forgotten together."""
    name = (await conversation_of(repository, " ".join(f"word{n:012}" for n in range(60_000)))).id
    for _ in ("waiting", "indexed"):
        assert [await found(search, f"word{n:012}") for n in (0, 30_000, 59_999, 60_000)] == [[1], [1], [1], []]
        while (await search.index()).left:
            pass
    assert await sql.fetchval(PARTS) > 1
    await sql.execute("update messages set content = 'short' where conversation_id = $1::text::uuid", name)
    await search.index()
    assert await sql.fetchval(PARTS) == 1


async def test_a_search_writes_nothing(repository: ConversationRepository, sql: OneTrip) -> None:
    """So it finds what waits where nothing may be written too, as on a standby."""
    await conversation_of(repository, "word", "word")
    statement = load_statements()["search_messages"].text
    async with sql.transaction(readonly=True):
        hits = await sql.fetch(statement, LOCAL_OWNER, "word", *(None,) * 13, 500, 9)
        assert sorted(hit["seq"] for hit in hits[:-1]) == [1, 2]
        with pytest.raises(asyncpg.ReadOnlySQLTransactionError):
            await sql.fetchrow(INDEX)


async def test_the_last_connection_is_left_to_others(sql: OneTrip, postgres_url: str) -> None:
    """Indexing waits a moment for a second one."""
    async with opened(postgres_url, pool_size=2) as pool:
        search = SearchRepository(pool)
        assert search.has_room()
        async with sql.transaction():
            await sql.execute("lock table conversations in access exclusive mode")
            waiting = asyncio.create_task(found(search, "word"))
            await wait_until(lambda: pool.usage()[0] == 1)
            assert not search.has_room()
        await waiting
        assert search.has_room()


async def test_a_long_message_is_indexed_segment_by_segment(
    repository: ConversationRepository, search: SearchRepository, sql: OneTrip
) -> None:
    """Others do not wait for it, it is found meanwhile and afterwards, and a change of it in between counts."""
    long = "begin " + "数据库 word fooBar " * 12_000 + " search.py end"
    name = (await conversation_of(repository, long)).id
    other = await conversation_of(repository, "short")
    assert await search.index(1) == Indexed(1, 2)
    texts = ("begin", "end", "数据库", "foobar", "search.py", "begin end")
    for _ in ("waiting", "indexed"):
        assert [await found(search, text) for text in texts] == [[1]] * len(texts)
        while (await search.index()).left:
            pass
    assert await sql.fetchval(PARTS) > 3
    await sql.execute("update messages set content = 'x' || content where conversation_id = $1::text::uuid", name)
    await search.index(1)
    await sql.execute("update messages set content = 'brief' where conversation_id = $1::text::uuid", name)
    while (await search.index(1)).left:
        pass
    assert await sql.fetchval(PARTS) == 2
    assert [await found(search, text) for text in ("begin", "brief", "short")] == [[], [1], [1]]
    assert other.id != name


async def test_searches_of_repetitive_text_do_little_for_each_message(
    repository: ConversationRepository, search: SearchRepository, sql: OneTrip
) -> None:
    """An excerpt reads a bounded part of a text, and the first segment with all words suffices."""
    text = "a b " * 25_000
    excerpt = "select length((exai.excerpt_v1($1::text, array['a', 'b'])).o_excerpt)"
    assert await sql.fetchval(excerpt, text) < 500
    await conversation_of(repository, *[text] * 5)
    for _ in ("waiting", "indexed"):
        assert await found(search, "a b") == [1, 2, 3, 4, 5]
        while (await search.index()).left:
            pass


async def test_a_search_reads_the_words_of_its_owner_only(
    repository: ConversationRepository, search: SearchRepository, sql: OneTrip
) -> None:
    """The index is asked for the owner's words only, so a search neither finds nor reads what others stored."""
    mallory = Owner("mallory")
    for _ in range(20):
        await repository.append(appending(None, *["secret word"] * 20, owner=mallory, title="secret title"))
    while (await search.index()).left:
        pass
    await sql.execute("vacuum analyze exai.message_words")
    statement = load_statements()["search_messages"].text
    async with sql.transaction():
        read = "select pg_stat_get_xact_tuples_fetched('exai.message_words'::regclass)"
        before = await sql.fetchval(read)
        assert len(await sql.fetch(statement, LOCAL_OWNER, "secret", *(None,) * 13, 500, 9)) == 1, "the row of sums"
        assert await sql.fetchval(read) == before
        assert len(await sql.fetch(statement, mallory, "secret", *(None,) * 13, 500, 9)) == 9 + 1
        assert await sql.fetchval(read) > before
    own = await sql.fetchval("select count(*) from exai.message_words where words @@ 'secret'")
    assert own == 0


async def test_words_follow_a_conversation_to_another_owner(
    repository: ConversationRepository, search: SearchRepository, sql: OneTrip
) -> None:
    """As an administrator moves it; titles too."""
    await repository.append(appending(None, "word", title="Title"))
    for _ in ("waiting", "indexed"):
        assert await found(search, "word") == [1]
        await search.index()
    await sql.execute("update conversations set owner = 'other'")
    for _ in ("waiting", "indexed"):
        for text, seq in (("word", 1), ("title", 0)):
            assert await found(search, text) == []
            page = await search.search(SearchQuery(Owner("other"), text), limit=9)
            assert [hit.seq for hit in page.hits] == [seq]
        await search.index()


TEXTS = (
    "",
    " ",
    "!?",
    "Hello, World",
    "It's a \\ test",
    "  a,b;c d ",
    "z" * 300,
    "tab\tand\n'quoted'",
    "ABC DEF",
    "a\x01b",
    "x {y} - z",
    "self.fooBarBaz = parseHTTPRequest(load_json_v2, x86) # utf8, utf8",
    "commit 3f786850e387550fdab836ed7e6dc881de23001b, 12e45ab 1e5 1e5a 0e1x9e2b",
    "getA1B2C3D4E5F6G7H8I9J10K11L12 a1b2 FooBarV2",
    "zq 1e5a fooBar",
    "z" * 129 + "Bar fooBar",
    "the " * 250,
    "Größe, größeMax: naïve—“žq” zq ǽ",
    "Größe, größeMax: naïve—“quoted” 1e5ä 12e3b zx303",
    "ПриветМир, это ещё раз!",
    "می\u200cخواهم \u200c fooBar\u200c\u200cbaz",
    "a \u0301\u0308 b e\u0301",
    "日本語のfooBar 1e5a",
)


@pytest.mark.parametrize("text", TEXTS)
async def test_the_words_of_a_text_are_its_units(sql: OneTrip, text: str) -> None:
    """Also without their marks, and made in either way: by row or, in a fraction of the time, without rows."""
    words = await sql.fetch(
        "select w.part, u.lexeme, p.place from exai.words_v1('k', $1::text) w cross join unnest(w.words) u"
        " cross join unnest(u.positions) p(place) order by 2, 3",
        text,
    )
    units = await sql.fetch(
        "select distinct 'k' || w.word as lexeme, u.place from exai.units_v1($1::text) u"
        " cross join lateral (values (u.word), (exai.strip_marks_v1(u.word))) w(word) where w.word <> '' order by 1, 2",
        text,
    )
    if max((row["part"] for row in words), default=0) == 0:
        assert [(row["lexeme"], row["place"]) for row in words] == [(row["lexeme"], row["place"]) for row in units]
    else:
        assert {row["lexeme"] for row in words} - {"k+"} == {row["lexeme"] for row in units}
