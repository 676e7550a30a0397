"""Export and import: everything is exported in pages, and imported once however often it is sent."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from exai.blobs.base import Blobs
from exai.cache.conversations import open_cache
from exai.conversations.changes import Notices
from exai.conversations.formats import ConversationText, MessageText
from exai.conversations.large import LargeContent
from exai.conversations.publishing import Publisher
from exai.conversations.transfer import Transfer
from exai.db.contents import PostgresBlobs
from exai.db.conversations import ConversationRepository
from exai.db.driver.pool import Database, connect
from exai.db.files import FileRepository
from exai.db.lifecycle import CurationRepository
from exai.db.search import SearchQuery, SearchRepository
from exai.db.transfer import ImportBatch, TransferRepository
from exai.db.turns import TurnRepository
from exai.errors import NotFound
from exai.files.paths import Roots
from exai.files.service import FileService
from exai.models import LOCAL_OWNER, ContinuationId, ConversationId, ConversationKey, NewMessage, TurnId
from exai.settings.load import CacheSettings, FileSettings, LimitSettings
from tests.support.counters import Counters
from tests.support.database import appending, beginning, contents_of, conversation_of, ending, new_id, once

NAME = ContinuationId("imported")
THEN = datetime(2024, 5, 6, 7, 8, 9, 123456, tzinfo=UTC)


@pytest.fixture
def transfer(database: Database) -> TransferRepository:
    return TransferRepository(database)


def batch(first_seq: int, *contents: str, key: str | None = None, request_hash: str = "h") -> ImportBatch:
    return ImportBatch(
        owner=LOCAL_OWNER,
        continuation_id=NAME,
        new_conversation_id=ConversationId(new_id()),
        turn_id=TurnId(new_id()),
        request_key=key or new_id(),
        request_hash=request_hash,
        first_seq=first_seq,
        messages=[NewMessage("user", content, metadata={"n": content}) for content in contents],
        times=[THEN + timedelta(hours=first_seq + i) for i in range(len(contents))],
        title="Title",
        metadata={"from": "elsewhere"},
        tags=("old",),
        created_at=THEN,
        updated_at=THEN,
    )


async def test_an_import_keeps_times_and_header(
    repository: ConversationRepository, transfer: TransferRepository
) -> None:
    """It is a copy, not a new conversation with the same content."""
    stored = await transfer.store_batch(batch(1, "a", "b"))
    assert (stored.status, stored.commit.base_revision, stored.commit.revision) == ("stored", 0, 1)
    page = await repository.read_page(ConversationKey(LOCAL_OWNER, NAME))
    assert [(m.content, m.created_at, m.metadata) for m in page.messages] == [
        ("a", THEN + timedelta(hours=1), {"n": "a"}),
        ("b", THEN + timedelta(hours=2), {"n": "b"}),
    ]
    header = page.conversation
    assert (header.title, header.metadata, header.tags) == ("Title", {"from": "elsewhere"}, ("old",))
    assert (header.created_at, header.updated_at) == (THEN, THEN)


async def now(database: Database) -> datetime:
    """The database's clock."""
    connection = await connect(database.address, timeout_s=5)
    try:
        at: datetime = await connection.fetchval("select clock_timestamp()")
        return at
    finally:
        await connection.close()


@pytest.mark.parametrize("late", [datetime(9999, 12, 31, 23, tzinfo=UTC), datetime.now(UTC) + timedelta(days=1)])
async def test_a_future_time_of_an_import_is_kept_as_data(
    repository: ConversationRepository,
    turns: TurnRepository,
    transfer: TransferRepository,
    database: Database,
    late: datetime,
) -> None:
    """Messages stored afterwards have the time at which they were stored."""
    first = replace(batch(1, "a"), updated_at=late, times=[late])
    assert (await transfer.store_batch(first)).status == "stored"
    listed = (await repository.list_conversations(LOCAL_OWNER)).conversations[0]
    assert listed.updated_at <= await now(database)
    assert datetime.fromisoformat(listed.metadata["imported"]["updated_at"]) == late
    before = await now(database)
    await repository.append(appending(NAME, "b"))
    begun = await turns.begin(beginning(NAME, "c"))
    await turns.finish(ending(begun.turn_id, "d"))
    after = await now(database)
    messages = (await repository.read_page(ConversationKey(LOCAL_OWNER, NAME))).messages
    assert messages[0].created_at == late
    times = [message.created_at for message in messages[1:]]
    assert times == sorted(times)
    assert before <= times[0]
    assert times[-1] <= after
    found = await SearchRepository(database).search(SearchQuery(LOCAL_OWNER, "b", until=after), limit=10)
    assert [hit.seq for hit in found.hits] == [2]
    other = await conversation_of(repository, "later")
    assert (await repository.list_conversations(LOCAL_OWNER)).conversations[0].id == other.id


async def test_leases_and_deletions_go_by_the_clock_too(
    repository: ConversationRepository, turns: TurnRepository, transfer: TransferRepository, database: Database
) -> None:
    """A lease that ends tomorrow would keep a broken turn from being taken up again."""
    late = await now(database) + timedelta(days=1)
    await transfer.store_batch(replace(batch(1, "a"), updated_at=late, times=[late]))
    await turns.begin(beginning(NAME, "q", key="turn"))
    _, lease_left_s = await turns.state(LOCAL_OWNER, "turn")
    assert lease_left_s <= 60
    await CurationRepository(database).mark_deleted(ConversationKey(LOCAL_OWNER, NAME), once(), deleted=True)
    assert await CurationRepository(database).purge(after_s=-1) == 1


async def test_batches_follow_each_other_and_may_come_again(
    repository: ConversationRepository, transfer: TransferRepository
) -> None:
    """An import that was broken off is simply run again from the start."""
    batches = [batch(1, "a", "b", key="k1"), batch(3, "c", key="k2"), batch(4, "d", "e", key="k3")]
    assert (await transfer.store_batch(batches[1])).status == "gap"
    assert [(await transfer.store_batch(each)).status for each in batches[:2]] == ["stored", "stored"]
    repeated = [replace(each, turn_id=TurnId(new_id())) for each in batches]
    statuses = [(await transfer.store_batch(each)).status for each in repeated]
    assert statuses == ["duplicate", "duplicate", "stored"]
    assert await contents_of(repository, NAME) == ["a", "b", "c", "d", "e"]
    gap = await transfer.store_batch(batch(9, "x"))
    assert gap.status == "gap"
    assert gap.commit is None
    assert (await repository.read_page(ConversationKey(LOCAL_OWNER, NAME))).conversation.last_seq == 5


async def test_an_import_into_something_else_is_refused(
    repository: ConversationRepository, transfer: TransferRepository
) -> None:
    """A name that is taken, or a key that was used for other content."""
    await transfer.store_batch(batch(1, "a", key="k1"))
    assert (await transfer.store_batch(batch(1, "other"))).status == "exists"
    assert (await transfer.store_batch(batch(1, "other", key="k1", request_hash="x"))).status == "conflict_key"
    assert await contents_of(repository, NAME) == ["a"]
    assert (await repository.append(appending(NAME, "b"))).first_seq == 2


async def test_an_empty_conversation_can_be_imported_and_exported(transfer: TransferRepository) -> None:
    """It exists, even without words."""
    assert (await transfer.store_batch(batch(1))).status == "stored"
    pages = [page async for page in transfer.export(ConversationKey(LOCAL_OWNER, NAME))]
    assert [page.messages for page in pages] == [()]


async def test_an_export_is_as_it_was_when_it_began(
    repository: ConversationRepository, transfer: TransferRepository
) -> None:
    """Messages appended meanwhile belong to the next export."""
    name = (await conversation_of(repository, *(str(i) for i in range(1000)))).continuation_id
    seen: list[str] = []
    async for page in transfer.export(ConversationKey(LOCAL_OWNER, name)):
        await repository.append(appending(name, "later"))
        seen += [message.content for message in page.messages]
    assert seen == [str(i) for i in range(1000)]


async def test_a_page_of_an_export_is_bounded_in_bytes(
    repository: ConversationRepository, transfer: TransferRepository
) -> None:
    """But holds one message at least, or it would never end."""
    name = (await conversation_of(repository, *["x" * 1000] * 5)).continuation_id
    page = await transfer.read_forward(ConversationKey(LOCAL_OWNER, name), budget_bytes=2500)
    assert len(page.messages) == 2
    page = await transfer.read_forward(ConversationKey(LOCAL_OWNER, name), after_seq=2, budget_bytes=10)
    assert [message.seq for message in page.messages] == [3]


async def test_nothing_to_export_is_not_found(transfer: TransferRepository) -> None:
    """A typed error with the name."""
    with pytest.raises(NotFound, match="nobody"):
        await transfer.read_forward(ConversationKey(LOCAL_OWNER, ContinuationId("nobody")))


async def test_an_import_goes_in_batches_that_an_append_may_have(
    repository: ConversationRepository, transfer: TransferRepository, database: Database
) -> None:
    """The importing client cannot make the text shorter, for any configured limits."""
    limits = LimitSettings(append_messages=2, append_bytes=1_024)
    sizes = [1_000, 100, 900, 1, 1, 1]
    parts = [MessageText(seq, NewMessage("user", "x" * size), None, f"line {seq}") for seq, size in enumerate(sizes, 1)]
    text = [ConversationText(NAME), *parts]
    async with open_cache(CacheSettings(), None, recorder=Counters(), changes=repository.changes) as cache:  # type: ignore[arg-type]
        blobs = Blobs(PostgresBlobs(database))
        files = FileService(FileRepository(database), blobs, FileSettings(), limits=limits, roots=Roots([]))
        service = Transfer(transfer, Publisher(cache, Notices()), limits, files, LargeContent(files, limits))
        assert [each.seen async for each in service.import_text(LOCAL_OWNER, text)] == [1, 3, 5, 6]
    stored = (await repository.read_page(ConversationKey(LOCAL_OWNER, NAME))).messages
    assert [len(each.content) for each in stored] == sizes
