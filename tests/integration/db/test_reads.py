"""Pages, lists and changes: by key, without gaps or repetitions under concurrent writes."""

from __future__ import annotations

import asyncio
from base64 import b64encode
from datetime import UTC, datetime
from typing import Any

import orjson
import pytest

from exai.db.conversations import CHANGES_LIMIT, ConversationRepository
from exai.db.driver.pool import Database, connect
from exai.db.filters import ListFilter
from exai.db.lifecycle import ConversationUpdate, CurationRepository, IdempotencyKey
from exai.errors import InvalidArgument, NotFound
from exai.models import (
    LOCAL_OWNER,
    PAGE_BYTES,
    ContentPart,
    ContinuationId,
    ConversationId,
    ConversationKey,
    Message,
    NewMessage,
    Owner,
    TurnId,
)
from exai.pages import decode_page
from tests.support.database import appending, assert_consecutive, conversation_of, new_id, once
from tests.support.waiting import WAIT_LIMIT_S


async def test_pages_join_without_hole_or_repeat(repository: ConversationRepository) -> None:
    """Also during appends, because pages go by number, not by offset."""
    name = (await conversation_of(repository, *(str(i) for i in range(1, 121)))).continuation_id
    page = await repository.read_page(ConversationKey(LOCAL_OWNER, name), limit=50)
    pages = [page]
    while page.has_older:
        await repository.append(appending(name, "newer"))
        page = await repository.read_page(ConversationKey(LOCAL_OWNER, name), limit=50, before_seq=page.messages[0].seq)
        pages.insert(0, page)
    messages = tuple(message for page in pages for message in page.messages)
    assert_consecutive(messages)
    assert [message.content for message in messages] == [str(i) for i in range(1, 121)]
    assert [len(page.messages) for page in pages] == [20, 50, 50]


async def test_a_page_before_the_beginning_is_empty(repository: ConversationRepository) -> None:
    """It has no cursor for older messages."""
    name = (await conversation_of(repository, "one")).continuation_id
    page = await repository.read_page(ConversationKey(LOCAL_OWNER, name), before_seq=1)
    assert (page.messages, page.has_older) == ((), False)


ODD = (
    NewMessage("system", ""),
    NewMessage("user", '\n,\n",\n[]\\ \x01\x7f\u2028 é 漢 \U0001f600', kind='of "another" kind,\n'),
    NewMessage("tool", "x" * 1_000, metadata={"é\n": [1, 2.5, None, {"deep": True}, "\u2028"], "large": 2**53}),
    NewMessage("assistant", "\\u0041"),
)
LONG = "é,\n" * 40_000


async def odd_page(repository: ConversationRepository, *more: str) -> tuple[str, tuple[Message, ...]]:
    """A conversation with messages that are hard to write down, and those messages as they were stored."""
    messages = [*ODD, *(NewMessage("user", content) for content in more)]
    result = await repository.append(appending(None, messages=messages))
    assert result.commit is not None
    return result.commit.conversation.continuation_id, result.commit.added


@pytest.mark.parametrize("more", [(), (LONG,), (LONG, "short")])
async def test_a_page_has_the_stored_messages(repository: ConversationRepository, more: tuple[str, ...]) -> None:
    """Also if a long message makes it several rows; the cache receives the same messages."""
    name, stored = await odd_page(repository, *more)
    page = await repository.read_page(ConversationKey(LOCAL_OWNER, name))  # type: ignore[arg-type]
    assert page.messages == stored
    assert page.page is not None
    assert decode_page(page.page) == stored
    assert (await repository.read_page(ConversationKey(LOCAL_OWNER, name), limit=2)).messages == stored[-2:]  # type: ignore[arg-type]


async def test_a_fork_reads_the_same_as_its_source(repository: ConversationRepository, database: Database) -> None:
    """For any shared part, in each form of a page."""
    name, stored = await odd_page(repository)
    await execute(
        database,
        "insert into conversations (continuation_id, parent_id, parent_seq, next_seq)"
        " select 'fork', id, 3, 4 from conversations",
    )
    assert (await repository.read_page(ConversationKey(LOCAL_OWNER, "fork"))).messages == stored[:3]  # type: ignore[arg-type]
    assert (await repository.read_page(ConversationKey(LOCAL_OWNER, name))).messages == stored  # type: ignore[arg-type]


async def test_messages_removed_by_another_program_leave_a_full_page(
    repository: ConversationRepository, database: Database
) -> None:
    """The newest of those that are left, however far back they are."""
    name = (await conversation_of(repository, *(str(i) for i in range(1, 31)))).continuation_id
    await execute(database, "delete from messages where seq between 15 and 28 or seq = 30")
    page = await repository.read_page(ConversationKey(LOCAL_OWNER, name), limit=4)
    assert [message.content for message in page.messages] == ["12", "13", "14", "29"]
    assert page.has_older


async def test_times_are_in_utc_and_can_be_held(repository: ConversationRepository, database: Database) -> None:
    """For any time zone of a session and any value that another program wrote."""
    name = (await conversation_of(repository, "early", "late", "now")).continuation_id
    for seq, when in ((1, "-infinity"), (2, "infinity")):
        await execute(database, f"update messages set created_at = '{when}' where seq = {seq}")
    first, last, now = (await repository.read_page(ConversationKey(LOCAL_OWNER, name))).messages
    assert (first.created_at, last.created_at) == (datetime.min.replace(tzinfo=UTC), datetime.max.replace(tzinfo=UTC))
    connection = await connect(database.address, timeout_s=5)
    try:
        await connection.execute("set timezone = 'Asia/Kolkata'")
        page = await connection.fetchval(
            "select p.messages from exai.read_page_v1('local', $1, null, 0, 50, 2000000, 0) p", name
        )
    finally:
        await connection.close()
    # Postgres leaves out zeros at the end of a fraction.
    spelled = orjson.loads(b"[%b]" % page)[2][3]
    assert spelled.endswith("+00:00")
    assert datetime.fromisoformat(spelled) == now.created_at
    assert now.created_at.tzinfo is UTC


async def test_an_unknown_conversation_is_not_found(repository: ConversationRepository) -> None:
    """A typed error with the name."""
    with pytest.raises(NotFound, match="nobody"):
        await repository.read_page(ConversationKey(LOCAL_OWNER, "nobody"))  # type: ignore[arg-type]


async def test_a_list_pages_by_latest_change_without_repeat(repository: ConversationRepository) -> None:
    """What moves to the top meanwhile was seen already or is seen at the top of the next look; nothing comes twice."""
    conversations = [await conversation_of(repository, str(i)) for i in range(7)]
    first = await repository.list_conversations(LOCAL_OWNER, limit=3)
    assert [c.id for c in first.conversations] == [c.id for c in reversed(conversations[4:])]
    await repository.append(appending(conversations[5].continuation_id, "again"))
    second = await repository.list_conversations(LOCAL_OWNER, limit=3, cursor=first.next_cursor)
    third = await repository.list_conversations(LOCAL_OWNER, limit=3, cursor=second.next_cursor)
    assert [c.id for c in (*second.conversations, *third.conversations)] == [c.id for c in reversed(conversations[:4])]
    assert third.next_cursor is None


async def fork_of(database: Database, name: ContinuationId) -> ContinuationId:
    """A fork of the whole conversation."""
    new = ConversationId(new_id())
    forked = await CurationRepository(database).fork(
        ConversationKey(LOCAL_OWNER, name), once(), new_conversation_id=new
    )
    assert forked.commit is not None
    return forked.commit.conversation.continuation_id


async def test_a_page_has_what_fits_into_its_bytes_and_a_cursor_for_the_rest(
    repository: ConversationRepository, database: Database
) -> None:
    """For stored messages of any size: at least one message, and whole ones."""
    name = (await conversation_of(repository, *(str(n) + "x" * 300_000 for n in range(10)))).continuation_id
    forked = await fork_of(database, name)
    for each in (name, forked):
        newest = await repository.read_page(ConversationKey(LOCAL_OWNER, each))
        assert [message.seq for message in newest.messages] == [5, 6, 7, 8, 9, 10]
        assert (newest.has_older, newest.part) == (True, None)
        seen: list[int] = []
        before = None
        while before != 1:
            page = await repository.read_page(
                ConversationKey(LOCAL_OWNER, each), limit=500, before_seq=before, budget_bytes=1_000_000
            )
            assert len(page.messages) in (1, 3)
            assert page.has_older is (page.messages[0].seq > 1)
            seen = [*(message.seq for message in page.messages), *seen]
            before = page.messages[0].seq
        assert seen == list(range(1, 11))


async def test_a_page_counts_metadata_as_well(repository: ConversationRepository) -> None:
    """It is handed over like the content."""
    messages = [NewMessage("user", str(n), metadata={"x": "y" * 200_000}) for n in range(20)]
    name = (await conversation_of(repository)).continuation_id
    await repository.append(appending(name, messages=messages))
    page = await repository.read_page(ConversationKey(LOCAL_OWNER, name))
    assert [message.seq for message in page.messages] == list(range(11, 21))
    assert sum(len(message.metadata["x"]) for message in page.messages) <= PAGE_BYTES


@pytest.mark.parametrize("text", ["abcdefghij" * 300_000, "Größe 漢字 😀\n" * 300_000])
async def test_a_message_longer_than_a_page_comes_in_parts(
    repository: ConversationRepository, database: Database, text: str
) -> None:
    """Also where it is in the conversation that a fork began with."""
    name = (await conversation_of(repository, "first", text, "last")).continuation_id
    forked = await fork_of(database, name)
    for each in (name, forked):
        newest = await repository.read_page(ConversationKey(LOCAL_OWNER, each))
        assert ([message.content for message in newest.messages], newest.has_older) == (["last"], True)
        read, parts = "", 0
        while len(read) < len(text):
            page = await repository.read_page(
                ConversationKey(LOCAL_OWNER, each), limit=1, before_seq=3, char_offset=len(read)
            )
            assert page.part == ContentPart(len(read), len(text))
            (message,) = page.messages
            assert 0 < len(message.content.encode()) <= PAGE_BYTES
            read, parts = read + message.content, parts + 1
        assert read == text
        assert parts > 1
        beyond = await repository.read_page(
            ConversationKey(LOCAL_OWNER, each), limit=1, before_seq=3, char_offset=2**53
        )
        assert beyond.messages[0].content == ""


async def test_the_newest_can_be_left_out(repository: ConversationRepository) -> None:
    """One round trip for any number."""
    name = (await conversation_of(repository, *map(str, range(600)))).continuation_id
    page = await repository.read_page(ConversationKey(LOCAL_OWNER, name), limit=2, skip=550)
    assert [message.content for message in page.messages] == ["48", "49"]
    for skip in (600, 700):
        assert (await repository.read_page(ConversationKey(LOCAL_OWNER, name), limit=2, skip=skip)).messages == ()


async def test_a_list_ends_where_its_headers_have_been_too_large(
    repository: ConversationRepository, database: Database
) -> None:
    """Their metadata may be 256 kB each."""
    curation = CurationRepository(database)
    names = [(await conversation_of(repository, str(n))).continuation_id for n in range(12)]
    for name in names:
        await curation.change(
            ConversationKey(LOCAL_OWNER, name), once(), ConversationUpdate(metadata={"x": "y" * 200_000})
        )
    seen: list[str] = []
    cursor, pages = None, 0
    while pages == 0 or cursor is not None:
        listed = await repository.list_conversations(LOCAL_OWNER, limit=200, cursor=cursor)
        seen += [each.continuation_id for each in listed.conversations]
        cursor, pages = listed.next_cursor, pages + 1
    assert (seen, pages) == (names[::-1], 2)


async def test_conversations_of_the_same_instant_are_listed_once_each(
    repository: ConversationRepository, database: Database
) -> None:
    """The id breaks the tie."""
    for i in range(5):
        await conversation_of(repository, str(i))
    await execute(database, "update conversations set updated_at = '2026-01-01'")
    seen: list[str] = []
    cursor = None
    while True:
        page = await repository.list_conversations(LOCAL_OWNER, limit=2, cursor=cursor)
        seen += [conversation.id for conversation in page.conversations]
        cursor = page.next_cursor
        if cursor is None:
            break
    assert len(seen) == len(set(seen)) == 5


async def test_a_foreign_cursor_is_an_argument_to_correct(repository: ConversationRepository) -> None:
    """Cursors come from clients."""
    with pytest.raises(InvalidArgument):
        await repository.list_conversations(LOCAL_OWNER, cursor="x")
    before_time = b64encode(f"0001-01-01T00:00:00+14:00 {new_id()}".encode()).decode()
    with pytest.raises(InvalidArgument):
        await repository.list_conversations(LOCAL_OWNER, cursor=before_time)


async def test_changes_since_a_snapshot_miss_nothing(repository: ConversationRepository, database: Database) -> None:
    """The caches' watermark relies on it: a transaction that commits after the snapshot is a change."""
    slow = await connect(database.address, timeout_s=5)
    try:
        before = await conversation_of(repository, "before")
        open_one = slow.transaction()
        await open_one.start()
        await slow.execute("update conversations set title = 'x' where id = $1::text::uuid", before.id)
        start = await repository.changes(None)
        after = await conversation_of(repository, "after")
        await open_one.commit()
        told = await repository.changes(start.xmin)
        revisions = {change.continuation_id: change.revision for change in told.changed}
        assert revisions[before.continuation_id] == 2
        assert revisions[after.continuation_id] == 1
        later = told
        async with asyncio.timeout(WAIT_LIMIT_S):
            # While an older transaction is open on the server, even of another test, changes are returned again.
            while later.changed:
                later = await repository.changes(later.xmin)
        assert (later.server_epoch, start.changed, told.truncated) == (start.server_epoch, (), False)
    finally:
        await slow.close()


async def test_too_many_changes_are_cut_and_said_to_be(repository: ConversationRepository, database: Database) -> None:
    """The caller then forgets everything instead."""
    start = await repository.changes(None)
    await execute(
        database, f"insert into conversations (title) select 'x' from generate_series(1, {CHANGES_LIMIT + 1})"
    )
    told = await repository.changes(start.xmin)
    assert told.truncated
    assert len(told.changed) == CHANGES_LIMIT


async def test_a_removed_conversation_is_a_change(repository: ConversationRepository, database: Database) -> None:
    """Its row is gone, so a note of the removal is read."""
    conversation = await conversation_of(repository, "x")
    start = await repository.changes(None)
    await execute(database, "delete from conversations")
    told = await repository.changes(start.xmin)
    assert [(change.continuation_id, change.revision) for change in told.changed] == [
        (conversation.continuation_id, None)
    ]


async def test_transaction_numbers_of_another_server_are_no_changes(
    repository: ConversationRepository, database: Database
) -> None:
    """After a dump is restored elsewhere its numbers may lie in the new server's future, for years."""
    await conversation_of(repository, "x")
    start = await repository.changes(None)
    await execute(database, "update conversations set changed_xid = '999999999', revision = revision + 1")
    assert (await repository.changes(start.xmin)).changed == ()


async def execute(database: Database, sql: str) -> None:
    connection = await connect(database.address, timeout_s=5)
    try:
        await connection.execute(sql)
    finally:
        await connection.close()


async def test_owners_do_not_mix_in_lists(repository: ConversationRepository) -> None:
    """One list per owner."""
    await asyncio.gather(*(repository.append(appending(None, "x", owner=Owner(name))) for name in "aabbb"))
    assert len((await repository.list_conversations(Owner("a"))).conversations) == 2
    assert len((await repository.list_conversations(Owner("b"))).conversations) == 3


async def listed(repository: ConversationRepository, **only: Any) -> set[str]:
    """The titles of a filtered list."""
    found = await repository.list_conversations(LOCAL_OWNER, limit=50, only=ListFilter(**only))
    return {each.title or "" for each in found.conversations}


async def test_a_list_is_narrowed_by_tags_metadata_and_a_part_of_the_title(
    repository: ConversationRepository, database: Database
) -> None:
    """Letters in any case and normal form, for any locale of the database."""
    marks: dict[str, dict[str, Any]] = {
        "Über die Brücke": {"tags": ["a", "b"], "metadata": {"project": "x", "deep": {"n": 1}}},
        "ПРИВЕТ [100%] a.b*": {"tags": ["a"], "metadata": {"project": "y"}},
        "数据库 İstanbul": {"tags": [], "metadata": {}},
    }
    names = {}
    for title, mark in marks.items():
        name = names[title] = (await conversation_of(repository, "one")).continuation_id
        request = IdempotencyKey(new_id(), "d", "t", TurnId(new_id()))
        await CurationRepository(database).change(
            ConversationKey(LOCAL_OWNER, name), request, ConversationUpdate(title=title, **mark)
        )
    first, second, third = marks
    assert await listed(repository) == {first, second, third}
    assert await listed(repository, tags=["a"]) == {first, second}
    assert await listed(repository, tags=["b", "a"]) == {first}
    assert await listed(repository, metadata={"project": "y"}) == {second}
    assert await listed(repository, metadata={"deep": {"n": 1}}) == {first}
    assert await listed(repository, tags=["a"], metadata={"project": "x"}, part="über") == {first}
    for part in ("ÜBER", "u\u0308ber", "brücke", "DIE"):
        assert await listed(repository, part=part) == {first}, part
    for part in ("привет", "[100%]", "a.b*", "%] a"):
        assert await listed(repository, part=part) == {second}, part
    assert await listed(repository, part="库 İ") == {third}
    assert await listed(repository, part=names[third][:8]) == {third}
    assert await listed(repository, part=names[third][1:9]) == set()
    for part in (".", "a|b", "^", "x*"):
        assert await listed(repository, part=part) == ({second} if part == "." else set()), part


async def test_deleted_conversations_are_listed_when_they_are_asked_for(
    repository: ConversationRepository, database: Database
) -> None:
    """With the time of their deletion, until they are purged; other owners have none."""
    kept, gone = [(await conversation_of(repository, "one")).continuation_id for _ in range(2)]
    request = IdempotencyKey(new_id(), "d", "t", TurnId(new_id()))
    await CurationRepository(database).mark_deleted(ConversationKey(LOCAL_OWNER, gone), request, deleted=True)
    (only,) = (await repository.list_conversations(LOCAL_OWNER, only=ListFilter(deleted=True))).conversations
    assert only.continuation_id == gone
    assert only.deleted_at is not None
    (only,) = (await repository.list_conversations(LOCAL_OWNER)).conversations
    assert (only.continuation_id, only.deleted_at) == (kept, None)
    assert (await repository.list_conversations(Owner("other"), only=ListFilter(deleted=True))).conversations == ()
