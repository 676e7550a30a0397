"""Which program wrote a file is recognised by the beginning of its content."""

import importlib.util
import json
import sqlite3
import struct
import tracemalloc
import zipfile
from pathlib import Path
from typing import Any

import pytest

from exai.errors import InvalidArgument
from exai.importers.pipeline import import_sources
from exai.importers.reading.bundles import ReadMeter, open_bundle
from exai.importers.reading.documents import SourceDocument
from exai.importers.recognition import MAX_HEAD_BYTES, RecognisedFile, kind_of_file, recognised
from exai.importers.report import ImportReport
from exai.models import LOCAL_OWNER
from tests.support.sources import chain, chatgpt, claude_line, codex_line, write_agents, write_json, write_lines

CHAT = {"id": "c", "chat": {"title": "t", "history": {"messages": {}, "currentId": None}}}
EXAI = {"format": "exai-conversation", "version": 1, "continuation_id": "x"}
JSON_SOURCES: list[tuple[str, Any]] = [
    ("chatgpt", [chatgpt("c", chain(["hi"]))]),
    ("chatgpt", chatgpt("c", chain(["hi"]))),
    ("claude-ai", [{"uuid": "u", "name": "n", "chat_messages": []}]),
    ("open-webui", [CHAT]),
    ("open-webui", CHAT),
    ("librechat", {"conversationId": "c", "title": "t", "messages": []}),
    ("gemini-cli", {"sessionId": "s", "projectHash": "h", "messages": []}),
]


def _kind(path: Path) -> str | None:
    with open_bundle(path) as bundle:
        return kind_of_file(bundle, bundle.names()[0])


@pytest.mark.parametrize(("kind", "value"), JSON_SOURCES)
@pytest.mark.parametrize("indent", [None, 2])
def test_json_is_recognised_by_its_members(tmp_path: Path, kind: str, value: Any, indent: int | None) -> None:
    (tmp_path / "x.json").write_text(json.dumps(value, indent=indent))

    assert _kind(tmp_path / "x.json") == kind


@pytest.mark.parametrize(
    ("kind", "lines"),
    [
        ("claude-code", [{"type": "summary", "summary": "s", "leafUuid": "l"}, claude_line("a", None, "hi")]),
        ("claude-code", ["{broken", claude_line("a", None, "hi")]),
        ("codex", [codex_line("session_meta", {"id": "s"})]),
        ("codex", [{"id": "s", "timestamp": "2025-05-01T00:00:00Z", "instructions": None}]),
        ("gemini-cli", [{"sessionId": "s", "projectHash": "h", "startTime": "2026-01-01T00:00:00Z"}]),
        ("exai", [EXAI]),
    ],
)
def test_lines_are_recognised(tmp_path: Path, kind: str, lines: list[Any]) -> None:
    assert _kind(write_lines(tmp_path / "x.jsonl", lines)) == kind


def test_databases_and_markdown_are_recognised(tmp_path: Path) -> None:
    (tmp_path / "x.md").write_text("<!-- exai conversation {} -->\n# x\n")

    assert _kind(write_agents(tmp_path / "a.db", [])) == "openai-agents"
    assert _kind(tmp_path / "x.md") == "exai"


@pytest.mark.parametrize("content", [b"", b"\0" * 100, b"[]", b"{}", b"hello", b'{"messages": []}', b"[[[["])
def test_other_files_are_not_recognised(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.json").write_bytes(content)

    assert _kind(tmp_path / "x.json") is None


def test_only_the_beginning_of_a_large_file_is_read(tmp_path: Path) -> None:
    """One line of JSON may have gigabytes."""
    with (tmp_path / "x.json").open("wb") as file:
        file.write(b'{"conversationId": "c", "messages": [' + b"1," * 20_000_000 + b"1]}")
    meter = ReadMeter()
    with open_bundle(tmp_path / "x.json") as bundle:
        assert kind_of_file(bundle, "x.json") == "librechat"
        with SourceDocument(bundle, "x.json", meter).open() as stream:
            stream.read(MAX_HEAD_BYTES)

    assert meter.read_bytes < 2 * MAX_HEAD_BYTES


def test_a_named_kind_leaves_out_files_of_others(tmp_path: Path) -> None:
    write_lines(tmp_path / "s.jsonl", [claude_line("a", None, "hi")])
    write_lines(tmp_path / "r.jsonl", [codex_line("session_meta", {"id": "s"})])
    with open_bundle(tmp_path) as bundle:
        assert list(recognised(bundle, "codex")) == [RecognisedFile("codex", "r.jsonl")]


async def rehearsed(path: Path) -> ImportReport:
    return await import_sources(None, LOCAL_OWNER, [path])


async def test_what_exports_have_beside_conversations_is_no_damage(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "export.zip", "w") as archive:
        archive.writestr("conversations.json", json.dumps([chatgpt("c", chain(["hi"]))]))
        archive.writestr("user.json", '{"id": "u"}')
        archive.writestr("export_manifest.json", "[]")
    report = await rehearsed(tmp_path / "export.zip")

    assert (report.messages, report.damaged) == (1, 0)
    assert report.left_out == {"files without conversations": 2}


async def test_an_archive_that_breaks_off_keeps_what_was_read(tmp_path: Path) -> None:
    """The records before the damage are imported, and the damage is reported."""
    conversations = [chatgpt(f"c{place}", chain([f"{place} " + "x" * 500])) for place in range(3_000)]
    path = tmp_path / "export.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("conversations.json", json.dumps(conversations))
    data = bytearray(path.read_bytes())
    middle = len(data) // 2
    data[middle : middle + 20] = b"\xff" * 20
    path.write_bytes(data)
    report = await rehearsed(path)

    assert 0 < report.messages < 3_000
    assert report.damaged >= 1
    assert any("cannot be read on" in each for each in report.problems)


async def test_nothing_recognised_is_reported(tmp_path: Path) -> None:
    """An import that finds nothing must not look like a success."""
    write_json(tmp_path / "x.json", {"a": 1})
    report = await rehearsed(tmp_path / "x.json")

    assert report.problems == ["x.json: is not recognised as an export; name its kind if it is one"]


async def test_a_directory_without_sources_is_reported(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    write_lines(tmp_path / "other" / "s.jsonl", [claude_line("a", None, "hi")])
    write_lines(tmp_path / "other" / "t.jsonl", [claude_line("b", None, "hi")])
    empty = await rehearsed(tmp_path / "empty")
    other = await import_sources(None, LOCAL_OWNER, [tmp_path / "other"], "codex")

    for report in (empty, other):
        assert report.problems[0].endswith("has no file that can be imported")


async def test_views_of_a_database_are_not_read(tmp_path: Path) -> None:
    """Those of an uploaded database may have any number of rows, also if the kind of the file is named."""
    with sqlite3.connect(tmp_path / "a.db") as database:
        database.executescript(
            "create view agent_messages as with recursive n(id) as (select 1 union all select id + 1 from n limit 1000)"
            " select id, 's' as session_id, '{}' as message_data, null as created_at from n;"
        )
    database.close()
    report = await import_sources(None, LOCAL_OWNER, [tmp_path / "a.db"], "openai-agents")

    assert (report.messages, report.problems) == (0, ["a.db: has no table agent_messages"])


async def test_the_directory_of_an_archive_takes_no_more_memory_than_its_limit(tmp_path: Path) -> None:
    """The end of a file may state any size; this file has 256 MiB, and takes no place on disk."""
    size = 256 * 1_048_576
    with (tmp_path / "a.zip").open("wb") as file:
        file.truncate(size)
        file.seek(size)
        file.write(b"PK\5\6" + struct.pack("<HHHHIIH", 0, 0, 1, 1, size, 0, 0))
    tracemalloc.start()
    try:
        with pytest.raises(InvalidArgument, match="directory has 268,435,456 bytes"):
            await rehearsed(tmp_path / "a.zip")
        assert tracemalloc.get_traced_memory()[1] < size // 8
    finally:
        tracemalloc.stop()


async def test_threads_of_a_checkpointer_need_its_package(tmp_path: Path) -> None:
    """They are recognised by their tables; without the package the report names it."""
    path = tmp_path / "x.db"
    with sqlite3.connect(path) as database:
        database.execute("create table checkpoints (thread_id text)")
        database.execute("create table writes (thread_id text)")
    database.close()

    assert _kind(path) == "langgraph"
    if importlib.util.find_spec("langgraph") is None:
        report = await import_sources(None, LOCAL_OWNER, [path])
        assert "install langgraph-checkpoint-sqlite" in report.problems[0]
