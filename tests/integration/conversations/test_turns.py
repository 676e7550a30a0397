"""Failed and repeated turns: the outcome is always stored, and only once."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from exai.app import App, open_app
from exai.conversations import AppendRequest, ChatRequest
from exai.db.driver.pool import RETRIES, connect
from exai.db.search import SearchQuery
from exai.errors import AnswerNotStored, Conflict, DeadlineExceeded, InvalidArgument, NotFound, ProviderAuthFailed
from exai.models import LOCAL_OWNER, Commit, ContinuationId, NewMessage, Owner
from exai.resilience import with_deadline
from exai.settings.load import CacheSettings
from tests.integration.conversations.conftest import Rig, open_rig
from tests.support.provider_server import chunk, event, failure, hang_after_first_token, kimi_answer, stream
from tests.support.waiting import wait_until


@pytest.fixture
async def rig(postgres_url: str, redis_url: str, tmp_path: Path) -> AsyncIterator[Rig]:
    """Directly on the database: these tests are about outcomes, not about the way."""
    async with open_rig(postgres_url, redis_url, tmp_path) as opened:
        yield opened


@pytest.fixture
async def quiet(rig: Rig) -> AsyncIterator[App]:
    """Another daemon on the same database whose changes are not applied to Redis."""
    async with open_app(rig.app.settings.model_copy(update={"cache": CacheSettings(url="off")})) as app:
        yield app


async def test_same_key_twice_at_once_is_one_turn_and_one_model_call(rig: Rig) -> None:
    """A client that lost its reply repeats the call while the first is still running; both get the one answer."""
    rig.provider.script(stream("gate", chunk({"content": "once"}, finish="stop"), event("[DONE]")))
    request = ChatRequest(LOCAL_OWNER, "Hello", idempotency_key="the key")
    first = asyncio.create_task(rig.app.chat.run(request))
    await rig.provider.arrived(1)
    second = asyncio.create_task(rig.app.chat.run(request))
    await asyncio.sleep(0)
    rig.provider.gate.set()
    answers = await asyncio.gather(first, second)
    assert [answer.content for answer in answers] == ["once", "once"]
    assert [answer.duplicate for answer in answers] == [False, True]
    assert answers[0].continuation_id == answers[1].continuation_id
    assert len(rig.provider.chats) == 1


async def test_same_key_with_other_content_is_a_conflict(rig: Rig) -> None:
    """A key stands for one content; the second one must not silently get the first one's answer."""
    await rig.app.chat.run(ChatRequest(LOCAL_OWNER, "One", idempotency_key="key"))
    with pytest.raises(Conflict) as caught:
        await rig.app.chat.run(ChatRequest(LOCAL_OWNER, "Two", idempotency_key="key"))
    assert caught.value.reason == "key_reused"


async def test_conversation_is_listed_by_how_its_first_question_begins(rig: Rig) -> None:
    """So that a person finds it again; a title that was given stays, and a key repeated later still is the same."""
    service = rig.app.conversations
    asked = ChatRequest(LOCAL_OWNER, "\n  What is\ttwo?\nAnd three?", idempotency_key="k")
    first = await rig.app.chat.run(asked)
    await rig.app.chat.run(ChatRequest(LOCAL_OWNER, "Four?", continuation_id=first.continuation_id))
    await rig.app.chat.run(ChatRequest(LOCAL_OWNER, "Five?", title="Numbers"))
    assert (await rig.app.chat.run(asked)).duplicate
    listed = (await service.list(LOCAL_OWNER)).conversations
    assert [each.title for each in listed] == ["Numbers", "What is two?"]
    found = await service.search(SearchQuery(LOCAL_OWNER, "two"))
    assert {hit.continuation_id for hit in found.hits} == {first.continuation_id}
    assert 0 not in {hit.seq for hit in found.hits}


async def test_cancelled_turn_is_stored_with_the_received_part(rig: Rig) -> None:
    """A caller's cancellation ends the provider's call; the question, the part and the cause stay."""
    rig.provider.script(hang_after_first_token("Half"))
    continuation_id = await _conversation(rig)
    heard = asyncio.Event()

    async def on_delta(_: object) -> None:
        heard.set()

    request = ChatRequest(LOCAL_OWNER, "Go on", continuation_id=continuation_id)
    task = asyncio.create_task(rig.app.chat.run(request, on_delta))
    await heard.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    async with asyncio.timeout(5):
        await rig.provider.chats[0].gone.wait()
    page = await rig.app.conversations.read(LOCAL_OWNER, continuation_id)
    assert [(m.role, m.content, m.kind) for m in page.messages[1:]] == [
        ("user", "Go on", "message"),
        ("assistant", "Half", "partial"),
    ]


async def test_turn_cancelled_while_its_question_is_being_stored_does_not_stay_pending(rig: Rig) -> None:
    """The statement may have committed before the cancellation; the key must not stay blocked for a minute."""
    rig.reset()
    rig.database.stall()
    request = ChatRequest(LOCAL_OWNER, "Hello", idempotency_key="key")
    task = asyncio.create_task(rig.app.chat.run(request))
    await wait_until(lambda: any("begin_turn_v1" in text for text in rig.database.statements))
    task.cancel()
    await asyncio.sleep(0)
    rig.database.open.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    answer = await rig.app.chat.run(request)
    assert answer.duplicate is False
    assert len(rig.provider.chats) == 1


async def test_turn_cancelled_twice_while_its_question_is_being_stored_does_not_stay_pending(rig: Rig) -> None:
    """A deadline and a closed connection may both cancel the call; the second one must not lose the outcome either."""
    rig.reset()
    rig.database.stall()
    request = ChatRequest(LOCAL_OWNER, "Hello", idempotency_key="key")
    task = asyncio.create_task(rig.app.chat.run(request))
    await wait_until(lambda: any("begin_turn_v1" in text for text in rig.database.statements))
    for _ in range(2):
        task.cancel()
        await asyncio.sleep(0)
    rig.database.open.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    async with asyncio.timeout(5):
        answer = await rig.app.chat.run(request)
    assert answer.duplicate is False
    assert len(rig.provider.chats) == 1


async def test_repeated_turn_is_acknowledged_only_when_the_cache_has_heard_of_it(rig: Rig, quiet: App) -> None:
    """The daemon that answered first may have died between its commit and telling the cache."""
    continuation_id = await _conversation(rig)
    await rig.app.conversations.read(LOCAL_OWNER, continuation_id)
    request = ChatRequest(LOCAL_OWNER, "Go on", continuation_id=continuation_id, idempotency_key="key")
    first = await quiet.chat.run(request)
    again = await rig.app.chat.run(request)
    assert (again.duplicate, again.seq) == (True, first.seq)
    page = await rig.app.conversations.read(LOCAL_OWNER, continuation_id)
    assert page.messages[-1].seq == first.seq


async def test_repeated_turn_gives_its_lease_back(rig: Rig) -> None:
    """The next reader does not wait for a lease that is not used."""
    continuation_id = await _conversation(rig)
    request = ChatRequest(LOCAL_OWNER, "Go on", continuation_id=continuation_id, idempotency_key="key")
    await rig.app.chat.run(request)
    conversation = (await rig.app.conversations.read(LOCAL_OWNER, continuation_id)).conversation
    await rig.app.cache.apply(Commit(conversation, base_revision=99, revision=99, server_epoch="none"))
    await rig.app.chat.run(request)
    rig.reset()
    await rig.app.conversations.read(LOCAL_OWNER, continuation_id)
    await rig.app.cache.wait_settled()
    assert rig.cost() == (1, 2)


async def test_failed_turn_is_reported_after_its_question_is_applied_to_the_cache(rig: Rig) -> None:
    """The question is visible through every daemon when the error is received."""
    rig.provider.script(failure(401))
    rig.cache.mode = "stall_down"
    told = rig.app.recorder.value("cache_applies_total")
    with pytest.raises(ProviderAuthFailed):
        await rig.app.chat.run(ChatRequest(LOCAL_OWNER, "Hello"))
    # Of the question, and of the message that says why no answer follows it.
    assert rig.app.recorder.value("cache_applies_total") == told + 2


async def test_answer_waits_for_a_database_that_is_away_for_a_moment(rig: Rig) -> None:
    """A restart of Postgres takes longer than the pause between two attempts, and the answer has been paid for."""
    rig.provider.script(stream("gate", chunk({"content": "paid for"}, finish="stop"), event("[DONE]")))
    task = asyncio.create_task(rig.app.chat.run(ChatRequest(LOCAL_OWNER, "Hello")))
    await rig.provider.arrived(1)
    rig.database.refuse()
    rig.provider.gate.set()
    await wait_until(lambda: rig.app.recorder.value("db_errors_total", statement="finish_turn") > RETRIES)
    rig.database.serve()
    answer = await task
    page = await rig.app.conversations.read(LOCAL_OWNER, answer.continuation_id)
    assert [message.content for message in page.messages] == ["Hello", "paid for"]


async def test_deadline_ends_the_wait_and_leaves_time_to_write_the_outcome(rig: Rig) -> None:
    """A provider that hangs costs the caller its deadline and nothing more."""
    rig.provider.script(hang_after_first_token("Half"), kimi_answer("whole"))
    request = ChatRequest(LOCAL_OWNER, "Hello", idempotency_key="key")
    with with_deadline(3.0), pytest.raises(DeadlineExceeded):
        await rig.app.chat.run(request)
    again = await rig.app.chat.run(request)
    page = await rig.app.conversations.read(LOCAL_OWNER, again.continuation_id)
    assert [(m.role, m.kind) for m in page.messages] == [
        ("user", "message"),
        ("assistant", "partial"),
        ("assistant", "message"),
    ]


async def test_lost_reply_of_the_database_is_found_by_repeating(rig: Rig) -> None:
    """An append whose acknowledgement was lost is repeated with its key and found done."""
    rig.database.lose_reply_to("append_v1")
    appended = await rig.app.conversations.append(AppendRequest(LOCAL_OWNER, [NewMessage("user", "once")]))
    page = await rig.app.conversations.read(LOCAL_OWNER, appended.continuation_id)
    assert [message.content for message in page.messages] == ["once"]


async def test_answer_that_cannot_be_stored_is_handed_over_with_the_error(rig: Rig) -> None:
    """A paid answer is returned although the database refuses it, as after a change of its schema."""
    rig.provider.script(stream("gate", chunk({"content": "paid for"}, finish="stop"), event("[DONE]")))
    task = asyncio.create_task(rig.app.chat.run(ChatRequest(LOCAL_OWNER, "Hello")))
    await rig.provider.arrived(1)
    connection = await connect(rig.app.database.address, timeout_s=5)
    await connection.execute("alter function exai.finish_turn_v1 rename to finish_turn_gone")
    await connection.close()
    rig.provider.gate.set()
    with pytest.raises(AnswerNotStored) as caught:
        await task
    assert caught.value.details()["content"] == "paid for"


async def test_system_prompt_stays_in_force_for_later_turns(rig: Rig) -> None:
    """It is stored with the first question and leads every later prompt."""
    first = await rig.app.chat.run(ChatRequest(LOCAL_OWNER, "Hi", system="Answer in French."))
    await rig.app.chat.run(ChatRequest(LOCAL_OWNER, "Bye", continuation_id=first.continuation_id))
    roles = [part["role"] for part in rig.provider.chats[-1].body["messages"]]
    assert roles == ["system", "user", "assistant", "user"]


@pytest.mark.parametrize("owner", [Owner("somebody else"), LOCAL_OWNER])
async def test_unknown_conversation_and_those_of_others_are_not_found(rig: Rig, owner: Owner) -> None:
    """Other owners' conversations do not exist, warm or cold."""
    continuation_id = await _conversation(rig)
    await rig.app.conversations.read(LOCAL_OWNER, continuation_id)
    asked = continuation_id if owner != LOCAL_OWNER else ContinuationId("never-made")
    with pytest.raises(NotFound):
        await rig.app.conversations.read(owner, asked)
    with pytest.raises(NotFound):
        await rig.app.chat.run(ChatRequest(owner, "Hi", continuation_id=asked))
    with pytest.raises(NotFound):
        await rig.app.conversations.append(AppendRequest(owner, [NewMessage("user", "x")], asked))
    assert rig.provider.chats == []


async def test_request_whose_first_attempt_is_still_running_names_its_conversation(rig: Rig) -> None:
    """The caller of a new conversation may not know it yet."""
    rig.provider.script(stream("gate", chunk({"content": "once"}, finish="stop"), event("[DONE]")))
    request = ChatRequest(LOCAL_OWNER, "Hello", idempotency_key="k")
    first = asyncio.create_task(rig.app.chat.run(request))
    await asyncio.wait_for(rig.provider.arrived(1), 5)
    with pytest.raises(Conflict, match="still running") as refused, with_deadline(2):
        await rig.app.chat.run(request)
    rig.provider.gate.set()
    assert refused.value.report()["continuation_id"] == (await first).continuation_id


async def test_expected_revision_lets_one_of_two_writers_win(rig: Rig) -> None:
    """The other writer receives the conflict."""
    continuation_id = await _conversation(rig)
    revision = (await rig.app.conversations.read(LOCAL_OWNER, continuation_id)).conversation.revision

    async def write(text: str) -> object:
        request = AppendRequest(LOCAL_OWNER, [NewMessage("user", text)], continuation_id, expected_revision=revision)
        try:
            return await rig.app.conversations.append(request)
        except Conflict as error:
            assert f"conversation {continuation_id!r} has moved on to revision {revision + 1}." in str(error)
            assert error.report()["continuation_id"] == continuation_id
            return error.reason

    outcomes = await asyncio.gather(*(write(f"writer {n}") for n in range(8)))
    assert outcomes.count("revision") == 7
    with pytest.raises(Conflict, match=continuation_id):
        await rig.app.chat.run(
            ChatRequest(LOCAL_OWNER, "Hi", continuation_id=continuation_id, expected_revision=revision)
        )
    assert rig.provider.chats == []


async def test_question_that_no_model_could_read_stores_nothing(rig: Rig) -> None:
    """The request is refused before the first statement."""
    rig.reset()
    with pytest.raises(InvalidArgument):
        await rig.app.chat.run(ChatRequest(LOCAL_OWNER, "7" * 4_000_000))
    with pytest.raises(InvalidArgument):
        await rig.app.chat.run(ChatRequest(LOCAL_OWNER, "Hi", model="no-such-model"))
    assert rig.cost() == (0, 0)


async def _conversation(rig: Rig) -> ContinuationId:
    new = AppendRequest(LOCAL_OWNER, [NewMessage("user", "Before")])
    return (await rig.app.conversations.append(new)).continuation_id
