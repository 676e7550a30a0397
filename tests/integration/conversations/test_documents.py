"""Documents among the files of a question: read here, or by Kimi where they have no text that can be read here."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from exai.app import open_app
from exai.conversations import ChatRequest, ChatResult
from exai.db.driver.pool import connect
from exai.files.loading import FileContent
from exai.models import LOCAL_OWNER, ContinuationId, FileId
from exai.providers.completion import extraction
from tests.integration.conversations.conftest import Rig, open_rig
from tests.integration.sources.test_documents import pdf
from tests.support.kimi_files import TEXT, KimiFiles, hang, refusing
from tests.support.provider_server import failure, kimi_error

SCAN = pdf("")
SHEET = b"PK\x03\x04\x00\x00" + bytes(range(256))
KIMI = "kimi-k3"


@pytest.fixture
async def rig(postgres_url: str, redis_url: str, tmp_path: Path) -> AsyncIterator[Rig]:
    async with open_rig(postgres_url, redis_url, tmp_path) as opened:
        opened.provider.files = KimiFiles()
        yield opened


def kimi_files(rig: Rig) -> KimiFiles:
    assert isinstance(rig.provider.files, KimiFiles)
    return rig.provider.files


async def put(rig: Rig, data: bytes, name: str = "scan.pdf") -> FileId:
    (file,) = await rig.app.files.put(LOCAL_OWNER, [FileContent(name, data)])
    return file.id


async def ask(rig: Rig, files: list[FileId], name: ContinuationId | None = None, model: str = KIMI) -> ChatResult:
    return await rig.app.chat.run(ChatRequest(LOCAL_OWNER, "What?", model=model, files=files, continuation_id=name))


def sent(rig: Rig) -> str:
    """All that the last call of a model was sent."""
    return "\n".join(message["content"] for message in rig.provider.chats[-1].body["messages"])


async def remembered(rig: Rig) -> list[str]:
    connection = await connect(rig.app.database.address, timeout_s=5)
    rows = await connection.fetch("select file_id from exai.remote_files order by file_id")
    await connection.close()
    return [row["file_id"] for row in rows]


async def test_a_pdf_with_text_is_read_here_for_any_model(rig: Rig) -> None:
    """No provider receives it as a file."""
    result = await ask(rig, [await put(rig, pdf("Invoice 42"))], model="small-8k")
    assert "Invoice 42" in sent(rig)
    assert any("text of 1 page" in note for note in result.notes)
    assert kimi_files(rig).uploads == []


async def test_a_scan_is_uploaded_once_and_its_copy_is_deleted(rig: Rig) -> None:
    """Its text is kept under its content: for later turns, other names, other models and other daemons."""
    first = await ask(rig, [await put(rig, SCAN)])
    assert TEXT in sent(rig)
    assert any("extracted by kimi" in note and "counted as input" in note for note in first.notes)
    assert (len(kimi_files(rig).uploads), kimi_files(rig).deleted) == (1, ["file-1"])
    assert await remembered(rig) == []
    assert b"scan" not in kimi_files(rig).uploads[0].partition(b"%PDF")[0]
    await ask(rig, [], first.continuation_id)
    assert TEXT in sent(rig)
    await ask(rig, [await put(rig, SCAN, "other.pdf")], model="small-8k")
    assert TEXT in sent(rig)
    async with AsyncExitStack() as stack:
        other = await stack.enter_async_context(open_app(rig.app.settings))
        await other.chat.run(ChatRequest(LOCAL_OWNER, "And?", model=KIMI, continuation_id=first.continuation_id))
    assert TEXT in sent(rig)
    assert len(kimi_files(rig).uploads) == 1


async def test_concurrent_questions_share_one_upload(rig: Rig) -> None:
    file = await put(rig, SHEET, "sheet.xlsx")
    await asyncio.gather(*(ask(rig, [file]) for _ in range(5)))
    assert len(kimi_files(rig).uploads) == 1


async def test_a_document_that_is_still_being_read_is_waited_for(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(extraction, "POLL_S", 0.0)
    kimi_files(rig).polls = 3
    await ask(rig, [await put(rig, SCAN)])
    assert TEXT in sent(rig)


async def test_a_model_of_another_provider_names_the_file_and_how_to_get_its_text(
    postgres_url: str, redis_url: str, tmp_path: Path
) -> None:
    async with AsyncExitStack() as stack:
        kimi = await stack.enter_async_context(open_rig(postgres_url, redis_url, tmp_path))
        local = await stack.enter_async_context(
            open_rig(postgres_url, redis_url, tmp_path / "local", endpoint=kimi.provider)
        )
        result = await ask(local, [await put(local, SCAN)], model="local/llama")
    assert "without text, as a scan" in sent(kimi)
    assert any("scan.pdf" in note and "a Kimi model reads such documents" in note for note in result.notes)


async def test_uploads_can_be_switched_off(rig: Rig) -> None:
    settings = rig.app.settings
    files = settings.files.model_copy(update={"provider_extract": False})
    async with open_app(settings.model_copy(update={"files": files})) as app:
        file = await put(rig, SCAN)
        await app.chat.run(ChatRequest(LOCAL_OWNER, "What?", model=KIMI, files=[file]))
    assert kimi_files(rig).uploads == []


@pytest.mark.parametrize(
    ("status", "kind", "message"),
    [
        (400, "invalid_request_error", "the file type is not supported"),
        (413, "invalid_request_error", "the file exceeds 100 MB"),
        (400, "invalid_request_error", "the number of files exceeds 1000"),
    ],
)
async def test_a_refused_document_is_not_uploaded_again_for_a_while(
    rig: Rig, status: int, kind: str, message: str
) -> None:
    """The question is answered without it, and the note has the provider's words."""
    kimi_files(rig).refuse = refusing("POST", kimi_error(status, kind, message))
    file = await put(rig, SCAN)
    result = await ask(rig, [file])
    assert any(f"kimi did not read it: HTTP {status}: {message}" in note for note in result.notes)
    asked = len([each for each in rig.provider.received if each.path == "/v1/files"])
    await ask(rig, [file])
    assert len([each for each in rig.provider.received if each.path == "/v1/files"]) == asked == 1


@pytest.mark.parametrize("status", [429, 500, 503])
async def test_a_failure_that_passes_is_tried_again_by_the_next_turn(rig: Rig, status: int) -> None:
    kimi_files(rig).refuse = refusing("POST", failure(status, {"error": {"message": "busy"}}))
    file = await put(rig, SCAN)
    result = await ask(rig, [file])
    assert any(f"HTTP {status}: busy" in note for note in result.notes)
    kimi_files(rig).refuse = lambda _: None
    await ask(rig, [file])
    assert TEXT in sent(rig)


@pytest.mark.parametrize(("method", "ending"), [("POST", ""), ("GET", ""), ("GET", "/content")])
async def test_a_provider_that_hangs_is_left_in_time(
    rig: Rig, monkeypatch: pytest.MonkeyPatch, method: str, ending: str
) -> None:
    """The copy is deleted also after a failure."""
    monkeypatch.setattr(extraction, "UPLOAD_S", 0.05)
    monkeypatch.setattr(extraction, "FETCH_S", 0.05)
    kimi_files(rig).refuse = hang(method, ending)
    result = await ask(rig, [await put(rig, SCAN)])
    assert any("kimi did not read it" in note and "within 0.05 s" in note for note in result.notes)
    assert kimi_files(rig).stored == {}


async def test_a_copy_that_could_not_be_deleted_is_deleted_later(rig: Rig) -> None:
    """By any daemon with the same key, once it is old enough that nothing reads it."""
    kimi_files(rig).refuse = refusing("DELETE", failure(503, {}))
    await ask(rig, [await put(rig, SCAN)])
    assert TEXT in sent(rig)
    assert await remembered(rig) == ["file-1"]
    kimi_files(rig).refuse = lambda _: None
    connection = await connect(rig.app.database.address, timeout_s=5)
    await connection.execute("update exai.remote_files set tried_at = tried_at - interval '1 hour'")
    await connection.close()
    await ask(rig, [await put(rig, SHEET, "sheet.xlsx")])
    assert sorted(kimi_files(rig).deleted) == ["file-1", "file-2"]
    assert await remembered(rig) == []


async def test_an_empty_text_is_stated(rig: Rig) -> None:
    kimi_files(rig).text = "  "
    result = await ask(rig, [await put(rig, SCAN)])
    assert any("it found no text in the document" in note for note in result.notes)
    assert kimi_files(rig).stored == {}


async def test_documents_of_known_text_cost_one_statement(rig: Rig) -> None:
    """And none is sent for files of other kinds."""
    first = await ask(rig, [await put(rig, SCAN)])
    plain = await ask(rig, [await put(rig, b"plain text", "notes.txt")])
    costs = []
    for name in (first.continuation_id, plain.continuation_id):
        rig.reset()
        await ask(rig, [], name)
        costs.append(rig.database.round_trips)
    assert costs[0] <= costs[1] + 1
