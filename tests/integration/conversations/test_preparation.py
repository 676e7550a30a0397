"""Turns whose files are read before they begin: the cost, and what other daemons see of a reserved one."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from exai.conversations import ChatRequest, ChatResult, RunningTurn
from exai.conversations.turns.preparation import Reserve
from exai.db.driver.pool import connect
from exai.errors import Conflict, InvalidArgument
from exai.files.loading import FileContent
from exai.models import LOCAL_OWNER, ContinuationId
from tests.integration.conversations.conftest import Rig, open_rig


@pytest.fixture
async def rig(postgres_url: str, redis_url: str, tmp_path: Path) -> AsyncIterator[Rig]:
    """Directly on the database."""
    async with open_rig(postgres_url, redis_url, tmp_path / "data") as opened:
        yield opened


WITH_FILE = 5
"""Round trips of a turn with a file: one stores it and two read it for the prompt, beside the two of any turn."""


class SlowCall:
    """A chat whose file is read once `gate` is set; `reserve` and `begun` are what its caller receives."""

    def __init__(self, rig: Rig, name: ContinuationId | None = None, key: str = "k") -> None:
        self._rig, self.gate = rig, asyncio.Event()
        self.error: Exception | None = None
        self.reserve: Reserve | None = None
        self.begun: list[RunningTurn] = []
        self._request = ChatRequest(
            LOCAL_OWNER, "What is in it?", continuation_id=name, idempotency_key=key, named=("a.txt",)
        )
        self.task = asyncio.create_task(self._run())

    async def _run(self) -> ChatResult:
        request = replace(self._request, prepare=self._prepare)
        return await self._rig.app.chat.run(request, None, self.begun.append, self._preparing)

    def _preparing(self, reserve: Reserve) -> None:
        self.reserve = reserve

    async def _prepare(self) -> ChatRequest:
        await self.gate.wait()
        if self.error is not None:
            raise self.error
        (file,) = await self._rig.app.files.put(LOCAL_OWNER, [FileContent("a.txt", b"a red ball")])
        return replace(self._request, files=(file.id,))

    async def reserved(self) -> RunningTurn:
        await asyncio.sleep(0)
        assert self.reserve is not None
        await self.reserve()
        return self.begun[0]


async def conversation(rig: Rig) -> ContinuationId:
    return (await rig.app.chat.run(ChatRequest(LOCAL_OWNER, "Hello"))).continuation_id


async def test_reading_files_first_costs_a_turn_no_round_trip(rig: Rig) -> None:
    await conversation(rig)
    rig.reset()
    slow = SlowCall(rig)
    slow.gate.set()
    answer = await slow.task
    assert rig.cost()[0] == WITH_FILE
    assert "a red ball" in rig.provider.chats[-1].body["messages"][-1]["content"]
    assert not answer.duplicate


async def test_a_reserved_turn_costs_one_round_trip_more_and_is_read_as_pending(rig: Rig) -> None:
    """Also from the cache, which costs no round trip again once the turn has ended."""
    name = await conversation(rig)
    slow = SlowCall(rig, name)
    await asyncio.sleep(0)
    rig.reset()
    await slow.reserved()
    assert rig.cost()[0] == 1
    for source in ("database", "cache"):
        rig.reset()
        page = await rig.app.conversations.read(LOCAL_OWNER, name)
        assert (page.source, [(each.tool, each.model) for each in page.conversation.pending]) == (
            source,
            [("chat", None)],
        )
        assert rig.cost()[0] == 1
    rig.reset()
    slow.gate.set()
    await slow.task
    assert rig.cost()[0] == WITH_FILE
    await rig.app.conversations.read(LOCAL_OWNER, name)
    rig.reset()
    page = await rig.app.conversations.read(LOCAL_OWNER, name)
    assert (page.conversation.pending, rig.cost()[0]) == ((), 0)
    assert len(page.messages) == 4


async def test_a_reserved_turn_that_its_daemon_lost_is_taken_over_with_its_question(
    rig: Rig, postgres_url: str
) -> None:
    """A lease that has expired while files were read gives the key to the next request; the question is stored once."""
    first = SlowCall(rig)
    turn = await first.reserved()
    connection = await connect(rig.app.database.address, timeout_s=5)
    await connection.execute("update public.turns set lease_until = now() - interval '1 s'")
    await connection.close()
    second = SlowCall(rig)
    second.gate.set()
    answer = await second.task
    assert (answer.continuation_id, answer.duplicate) == (turn.continuation_id, False)
    first.gate.set()
    assert (await first.task).duplicate
    page = await rig.app.conversations.read(LOCAL_OWNER, turn.continuation_id)
    assert [each.role for each in page.messages] == ["user", "assistant"]
    assert len(rig.provider.chats) == 1


async def test_a_reserved_turn_that_was_cancelled_elsewhere_does_not_ask_the_model(rig: Rig) -> None:
    """Its daemon may learn of it only when the files are read."""
    slow = SlowCall(rig)
    turn = await slow.reserved()
    connection = await connect(rig.app.database.address, timeout_s=5)
    await connection.execute("update public.turns set state = 'failed', finished_at = now(), error = '{}'")
    await connection.close()
    slow.gate.set()
    with pytest.raises(Conflict) as caught:
        await slow.task
    assert (caught.value.reason, len(rig.provider.chats)) == ("cancelled", 0)
    assert turn.continuation_id


async def test_a_reserved_turn_whose_files_cannot_be_read_has_failed_and_can_be_repeated(rig: Rig) -> None:
    """The reason is stored, and the same key then asks the model, which is shown the question once."""
    slow = SlowCall(rig)
    turn = await slow.reserved()
    slow.error = InvalidArgument("files[0]", "is not there", "Name another")
    slow.gate.set()
    with pytest.raises(InvalidArgument) as caught:
        await slow.task
    assert caught.value.continuation_id == turn.continuation_id
    outcome = await rig.app.chat.result(LOCAL_OWNER, turn.turn_id)
    assert outcome is not None
    assert (outcome.stage, (outcome.error or {})["code"]) == ("failed", "invalid_argument")
    again = SlowCall(rig)
    again.gate.set()
    assert (await again.task).continuation_id == turn.continuation_id
    sent = rig.provider.chats[-1].body["messages"]
    assert sum("What is in it?" in each["content"] for each in sent) == 1


async def test_a_refused_call_is_not_reserved(rig: Rig) -> None:
    """The caller receives the refusal at its deadline instead of a turn that does not exist."""
    await rig.app.chat.run(ChatRequest(LOCAL_OWNER, "Another", idempotency_key="k"))
    slow = SlowCall(rig)
    with pytest.raises(Conflict):
        await slow.reserved()
    slow.gate.set()
    with pytest.raises(Conflict):
        await slow.task
