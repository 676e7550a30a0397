"""Chat turns: two statements, resumed after a failure, answered again after a success."""

from __future__ import annotations

import asyncio
from decimal import Decimal

import pytest

from exai.db.conversations import ConversationRepository
from exai.db.records import CachedRange
from exai.db.turns import TurnRepository
from exai.models import LOCAL_OWNER, ConversationKey, Message, NewMessage, Usage
from tests.support.database import appending, beginning, contents_of, conversation_of, ending, new_id


def contents(messages: tuple[Message, ...]) -> list[str]:
    return [message.content for message in messages]


async def test_a_turn_stores_question_and_answer(repository: ConversationRepository, turns: TurnRepository) -> None:
    """Promise 3: begin and finish, and the history comes with the first."""
    name = (await conversation_of(repository, "one", "two")).continuation_id
    begun = await turns.begin(beginning(name, "question"))
    assert (begun.status, begun.attempt, begun.full) == ("started", 1, True)
    assert contents(begun.history) == ["one", "two"]
    assert contents(begun.commit.added) == ["question"]
    assert (begun.first_seq, begun.last_seq, begun.commit.base_revision, begun.commit.revision) == (3, 3, 1, 2)
    finished = await turns.finish(ending(begun.turn_id, "answer"))
    assert (finished.status, finished.seq, finished.commit.base_revision, finished.commit.revision) == (
        "finished",
        4,
        2,
        3,
    )
    page = await repository.read_page(ConversationKey(LOCAL_OWNER, name))
    assert page.messages[2:] == (*begun.commit.added, *finished.commit.added)
    assert page.conversation == finished.commit.conversation
    assert page.messages[3].turn_id == begun.turn_id


async def test_a_turn_without_a_name_makes_a_conversation(
    repository: ConversationRepository, turns: TurnRepository
) -> None:
    """System message and question are one block."""
    messages = [NewMessage("system", "rules"), NewMessage("user", "question")]
    begun = await turns.begin(beginning(None, messages=messages))
    assert (begun.status, begun.commit.base_revision, begun.commit.revision, begun.first_seq, begun.last_seq) == (
        "started",
        0,
        1,
        1,
        2,
    )
    assert (begun.history, begun.system) == ((), None)
    assert begun.commit is not None


async def test_a_finished_key_returns_the_reply(repository: ConversationRepository, turns: TurnRepository) -> None:
    """Promise 6: no second model call; usage, cost and metadata come back exactly."""
    key = new_id()
    begun = await turns.begin(beginning(None, "question", key=key))
    usage = Usage(input_tokens=10, output_tokens=7, cached_tokens=3, reasoning_tokens=2)
    end = ending(begun.turn_id, "answer", usage=usage, cost_usd=Decimal("0.001234"), metadata={"finish_reason": "stop"})
    finished = await turns.finish(end)
    again = await turns.begin(beginning(None, "question", key=key))
    assert again.status == "finished"
    assert again.reply is not None
    assert (again.reply.content, again.reply.seq) == ("answer", finished.seq)
    assert (again.reply.usage, again.reply.cost_usd) == (usage, Decimal("0.001234"))
    assert (again.reply.provider, again.reply.model) == ("kimi", "model")
    assert again.reply.metadata == {"finish_reason": "stop"}
    assert again.commit is not None
    assert len(await contents_of(repository, again.commit.conversation.continuation_id)) == 2


async def test_a_repeated_outcome_has_the_current_conversation(
    repository: ConversationRepository,
    turns: TurnRepository,
) -> None:
    """A cache must not assign the current title and length to the revision of the outcome."""
    begun = await turns.begin(beginning(None, "question"))
    end = ending(begun.turn_id, "answer")
    first = await turns.finish(end)
    assert first.commit is not None
    later = await repository.append(appending(first.commit.conversation.continuation_id, "later"))
    again = await turns.finish(end)
    assert again.commit is not None
    assert (again.status, again.commit.base_revision, again.commit.revision) == (
        "duplicate",
        first.commit.base_revision,
        first.commit.revision,
    )
    assert (again.commit.conversation.last_seq, again.commit.conversation.revision) == (3, later.commit.revision)


async def test_a_running_key_is_pending_for_other_claimants(
    repository: ConversationRepository, turns: TurnRepository
) -> None:
    """The lease names the claimant."""
    key = new_id()
    begun = await turns.begin(beginning(None, "question", key=key))
    other = await turns.begin(beginning(None, "question", key=key))
    assert (other.status, other.turn_id, other.commit.added) == ("pending", begun.turn_id, ())
    assert other.lease_left_s is not None
    assert 0 < other.lease_left_s <= 60


async def test_concurrent_duplicates_start_one_turn(repository: ConversationRepository, turns: TurnRepository) -> None:
    """One call of the model for any number of requests."""
    name = (await conversation_of(repository, "one")).continuation_id
    for target in (None, name):
        key = new_id()
        results = await asyncio.gather(*(turns.begin(beginning(target, "q", key=key)) for _ in range(4)))
        assert sorted(result.status for result in results) == ["pending", "pending", "pending", "started"]


async def test_a_failed_turn_is_resumed_without_storing_the_question_again(
    repository: ConversationRepository, turns: TurnRepository
) -> None:
    """The history is that at the time of the question, without the partial answer after it."""
    name = (await conversation_of(repository, "one")).continuation_id
    key = new_id()
    begun = await turns.begin(beginning(name, "question", key=key))
    partial = [NewMessage("assistant", "half an ans", kind="partial")]
    failed = await turns.finish(
        ending(begun.turn_id, state="failed", messages=partial, error={"code": "provider_broken"})
    )
    assert (failed.status, failed.seq) == ("finished", 3)
    again = await turns.begin(beginning(name, "question", key=key, known=CachedRange(2, 1, 2, 10)))
    assert (again.status, again.attempt, again.full) == ("resumed", 2, True)
    assert again.error == {"code": "provider_broken"}
    assert contents(again.history) == ["one"]
    assert contents(again.commit.added) == ["question"]
    assert again.commit.base_revision == again.commit.revision == failed.commit.revision
    finished = await turns.finish(ending(again.turn_id, "answer", attempt=2))
    assert finished.status == "finished"
    assert await contents_of(repository, name) == ["one", "question", "half an ans", "answer"]


async def test_a_failure_without_text_leaves_the_revision(
    repository: ConversationRepository, turns: TurnRepository
) -> None:
    """Nothing a reader sees has changed."""
    begun = await turns.begin(beginning(None, "question"))
    failed = await turns.finish(ending(begun.turn_id, state="failed", error={"code": "x"}))
    assert (failed.status, failed.seq, failed.commit.added) == ("finished", None, ())
    assert failed.commit.base_revision == failed.commit.revision == begun.commit.revision


async def test_an_attempt_whose_lease_ran_out_is_superseded(
    repository: ConversationRepository, turns: TurnRepository
) -> None:
    """Its daemon is thought dead; if it is not, its answer comes too late and is not stored."""
    key = new_id()
    begun = await turns.begin(beginning(None, "question", key=key, lease_s=0.0))
    taken_over = await turns.begin(beginning(None, "question", key=key))
    assert (taken_over.status, taken_over.attempt, taken_over.turn_id) == ("resumed", 2, begun.turn_id)
    late = await turns.finish(ending(begun.turn_id, "late", attempt=1))
    assert (late.status, late.seq, late.commit) == ("superseded", None, None)
    assert (await turns.finish(ending(begun.turn_id, "answer", attempt=2))).status == "finished"
    assert (await turns.finish(ending(begun.turn_id, "late", attempt=1))).status == "superseded"


async def test_a_lease_that_is_renewed_is_not_taken_over(
    repository: ConversationRepository, turns: TurnRepository
) -> None:
    """And only turns that still run are renewed."""
    key = new_id()
    begun = await turns.begin(beginning(None, "question", key=key, lease_s=0.0))
    done = await turns.begin(beginning(None, "question"))
    await turns.finish(ending(done.turn_id, "answer"))
    renewed = await turns.renew_leases([begun.turn_id, done.turn_id], lease_s=60)
    assert renewed == {begun.turn_id}
    assert (await turns.begin(beginning(None, "question", key=key))).status == "pending"


async def test_a_failed_turn_asked_again_by_the_same_request_is_a_new_attempt(
    repository: ConversationRepository,
    turns: TurnRepository,
) -> None:
    """Only a pending turn of the same claimant is the repeat of a lost reply."""
    start = beginning(None, "question")
    begun = await turns.begin(start)
    await turns.finish(ending(begun.turn_id, state="failed"))
    again = await turns.begin(start)
    assert (again.status, again.attempt) == ("resumed", 2)


async def test_a_repeated_finish_gets_the_same_answer(
    repository: ConversationRepository, turns: TurnRepository
) -> None:
    """Also if the conversation has changed meanwhile."""
    begun = await turns.begin(beginning(None, "question"))
    assert begun.commit is not None
    end = ending(begun.turn_id, "answer")
    first = await turns.finish(end)
    await repository.append(appending(begun.commit.conversation.continuation_id, "more"))
    again = await turns.finish(end)
    assert again.status == "duplicate"
    assert (again.seq, again.commit.base_revision, again.commit.revision) == (
        first.seq,
        first.commit.base_revision,
        first.commit.revision,
    )
    assert again.commit.added == first.commit.added


async def test_concurrent_finishes_store_one_reply(repository: ConversationRepository, turns: TurnRepository) -> None:
    """A finish that was given up and repeated may still be running."""
    begun = await turns.begin(beginning(None, "question"))
    results = await asyncio.gather(*(turns.finish(ending(begun.turn_id, "answer")) for _ in range(4)))
    assert sorted(result.status for result in results) == ["duplicate", "duplicate", "duplicate", "finished"]


async def test_finishing_nothing_is_superseded(repository: ConversationRepository, turns: TurnRepository) -> None:
    """A turn that does not exist, or belongs to another owner."""
    begun = await turns.begin(beginning(None, "question"))
    assert (await turns.finish(ending(new_id(), "x"))).status == "superseded"
    assert (await turns.finish(ending(begun.turn_id, "x", owner="other"))).status == "superseded"


async def test_only_what_the_cache_lacks_comes_back(repository: ConversationRepository, turns: TurnRepository) -> None:
    """Known messages are not sent again; newer ones are."""
    name = (await conversation_of(repository, "one", "two")).continuation_id
    await repository.append(appending(name, "three"))
    begun = await turns.begin(beginning(name, "question", known=CachedRange(1, 1, 2, 6)))
    assert (begun.full, contents(begun.history)) == (False, ["three"])
    begun = await turns.begin(beginning(name, "question", known=CachedRange(3, 4, 4, 8)))
    assert (begun.full, contents(begun.history)) == (False, ["one", "two", "three"])


async def test_a_known_future_or_edited_past_is_no_knowledge(
    repository: ConversationRepository, turns: TurnRepository
) -> None:
    """A cache that is ahead has seen commits that were lost; one older than an edit holds text that is gone."""
    name = (await conversation_of(repository, "one", "two")).continuation_id
    ahead = await turns.begin(beginning(name, "q", known=CachedRange(9, 1, 2, 6)))
    assert (ahead.full, contents(ahead.history)) == (True, ["one", "two"])


async def test_history_is_bounded_by_its_budget_from_the_newest_backwards(
    repository: ConversationRepository, turns: TurnRepository
) -> None:
    """Promise 8: within the window, oldest first; the oldest messages are left out."""
    name = (await conversation_of(repository, *(f"{i:03}" + "x" * 81 for i in range(100)))).continuation_id
    begun = await turns.begin(beginning(name, "question", budget_bytes=1000))
    assert [content[:3] for content in contents(begun.history)] == [f"{i:03}" for i in range(90, 100)]
    assert begun.full
    nothing = await turns.begin(beginning(name, "question", budget_bytes=0))
    assert nothing.history == ()


async def test_the_size_of_what_is_known_counts_against_the_budget(
    repository: ConversationRepository, turns: TurnRepository
) -> None:
    """The budget is for the whole prompt, cached or read."""
    name = (await conversation_of(repository, *(f"{i:03}" + "x" * 81 for i in range(100)))).continuation_id
    known = CachedRange(1, 91, 100, 500)
    begun = await turns.begin(beginning(name, "question", budget_bytes=1000, known=known))
    assert [content[:3] for content in contents(begun.history)] == [f"{i:03}" for i in range(85, 90)]
    assert not begun.full


async def test_knowledge_cut_off_from_what_is_newer_is_of_no_use(
    repository: ConversationRepository, turns: TurnRepository
) -> None:
    """Otherwise the prompt would have a hole."""
    name = (await conversation_of(repository, *(f"{i:03}" + "x" * 81 for i in range(10)))).continuation_id
    await repository.append(appending(name, *(f"{i:03}" + "x" * 81 for i in range(10, 30))))
    begun = await turns.begin(beginning(name, "question", budget_bytes=1000, known=CachedRange(1, 1, 10, 840)))
    assert begun.full
    assert [content[:3] for content in contents(begun.history)] == [f"{i:03}" for i in range(20, 30)]


async def test_the_newest_system_message_beyond_the_budget_comes_along(
    repository: ConversationRepository, turns: TurnRepository
) -> None:
    """Rules given at the start hold, however long ago that was."""
    messages = [
        NewMessage("system", "old rules"),
        NewMessage("user", "x"),
        NewMessage("system", "rules"),
        *[NewMessage("user", "x" * 84)] * 20,
    ]
    result = await repository.append(appending(None, messages=messages))
    assert result.commit is not None
    name = result.commit.conversation.continuation_id
    begun = await turns.begin(beginning(name, "question", budget_bytes=1000))
    assert begun.system is not None
    assert (begun.system.content, begun.system.seq) == ("rules", 3)
    known = await turns.begin(beginning(name, "q", budget_bytes=100, known=CachedRange(1, 4, 23, 100)))
    assert known.system is not None
    assert known.system.content == "rules"


async def test_expected_revision_guards_a_turn(repository: ConversationRepository, turns: TurnRepository) -> None:
    """A question asked of a state that is gone is not stored."""
    conversation = await conversation_of(repository, "one")
    name = conversation.continuation_id
    await repository.append(appending(name, "two"))
    refused = await turns.begin(beginning(name, "q", expected_revision=conversation.revision))
    assert (refused.status, refused.current_revision, refused.commit) == ("conflict_revision", 2, None)
    assert await contents_of(repository, name) == ["one", "two"]


@pytest.mark.parametrize("finish", [False, True])
async def test_the_state_of_a_turn_can_be_read(
    repository: ConversationRepository, turns: TurnRepository, finish: bool
) -> None:
    """For callers that wait for a turn of another daemon."""
    key = new_id()
    begun = await turns.begin(beginning(None, "question", key=key))
    if finish:
        await turns.finish(ending(begun.turn_id, "answer"))
    state, lease_left_s = await turns.state(LOCAL_OWNER, key)
    assert state == ("finished" if finish else "pending")
    assert 0 < lease_left_s <= 60
    seen = await turns.read(LOCAL_OWNER, begun.turn_id)
    assert (seen.turn_id, seen.state) == (begun.turn_id, state)
    assert (seen.reply.content if seen.reply else None) == ("answer" if finish else None)
    assert await turns.state(LOCAL_OWNER, "unknown") is None


async def test_history_has_no_more_metadata_than_a_process_can_hold(
    repository: ConversationRepository, turns: TurnRepository
) -> None:
    """A message without words may bring 256 kB of it, and counts hardly anything in a window."""
    messages = [NewMessage("user", str(number), metadata={"x": "y" * 250_000}) for number in range(80)]
    name = (await conversation_of(repository)).continuation_id
    await repository.append(appending(name, messages=messages))
    known = CachedRange(1, 1, 3, 3)
    for kind in (None, known):
        begun = await turns.begin(beginning(name, "q", known=kind))
        assert begun.full
        assert 50 <= len(begun.history) <= 68
        assert [message.content for message in begun.history][-2:] in (["78", "79"], ["79", "q"])
