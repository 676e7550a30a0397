"""The cost of a call, counted on the wire: the promised round trips."""

from __future__ import annotations

import asyncio

from exai.conversations import AppendRequest, ChatRequest
from exai.models import LOCAL_OWNER, ContinuationId, NewMessage
from tests.integration.conversations.conftest import Rig


async def stored(rig: Rig, messages: int = 2) -> ContinuationId:
    """Append a new conversation; returns its id."""
    new = [NewMessage("user" if number % 2 == 0 else "assistant", f"message {number}") for number in range(messages)]
    return (await rig.app.conversations.append(AppendRequest(LOCAL_OWNER, new))).continuation_id


async def test_miss_costs_one_database_round_trip_and_a_hit_none(rig: Rig) -> None:
    """A cache hit is 0 database and 1 Redis round trip, a miss 1 and 2."""
    continuation_id = await stored(rig, 60)
    rig.reset()
    missed = await rig.app.conversations.read(LOCAL_OWNER, continuation_id)
    await rig.app.cache.wait_settled()
    assert (missed.source, rig.cost()) == ("database", (1, 2))

    rig.reset()
    hit = await rig.app.conversations.read(LOCAL_OWNER, continuation_id)
    assert (hit.source, rig.cost()) == ("cache", (0, 1))
    assert hit.messages == missed.messages
    assert hit.conversation == missed.conversation
    assert [message.seq for message in hit.messages] == list(range(11, 61))
    assert hit.next_before_seq == 11


async def test_whole_conversation_is_a_hit_if_it_is_no_longer_than_the_cached_page(rig: Rig) -> None:
    """A caller may ask for more than the newest page, as adapters do for whole sessions."""
    short, long = await stored(rig, 50), await stored(rig, 60)
    for continuation_id, number in ((short, 50), (long, 60)):
        await rig.app.cache.wait_settled()
        rig.reset()
        missed = await rig.app.conversations.read(LOCAL_OWNER, continuation_id, limit=500)
        await rig.app.cache.wait_settled()
        assert (missed.source, rig.cost(), len(missed.messages)) == ("database", (1, 2), number)

    rig.reset()
    hit = await rig.app.conversations.read(LOCAL_OWNER, short, limit=500, whole=True)
    assert (hit.source, rig.cost()) == ("cache", (0, 1))
    assert [message.seq for message in hit.messages] == list(range(1, 51))
    assert hit.next_before_seq is None

    rig.reset()
    longer = await rig.app.conversations.read(LOCAL_OWNER, long, limit=500)
    assert (longer.source, rig.cost(), len(longer.messages)) == ("database", (1, 1), 60)
    newest = await rig.app.conversations.read(LOCAL_OWNER, long)
    assert (newest.source, [message.seq for message in newest.messages]) == ("cache", list(range(11, 61)))


async def test_reads_of_all_lengths_share_what_is_equal(rig: Rig) -> None:
    """Readers of the newest page and of everything, at once and cold: each receives what it asked for."""
    continuation_id = await stored(rig, 60)
    limits = (5, 500, 50, 60, 55, 500, 1)
    pages = await asyncio.gather(
        *(rig.app.conversations.read(LOCAL_OWNER, continuation_id, limit=limit) for limit in limits)
    )
    assert [[message.seq for message in page.messages] for page in pages] == [
        list(range(max(1, 61 - limit), 61)) for limit in limits
    ]
    assert [page.next_before_seq for page in pages] == [56, None, 11, None, 6, None, 60]


async def test_older_page_and_list_cost_one_database_round_trip_each(rig: Rig) -> None:
    """One page of anything that is not cached is one statement."""
    continuation_id = await stored(rig, 60)
    rig.reset()
    page = await rig.app.conversations.read(LOCAL_OWNER, continuation_id, before_seq=11)
    assert rig.cost() == (1, 0)
    assert [message.seq for message in page.messages] == list(range(1, 11))
    assert page.next_before_seq is None

    rig.reset()
    listed = await rig.app.conversations.list(LOCAL_OWNER)
    assert rig.cost() == (1, 0)
    assert [each.continuation_id for each in listed.conversations] == [continuation_id]


async def test_append_of_a_thousand_messages_costs_one_database_round_trip(rig: Rig) -> None:
    """Any number of messages is one statement; the apply is one more round trip to Redis."""
    continuation_id = await stored(rig)
    rig.reset()
    appended = await rig.app.conversations.append(
        AppendRequest(LOCAL_OWNER, [NewMessage("user", f"{n}") for n in range(1_000)], continuation_id)
    )
    assert rig.cost() == (1, 1)
    assert (appended.first_seq, appended.last_seq) == (3, 1_002)


async def test_chat_turn_costs_two_database_round_trips_warm_and_cold(rig: Rig) -> None:
    """Begin and finish, for a conversation of any length; one read and two applies in Redis."""
    continuation_id = await stored(rig, 60)
    for _ in ("cold", "warm"):
        rig.reset()
        await rig.app.chat.run(ChatRequest(LOCAL_OWNER, "And now?", continuation_id=continuation_id))
        assert rig.cost() == (2, 3)
    asked = rig.provider.chats[-1].body["messages"]
    assert len(asked) == 63
    assert asked[0]["content"] == "message 0"
    assert asked[-1]["content"] == "And now?"


async def test_first_chat_of_a_conversation_costs_two_database_round_trips(rig: Rig) -> None:
    """Creating the conversation is part of the first statement."""
    rig.reset()
    await rig.app.chat.run(ChatRequest(LOCAL_OWNER, "Hello"))
    assert rig.database.round_trips == 2


async def test_conversation_read_after_a_turn_is_a_hit_with_the_answer_in_it(rig: Rig) -> None:
    """Both messages of the turn are applied to the cache, so the next read needs no database."""
    continuation_id = await stored(rig)
    await rig.app.conversations.read(LOCAL_OWNER, continuation_id)
    result = await rig.app.chat.run(ChatRequest(LOCAL_OWNER, "Hi", continuation_id=continuation_id))
    rig.reset()
    page = await rig.app.conversations.read(LOCAL_OWNER, continuation_id)
    assert (page.source, rig.cost()) == ("cache", (0, 1))
    assert [(message.seq, message.role) for message in page.messages[-2:]] == [(3, "user"), (4, "assistant")]
    assert page.messages[-1].content == result.content
    assert page.conversation.revision == result.revision
