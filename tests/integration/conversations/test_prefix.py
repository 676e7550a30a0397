"""The array of a turn begins with the bytes of the previous one, so that the provider's cache of the prefix applies."""

from __future__ import annotations

from collections.abc import AsyncIterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import orjson
import pytest

from exai.conversations import AppendRequest, ChatRequest
from exai.errors import ProviderTooLong
from exai.files.loading import FileContent
from exai.models import LOCAL_OWNER, ContinuationId, FileId, NewMessage
from tests.integration.conversations.conftest import Rig, open_rig
from tests.support.provider_server import ProviderServer, Received, failure, kimi_answer

SMALL = "small-8k"
COUNT = "/v1/tokenizers/estimate-token-count"


@pytest.fixture
async def rig(postgres_url: str, redis_url: str, tmp_path: Path) -> AsyncIterator[Rig]:
    async with open_rig(postgres_url, redis_url, tmp_path) as opened:
        yield opened


def array_of(request: Received) -> bytes:
    """Return the elements of the message array as they were received."""
    begin = request.raw.index(b'"messages":[') + len(b'"messages":[')
    elements = orjson.dumps(request.body["messages"])[1:-1]
    assert request.raw[begin:].startswith(elements)
    return elements


def prefix_changes(provider: ProviderServer) -> int:
    """Return how many arrays do not begin with the whole of the previous one."""
    arrays = [array_of(request) for request in provider.chats]
    return sum(not later.startswith(earlier) for earlier, later in pairwise(arrays))


async def put(rig: Rig, text: str, name: str) -> FileId:
    (file,) = await rig.app.files.put(LOCAL_OWNER, [FileContent(name, text.encode())])
    return file.id


async def test_array_of_each_turn_begins_with_the_bytes_of_the_previous_one(rig: Rig) -> None:
    """With a system prompt, files given once and again, a deletion of none, reasoning, and text of any script."""
    notes = await put(rig, "The plan, <b>bold</b> & \u201cquoted\u201d.\r\n\ttabs", "notes.md")
    log = await put(rig, "line\n" * 400, "run.log")
    (binary,) = await rig.app.files.put(LOCAL_OWNER, [FileContent("x.bin", b"\x00\x01")])
    asked: list[tuple[str, list[FileId]]] = [
        ("\u4f60\u597d", [notes]),
        ("And the log?", [log, binary.id]),
        ("Again \U0001f680", [notes]),
        ("Both?", [notes, log]),
        ("Nothing more.", []),
    ]
    name: ContinuationId | None = None
    for at, (prompt, files) in enumerate(asked):
        system = "Be brief." if at == 0 else None
        rig.provider.script(kimi_answer(f" answer {at}\n", reasoning="because"))
        result = await rig.app.chat.run(
            ChatRequest(LOCAL_OWNER, prompt, system=system, continuation_id=name, files=files)
        )
        name = result.continuation_id
        assert result.left_out == 0
    assert len(rig.provider.chats) == len(asked)
    assert prefix_changes(rig.provider) == 0
    assert array_of(rig.provider.chats[-1]).count(b"The plan") == 1


async def test_failed_turn_and_its_repetition_keep_the_prefix(rig: Rig) -> None:
    """A question without an answer stays where it is."""
    first = await rig.app.chat.run(ChatRequest(LOCAL_OWNER, "One"))
    rig.provider.script(failure(400, {"error": {"message": "no", "type": "invalid_request_error"}}))
    again = ChatRequest(LOCAL_OWNER, "Two", continuation_id=first.continuation_id, idempotency_key="k")
    with pytest.raises(Exception, match="no"):
        await rig.app.chat.run(again)
    await rig.app.chat.run(again)
    await rig.app.chat.run(ChatRequest(LOCAL_OWNER, "Three", continuation_id=first.continuation_id))
    assert prefix_changes(rig.provider) == 0


async def test_long_conversation_in_a_small_window_changes_its_prefix_rarely(rig: Rig) -> None:
    """History is left out in blocks, and the result has the number of messages."""
    talk = [NewMessage("user" if at % 2 == 0 else "assistant", f"{at} " + "word " * 150) for at in range(60)]
    begun = await rig.app.conversations.append(AppendRequest(LOCAL_OWNER, talk))
    left_out = []
    for at in range(16):
        rig.provider.script(kimi_answer("reply " * 150))
        result = await rig.app.chat.run(
            ChatRequest(LOCAL_OWNER, f"{at} " + "word " * 150, model=SMALL, continuation_id=begun.continuation_id)
        )
        left_out.append(result.left_out)
        assert any(f"{result.left_out} older messages" in note for note in result.notes)
    assert left_out == sorted(left_out)
    assert left_out[0] > 20
    assert prefix_changes(rig.provider) == len(set(left_out)) - 1
    assert prefix_changes(rig.provider) <= 5


async def test_files_of_earlier_turns_are_left_out_once_and_stay_out(rig: Rig) -> None:
    """A file that is shown in some turns only would change the prefix each time."""
    name: ContinuationId | None = None
    for at in range(10):
        rig.provider.script(kimi_answer("noted"))
        file = await put(rig, f"file {at} " + "word " * 1_000, f"{at}.txt")
        result = await rig.app.chat.run(
            ChatRequest(LOCAL_OWNER, f"Read {at}.", model=SMALL, continuation_id=name, files=[file])
        )
        name = result.continuation_id
    shown = [
        [at for at in range(10) if f"file {at} word".encode() in array_of(request)] for request in rig.provider.chats
    ]
    assert all(turn == list(range(turn[0], at + 1)) for at, turn in enumerate(shown))
    firsts = [turn[0] for turn in shown]
    assert firsts == sorted(firsts)
    assert prefix_changes(rig.provider) == len(set(firsts)) - 1


@pytest.mark.parametrize("counted", [5_000, 7_900])
async def test_prompt_near_the_limit_is_counted_by_the_provider(rig: Rig, counted: int) -> None:
    """Below the limit it is sent; above it history is left out before the model is asked."""
    rig.provider.routes[COUNT] = {"data": {"total_tokens": counted}}
    talk = [NewMessage("user" if at % 2 == 0 else "assistant", "word " * 160) for at in range(36)]
    begun = await rig.app.conversations.append(AppendRequest(LOCAL_OWNER, talk))
    await rig.app.chat.run(ChatRequest(LOCAL_OWNER, "word " * 160, model=SMALL, continuation_id=begun.continuation_id))
    first, *others = [request for request in rig.provider.received if request.path == COUNT]
    (sent,) = rig.provider.chats
    assert first.body["model"] == SMALL
    assert (array_of(first) == array_of(sent)) == (counted == 5_000)
    assert not others or counted == 7_900


@pytest.mark.parametrize("reply", [failure(500), {"data": {}}, {"data": {"total_tokens": 10**9}}])
async def test_question_at_the_limit_is_counted_and_sent_or_refused(rig: Rig, reply: Any) -> None:
    """A failed count is noted and ignored; a count beyond the window is a refusal before the model is asked."""
    rig.provider.routes[COUNT] = reply
    request = ChatRequest(LOCAL_OWNER, "word " * 7_000, model=SMALL)
    if isinstance(reply, dict) and reply["data"]:
        with pytest.raises(ProviderTooLong, match="1,000,000,000"):
            await rig.app.chat.run(request)
        assert rig.provider.chats == []
    else:
        result = await rig.app.chat.run(request)
        assert any("estimate" in note for note in result.notes)
        assert len(rig.provider.chats) == 1
