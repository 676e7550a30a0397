"""Postgres and the network to it fail: nothing acknowledged is lost, nothing is written twice, every error is true."""

from __future__ import annotations

import asyncio

import pytest

from exai.conversations import ChatRequest
from exai.conversations.changes import Notice
from exai.conversations.formats import read_lines
from exai.db.lifecycle import ConversationUpdate
from exai.errors import NotFound, OutcomeUnknown
from exai.models import LOCAL_OWNER, ContinuationId
from tests.fault.service import POOL_SIZE, Servers
from tests.support.pg_wire import error
from tests.support.waiting import wait_until

OTHER_NAME = ContinuationId("imported")


async def test_write_in_doubt_stays_in_doubt_when_its_repetition_finds_no_server(rig: Servers) -> None:
    """An append that was carried out before the network failed must never be reported as not written."""
    service = await rig.open()
    name = (await service.append(None, "one")).continuation_id
    lost = service.database.drop_reply_to(b"append_v1")
    lost.add_done_callback(lambda _: setattr(service.database, "mode", "reset"))
    with pytest.raises(OutcomeUnknown):
        await service.append(name, "two", key="key")
    service.database.mode = "pass"
    await wait_until(lambda: service.app.database.usage()[1] > 0)
    again = await service.append(name, "two", key="key")
    assert (again.duplicate, again.first_seq) == (True, 2)
    assert await service.contents(name) == ["one", "two"]


@pytest.mark.parametrize("statement", [b"begin_turn_v1", b"finish_turn_v1", b"append_v1"])
async def test_page_cached_after_a_lost_reply_is_the_stored_one(rig: Servers, statement: bytes) -> None:
    """The repeated statement returns what it stored the first time, including the times."""
    service = await rig.open()
    name = (await service.append(None, "one")).continuation_id
    await service.read(name)
    lost = service.database.drop_reply_to(statement)
    if statement == b"append_v1":
        await service.append(name, "two")
    else:
        await service.app.chat.run(ChatRequest(LOCAL_OWNER, "two", continuation_id=name))
    assert lost.done()
    cached = await service.read(name)
    stored = await service.conversations.read(LOCAL_OWNER, name, before_seq=100)
    assert (cached.source, stored.source) == ("cache", "database")
    assert cached.messages == stored.messages
    assert cached.conversation == stored.conversation


async def test_first_try_of_a_caller_is_no_duplicate_however_often_the_service_sends_it(rig: Servers) -> None:
    """The reply to the service's own statement was lost; the caller asked once."""
    service = await rig.open()
    heard: list[Notice] = []
    service.app.notices.listen(heard.append, lambda: True)
    lost = [service.database.drop_reply_to(b"append_v1")]
    first = await service.append(None, "one", key="one")
    lost.append(service.database.drop_reply_to(b"append_v1"))
    second = await service.append(first.continuation_id, "two", key="two")
    lost.append(service.database.drop_reply_to(b"change_conversation_v1"))
    await service.conversations.change(
        LOCAL_OWNER, first.continuation_id, ConversationUpdate(title="new"), idempotency_key="new"
    )
    lost.append(service.database.drop_reply_to(b"import_v1"))
    text = [part async for part in service.app.transfer.export(LOCAL_OWNER, first.continuation_id)]
    parts = read_lines("".join(text).splitlines(keepends=True))
    imported = [each async for each in service.app.transfer.import_text(LOCAL_OWNER, parts, as_name=OTHER_NAME)]
    assert all(each.done() for each in lost)
    assert [(each.duplicate, each.first_seq) for each in (first, second)] == [(False, 1), (False, 2)]
    assert [(each.seen, each.stored) for each in imported] == [(2, 2)]
    assert [notice.continuation_id for notice in heard] == [first.continuation_id] * 3 + [OTHER_NAME]
    assert (await service.append(None, "one", key="one")).duplicate


async def test_deletion_found_done_by_its_repetition_is_seen_by_every_reader(rig: Servers) -> None:
    """The reply was lost; after the acknowledgement no reader finds the conversation."""
    writer, reader = await rig.open(), await rig.open()
    name = (await writer.append(None, "one")).continuation_id
    assert await reader.contents(name) == ["one"]
    lost = writer.database.drop_reply_to(b"change_conversation_v1")
    await writer.conversations.delete(LOCAL_OWNER, name)
    assert lost.done()
    for service in (reader, writer):
        with pytest.raises(NotFound):
            await service.read(name)


async def test_new_title_found_done_by_its_repetition_is_seen_by_every_reader(rig: Servers) -> None:
    """The same for a change that leaves the messages as they are."""
    writer, reader = await rig.open(), await rig.open()
    name = (await writer.append(None, "one")).continuation_id
    await reader.read(name)
    lost = writer.database.drop_reply_to(b"change_conversation_v1")
    await writer.conversations.change(LOCAL_OWNER, name, ConversationUpdate(title="new"))
    assert lost.done()
    assert [(await service.read(name)).conversation.title for service in (reader, writer)] == ["new", "new"]


async def test_error_that_precedes_the_end_of_a_connection_costs_no_place_in_the_pool(rig: Servers) -> None:
    """A terminated session sends its error before it closes; a statement sent in between is repeated."""
    service = await rig.open()
    name = (await service.append(None, "one")).continuation_id
    for number in range(2 * POOL_SIZE):
        service.database.mode = "stall"
        service.database.inject(error("57P01", "terminating connection due to administrator command"))
        await some_turns_of_the_loop()
        writing = asyncio.create_task(service.append(name, f"{number}", key=f"{number}"))
        await some_turns_of_the_loop()
        service.database.reset()
        service.database.mode = "pass"
        await writing
    await wait_until(lambda: service.app.database.usage() == (0, POOL_SIZE, POOL_SIZE))
    assert await service.contents(name) == ["one", *(f"{number}" for number in range(2 * POOL_SIZE))]


async def some_turns_of_the_loop() -> None:
    """Let the event loop run often enough for data on loopback to arrive."""
    for _ in range(20):
        await asyncio.sleep(0)
