"""Large content of messages is stored once as a file, linked by the statement of the message, and read back exactly."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from exai.conversations import AppendRequest, ChatRequest
from exai.conversations.formats import Format, read_lines, read_markdown
from exai.db.search import SearchQuery
from exai.errors import InvalidArgument, ProviderError
from exai.files.pieces import TAKEN_OUT
from exai.models import FILE_IDS, LOCAL_OWNER, ContinuationId, NewMessage
from exai.workflows import WorkflowRequest
from exai.workflows.consensus import ConsensusRequest
from tests.integration.conversations.conftest import Rig, open_rig
from tests.support.migrations import run, value
from tests.support.provider_server import break_after_first_token, kimi_answer

PIXEL = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)
IMAGE = PIXEL + bytes(range(256)) * 200
URL = "data:image/png;base64," + base64.b64encode(IMAGE).decode()


@pytest.fixture
async def rig(postgres_url: str, redis_url: str, tmp_path: Path) -> AsyncIterator[Rig]:
    async with open_rig(postgres_url, redis_url, tmp_path / "data") as opened:
        yield opened


async def appended(rig: Rig, *contents: str) -> ContinuationId:
    messages = [NewMessage("user", content) for content in contents]
    return (await rig.app.conversations.append(AppendRequest(LOCAL_OWNER, messages))).continuation_id


async def whole(rig: Rig, name: ContinuationId) -> list[str]:
    page = await rig.app.conversations.read(LOCAL_OWNER, name, whole=True)
    return [message.content for message in page.messages]


async def exported(rig: Rig, name: ContinuationId, kind: Format = "jsonl") -> str:
    return "".join([text async for text in rig.app.transfer.export(LOCAL_OWNER, name, kind)])


async def imported(rig: Rig, text: str, kind: Format, as_name: str | None = None) -> int:
    parts = read_lines(text.splitlines()) if kind == "jsonl" else read_markdown(text)
    given = ContinuationId(as_name) if as_name else None
    return sum([each.stored async for each in rig.app.transfer.import_text(LOCAL_OWNER, parts, as_name=given)])


async def test_append_with_its_large_content_is_one_statement(rig: Rig, postgres_url: str) -> None:
    """Each time, with any number of images; their bytes are stored once."""
    other = "data:image/png;base64," + base64.b64encode(IMAGE[::-1] * 40).decode()
    contents = [f"first {URL}", f"{URL} again", f"a larger one: {other}", "none"]
    for _ in range(2):
        rig.reset()
        name = await appended(rig, *contents)
        assert rig.database.round_trips == 1
        assert await whole(rig, name) == contents
    assert await value(postgres_url, "select count(*) from exai.contents") == 2
    assert await value(postgres_url, "select count(*) from public.files") == 2
    assert await value(postgres_url, "select count(*) from public.conversation_files") == 4
    page = await rig.app.conversations.read(LOCAL_OWNER, name)
    rig.reset()
    again = await rig.app.conversations.read(LOCAL_OWNER, name)
    assert (again.source, rig.cost()) == ("cache", (0, 1))
    assert again.messages == page.messages
    assert sum(len(message.content) for message in again.messages) < 2_000
    assert 'type="image/png"' in again.messages[0].content
    assert str(len(IMAGE)) in again.messages[0].content
    assert await value(postgres_url, "select max(octet_length(m.content)) from public.messages m") < 1_000


async def test_text_beyond_the_limit_of_a_message_is_stored(rig: Rig) -> None:
    text = "A long story. " + "word " * 1_000_000
    rig.reset()
    name = await appended(rig, text)
    assert rig.database.round_trips == 1
    assert await whole(rig, name) == [text]
    page = await rig.app.conversations.read(LOCAL_OWNER, name)
    assert page.messages[0].content.startswith("A long story.")
    assert len(page.messages[0].content) < 10_000


async def test_model_is_shown_the_image_of_a_question_and_the_turn_costs_as_with_a_file(rig: Rig) -> None:
    """Begin, the rows of the files, their bytes, and finish; the question holds the reference."""
    rig.reset()
    result = await rig.app.chat.run(ChatRequest(LOCAL_OWNER, f"What is on ![this]({URL})?"))
    assert rig.database.round_trips == 4
    asked = rig.provider.chats[-1].body["messages"][-1]["content"]
    text, image = asked
    assert text["text"].startswith("What is on ![this](<content ")
    assert image["image_url"]["url"] == URL
    assert (await whole(rig, result.continuation_id))[0] == f"What is on ![this]({URL})?"
    request = ChatRequest(LOCAL_OWNER, f"And {URL}", continuation_id=result.continuation_id, idempotency_key="key")
    first, again = await rig.app.chat.run(request), await rig.app.chat.run(request)
    assert (first.seq, again.duplicate) == (again.seq, True)


async def test_question_beyond_every_window_is_refused_before_anything_is_stored(rig: Rig) -> None:
    rig.reset()
    with pytest.raises(InvalidArgument, match="prompt: is about"):
        await rig.app.chat.run(ChatRequest(LOCAL_OWNER, "word " * 3_000_000))
    assert rig.database.round_trips == 0


@pytest.mark.parametrize("kind", ["jsonl", "markdown"])
async def test_export_is_whole_and_import_takes_it_out_again(rig: Rig, postgres_url: str, kind: Format) -> None:
    """The files of large content are not in the export a second time, and an import of it changes nothing here."""
    name = await appended(rig, f"see {URL}", "then", URL)
    text = await exported(rig, name, kind)
    assert text.count(URL) == 2
    assert TAKEN_OUT not in text
    assert "sha256" not in text
    assert await imported(rig, text, kind) == 0
    assert await imported(rig, text, kind, "copy") == 3
    assert await imported(rig, text, kind, "copy") == 0
    copy = ContinuationId("copy")
    assert await whole(rig, copy) == [f"see {URL}", "then", URL]
    page = await rig.app.conversations.read(LOCAL_OWNER, copy)
    assert len(page.messages[0].content) < 1_000
    assert await value(postgres_url, "select count(*) from exai.contents") == 1
    assert await value(postgres_url, "select count(*) from public.conversation_files") == 2


async def test_import_finds_a_message_that_is_stored_as_a_whole(rig: Rig, postgres_url: str) -> None:
    """Such as one of another program: it is the same message, in either form."""
    name = await appended(rig, f"see {URL}", URL)
    text = await exported(rig, name)
    await run(postgres_url, f"update public.messages set content = '{URL}', metadata = '{{}}' where seq = 2")
    assert await imported(rig, text, "jsonl") == 0


async def test_fork_shares_it_and_a_purge_removes_it(rig: Rig, postgres_url: str) -> None:
    """As long as a conversation has it, it stays."""
    name = await appended(rig, f"see {URL}")
    fork = await rig.app.conversations.fork(LOCAL_OWNER, name)
    await rig.app.conversations.delete(LOCAL_OWNER, name)
    assert await whole(rig, fork.continuation_id) == [f"see {URL}"]
    await run(postgres_url, "update public.files set used_at = now() - interval '1 day'")
    await rig.app.files.sweep()
    assert await whole(rig, fork.continuation_id) == [f"see {URL}"]
    await run(
        postgres_url,
        "delete from public.conversations where parent_id is not null",
        "delete from public.conversations",
        "update exai.contents set used_at = now() - interval '1 day'",
        "update exai.blobs set begun_at = now() - interval '1 day'",
        "update public.files set used_at = now() - interval '1 day'",
    )
    await rig.app.files.sweep()
    assert await value(postgres_url, "select count(*) from exai.contents") == 0
    assert await value(postgres_url, "select count(*) from exai.blob_parts") == 0


async def test_search_finds_the_text_beside_it(rig: Rig) -> None:
    name = await appended(rig, f"the zebra on {URL} grazes")
    found = await rig.app.conversations.search(SearchQuery(LOCAL_OWNER, "zebra grazes"))
    assert [hit.continuation_id for hit in found.hits] == [name]


async def test_deleted_file_leaves_the_reference_and_the_same_content_heals_it(rig: Rig) -> None:
    name = await appended(rig, f"see {URL}")
    (message,) = (await rig.app.conversations.read(LOCAL_OWNER, name)).messages
    await rig.app.files.delete(LOCAL_OWNER, message.metadata[FILE_IDS][0])
    assert await whole(rig, name) == [message.content]
    await appended(rig, URL)
    assert await whole(rig, name) == [f"see {URL}"]


async def test_field_of_the_metadata_is_written_by_exai_only(rig: Rig) -> None:
    with pytest.raises(InvalidArgument, match=r"messages\[0\].metadata.exai_taken_out: is written by EXAI only"):
        await rig.app.conversations.append(
            AppendRequest(LOCAL_OWNER, [NewMessage("user", "x", metadata={TAKEN_OUT: {}})])
        )


async def test_page_of_whole_messages_is_bounded(rig: Rig) -> None:
    """The newest that fit, and a cursor for the others."""
    texts = [f"{n} " + "data:image/png;base64," + base64.b64encode(bytes([n]) * 7_000_000).decode() for n in range(3)]
    name = await appended(rig, texts[0])
    for text in texts[1:]:
        await rig.app.conversations.append(AppendRequest(LOCAL_OWNER, [NewMessage("user", text)], name))
    page = await rig.app.conversations.read(LOCAL_OWNER, name, whole=True)
    assert [message.content for message in page.messages] == texts[1:]
    older = await rig.app.conversations.read(LOCAL_OWNER, name, whole=True, before_seq=page.next_before_seq)
    assert [message.content for message in older.messages] == texts[:1]


async def test_large_content_of_an_answer_is_stored_once_linked_and_given_back(rig: Rig, postgres_url: str) -> None:
    """With the statement that stores the answer; a repetition returns what the first caller received."""
    answer = f"Here it is: ![a plot]({URL}) as asked."
    rig.provider.script(kimi_answer(answer), kimi_answer(answer))
    request = ChatRequest(LOCAL_OWNER, "Draw it", idempotency_key="draw")
    rig.reset()
    first = await rig.app.chat.run(request)
    assert rig.database.round_trips == 2
    again = await rig.app.chat.run(request)
    assert (again.duplicate, again.content) == (True, first.content)
    assert 'type="image/png"' in first.content
    assert len(first.content) < 1_000
    name = first.continuation_id
    assert (await whole(rig, name))[1] == answer
    assert answer.replace("\n", "") in (await exported(rig, name, "markdown"))
    (linked,) = (await rig.app.files.list(LOCAL_OWNER, continuation_id=name)).files
    assert linked.sha256 == hashlib.sha256(IMAGE).hexdigest()
    await rig.app.chat.run(ChatRequest(LOCAL_OWNER, "Again", continuation_id=name))
    assert URL not in str(rig.provider.chats[-1].body)
    assert await value(postgres_url, "select count(*) from exai.contents") == 1
    assert await value(postgres_url, "select max(octet_length(m.content)) from public.messages m") < 1_000


async def test_answer_whose_large_content_cannot_be_stored_is_stored_whole(rig: Rig, postgres_url: str) -> None:
    """It has been paid for."""
    await run(postgres_url, "alter function exai.put_files_v1 rename to put_files_gone")
    rig.provider.script(kimi_answer(URL))
    result = await rig.app.chat.run(ChatRequest(LOCAL_OWNER, "Draw it"))
    assert result.content == URL
    assert (await whole(rig, result.continuation_id))[1] == URL


async def test_large_content_of_a_partial_answer_is_taken_out(rig: Rig, postgres_url: str) -> None:
    rig.provider.script(break_after_first_token(token=URL))
    with pytest.raises(ProviderError) as caught:
        await rig.app.chat.run(ChatRequest(LOCAL_OWNER, "Draw it"))
    name = ContinuationId(str(caught.value.continuation_id))
    assert (await whole(rig, name))[1].startswith(URL)
    assert await value(postgres_url, "select max(octet_length(m.content)) from public.messages m") < 1_000


async def test_large_content_of_a_system_prompt_is_taken_out_and_a_long_text_is_refused(rig: Rig) -> None:
    """Instructions in a file would not be followed, and no window holds as much."""
    system = f"Use this letterhead: {URL}"
    result = await rig.app.chat.run(ChatRequest(LOCAL_OWNER, "Hi", system=system))
    assert (await whole(rig, result.continuation_id))[0] == system
    sent = rig.provider.chats[-1].body["messages"]
    assert (sent[0]["role"], URL in str(sent)) == ("system", False)
    with pytest.raises(InvalidArgument, match=r"system: is .* bytes; the limit is"):
        await rig.app.chat.run(ChatRequest(LOCAL_OWNER, "Hi", system="word " * 1_000_000))


async def test_large_content_of_questions_to_tools_is_taken_out(rig: Rig) -> None:
    """Those of a workflow, recorded or asked, and of a panel."""
    prompt = f"What is wrong with {URL}?"
    asked = await rig.app.workflows.run("debug", WorkflowRequest(LOCAL_OWNER, prompt))
    recorded = await rig.app.workflows.run("debug", WorkflowRequest(LOCAL_OWNER, prompt, ask_model=False))
    panel = ConsensusRequest(LOCAL_OWNER, prompt, models=("kimi-k3", "kimi-k2.6"))
    consulted = await rig.app.consensus.run(panel)
    for each in (asked, recorded, consulted):
        page = await rig.app.conversations.read(LOCAL_OWNER, each.continuation_id)
        assert all(len(message.content) < 4_000 for message in page.messages)
        assert prompt in "".join(await whole(rig, each.continuation_id))
    assert all(URL not in str(chat.body) for chat in rig.provider.chats[1:])
