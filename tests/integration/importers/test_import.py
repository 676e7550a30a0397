"""Imports of other programs' conversations into the store: once, in branches, exact, and again when they have grown."""

from __future__ import annotations

import base64
import json
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from exai.conversations import AppendRequest
from exai.errors import NotFound
from exai.importers.pipeline import ImportTarget, import_sources
from exai.importers.reading.bundles import open_bundle
from exai.importers.report import ImportReport
from exai.importers.watching import Mirror
from exai.models import LOCAL_OWNER, ContinuationId, Message, NewMessage, Owner
from tests.integration.conversations.conftest import Rig, open_rig
from tests.integration.encryption.conftest import store_of
from tests.support.sources import (
    PNG,
    chain,
    chatgpt,
    claude_line,
    codex_line,
    node,
    write_agents,
    write_json,
    write_lines,
)

BRANCHED = [
    *chain(["hi", "hello", "joke?", "one"]),
    node("other", "n2", "two", "assistant"),
    node("more", "other", "ha"),
]
OTHER = Owner("other")


@pytest.fixture(params=[(), ("k1",)], ids=["plain", "encrypted"])
async def rig(postgres_url: str, redis_url: str, tmp_path: Path, request: pytest.FixtureRequest) -> AsyncIterator[Rig]:
    """Directly on the database, without and with encryption."""
    async with open_rig(postgres_url, redis_url, tmp_path / "data", store=store_of(*request.param)) as opened:
        yield opened


async def imported(rig: Rig, *paths: Path, owner: Owner = LOCAL_OWNER, kind: Any = None) -> ImportReport:
    app = rig.app
    target = ImportTarget(app.conversations, app.files, app.transfer, app.settings.limits)
    return await import_sources(target, owner, paths, kind)


async def messages_of(rig: Rig, name: str, owner: Owner = LOCAL_OWNER) -> tuple[Message, ...]:
    return (await rig.app.conversations.read(owner, ContinuationId(name), limit=500, whole=True)).messages


async def contents_of(rig: Rig, name: str) -> list[str]:
    return [each.content for each in await messages_of(rig, name)]


async def names_of(rig: Rig, owner: Owner = LOCAL_OWNER) -> list[str]:
    page = await rig.app.conversations.list(owner, limit=200)
    return sorted(each.continuation_id for each in page.conversations)


async def test_branches_times_records_and_titles_are_stored(rig: Rig, tmp_path: Path) -> None:
    path = write_json(tmp_path / "conversations.json", [chatgpt("c", BRANCHED, "more", title="Jokes")])
    report = await imported(rig, path)
    messages = await messages_of(rig, "c")
    page = await rig.app.conversations.read(LOCAL_OWNER, ContinuationId("c"), limit=1)

    assert [each.content for each in messages] == ["hi", "hello", "joke?", "two", "ha"]
    assert await contents_of(rig, "c~n3") == ["hi", "hello", "joke?", "one"]
    assert (report.conversations, report.forks, report.messages, report.stored) == (1, 1, 6, 6)
    assert (page.conversation.title, page.conversation.tags) == ("Jokes", ("chatgpt",))
    assert page.conversation.created_at == datetime(2023, 11, 14, 22, 13, 20, 250_000, UTC)
    assert messages[1].created_at == datetime(2023, 11, 14, 22, 13, 21, tzinfo=UTC)
    assert json.loads(messages[0].item or "") == BRANCHED[0]
    assert messages[0].key == "n0"


async def test_the_same_source_again_stores_nothing(rig: Rig, tmp_path: Path) -> None:
    paths = [
        write_json(tmp_path / "conversations.json", [chatgpt("c", BRANCHED, "more"), chatgpt("d", chain(["x"]))]),
        write_lines(tmp_path / "s.jsonl", [claude_line("a", None, "hi"), claude_line("b", "a", "ho", "assistant")]),
        write_agents(tmp_path / "a.db", [("trip", {"role": "user", "content": "hi"})]),
    ]
    first, second = await imported(rig, *paths), await imported(rig, *paths)

    assert (first.stored, second.stored) == (10, 0)
    assert second.messages == first.messages
    assert await names_of(rig) == ["c", "c~n3", "d", "session-1", "trip"]
    assert await contents_of(rig, "c") == ["hi", "hello", "joke?", "two", "ha"]


async def test_a_grown_source_adds_only_what_is_new(rig: Rig, tmp_path: Path) -> None:
    """The current branch goes on, another one is begun, and a line is added."""
    path = tmp_path / "conversations.json"
    await imported(rig, write_json(path, [chatgpt("c", BRANCHED, "more")]))
    grown = [*BRANCHED, node("n9", "more", "again", "user"), node("edit", "n0", "hey", "assistant")]
    report = await imported(rig, write_json(path, [chatgpt("c", grown, "n9"), chatgpt("d", chain(["x"]))]))

    assert report.stored == 3
    assert await contents_of(rig, "c") == ["hi", "hello", "joke?", "two", "ha", "again"]
    assert await contents_of(rig, "c~edit") == ["hi", "hey"]
    assert await names_of(rig) == ["c", "c~edit", "c~n3", "d"]


async def test_another_current_branch_becomes_a_fork_and_changes_nothing(rig: Rig, tmp_path: Path) -> None:
    path = tmp_path / "conversations.json"
    await imported(rig, write_json(path, [chatgpt("c", BRANCHED[:4], "n3")]))
    for _ in range(2):
        report = await imported(rig, write_json(path, [chatgpt("c", BRANCHED, "more")]))

    assert report.stored == 0
    assert await contents_of(rig, "c") == ["hi", "hello", "joke?", "one"]
    assert await contents_of(rig, "c~other") == ["hi", "hello", "joke?", "two", "ha"]
    assert await names_of(rig) == ["c", "c~other"]
    grown = [*BRANCHED, node("n9", "more", "again"), node("n8", "n3", "old goes on")]
    report = await imported(rig, write_json(path, [chatgpt("c", grown, "n9")]))

    assert report.stored == 2
    assert await contents_of(rig, "c~other") == ["hi", "hello", "joke?", "two", "ha", "again"]
    assert await contents_of(rig, "c") == ["hi", "hello", "joke?", "one", "old goes on"]


async def test_a_conversation_that_goes_on_here_is_left_as_it_is(rig: Rig, tmp_path: Path) -> None:
    path = write_lines(tmp_path / "s.jsonl", [claude_line("a", None, "hi")])
    await imported(rig, path)
    mine = NewMessage("user", "my own question")
    await rig.app.conversations.append(AppendRequest(LOCAL_OWNER, [mine], ContinuationId("session-1")))
    write_lines(path, [claude_line("a", None, "hi"), claude_line("b", "a", "ho", "assistant")])
    for stored in (1, 0):
        report = await imported(rig, path)
        assert report.stored == stored

    assert await contents_of(rig, "session-1") == ["hi", "my own question"]
    assert await contents_of(rig, "session-1~b") == ["hi", "ho"]


async def test_a_line_that_was_damaged_before_is_added(rig: Rig, tmp_path: Path) -> None:
    lines: list[Any] = [claude_line(name, None, name) for name in ("a", "b", "c")]
    path = write_lines(tmp_path / "s.jsonl", [lines[0], json.dumps(lines[1])[:-5], lines[2]])
    first = await imported(rig, path)
    second = await imported(rig, write_lines(path, lines))

    assert (first.stored, first.damaged, second.stored) == (2, 1, 1)
    assert first.problems == ["s.jsonl, line 2: is not JSON"]
    assert sorted(await contents_of(rig, "session-1")) == ["a", "b", "c"]


async def test_an_interrupted_import_is_continued(rig: Rig, tmp_path: Path) -> None:
    lines = [claude_line(f"m{place}", None, f"text {place}") for place in range(700)]
    path = write_lines(tmp_path / "s.jsonl", lines)
    app = rig.app
    target = ImportTarget(app.conversations, app.files, app.transfer, app.settings.limits)

    class Interruption(Exception):
        pass

    def stop(report: ImportReport) -> None:
        if report.stored:
            raise Interruption

    with pytest.raises(Interruption):
        await import_sources(target, LOCAL_OWNER, [path], None, stop)
    before = len(await messages_of(rig, "session-1"))
    report = await imported(rig, path)
    last = await app.conversations.read(LOCAL_OWNER, ContinuationId("session-1"), limit=1)

    assert 0 < before < 700
    assert report.stored == 700 - before
    assert last.conversation.last_seq == 700


async def test_images_are_stored_once_and_records_stay_exact(rig: Rig, tmp_path: Path) -> None:
    """The same image in two sessions and many lines is one content, also inside the records."""
    image = base64.b64encode(base64.b64decode(PNG) + b"\0" * 60_000).decode()
    part = {"type": "input_image", "image_url": f"data:image/png;base64,{image}"}
    lines = [codex_line("session_meta", {"id": "s"})]
    lines += [codex_line("response_item", {"type": "message", "role": "user", "content": [part]}, s) for s in range(20)]
    path = write_lines(tmp_path / "rollout-1.jsonl", lines)
    other = write_lines(tmp_path / "s.jsonl", [claude_line("a", None, [
        {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": image}}])])  # fmt: skip
    report = await imported(rig, path, other)
    messages = await messages_of(rig, "s")
    files = (await rig.app.files.list(LOCAL_OWNER)).files

    assert report.damaged == 0
    assert len({each.sha256 for each in files if each.size_bytes > 50_000}) == 1
    assert [json.loads(each.item or "") for each in messages] == lines[1:]
    assert all("base64" not in each.content for each in messages)
    assert len(messages[0].metadata["file_ids"]) >= 1


async def test_an_imported_conversation_is_exported_and_imported_by_another_owner(rig: Rig, tmp_path: Path) -> None:
    """With its images, small and large, and its exact records."""
    large = base64.b64encode(base64.b64decode(PNG) + b"\0" * 60_000).decode()
    parts = [
        {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": data}}
        for data in (PNG, large)
    ]
    await imported(rig, write_lines(tmp_path / "s.jsonl", [claude_line("a", None, parts)]))
    text = [part async for part in rig.app.transfer.export(LOCAL_OWNER, ContinuationId("session-1"))]
    (tmp_path / "export.jsonl").write_text("".join(text), "utf-8")
    report = await imported(rig, tmp_path / "export.jsonl", owner=OTHER)
    (message,) = await messages_of(rig, "session-1", OTHER)
    files = await rig.app.files.get_all(OTHER, message.metadata["file_ids"])

    assert report.problems == []
    assert json.loads(message.item or "") == claude_line("a", None, parts)
    assert [(await rig.app.files.read(OTHER, each.id))[1][:8] for each in files] == [b"\x89PNG\r\n\x1a\n"] * 2


async def test_texts_beyond_the_limit_become_files_and_come_back(rig: Rig, tmp_path: Path) -> None:
    output = "".join(f"line {place}\n" for place in range(700_000))
    lines = [claude_line("a", None, "go"), claude_line("b", "a", [{"type": "tool_result", "content": output}])]
    report = await imported(rig, write_lines(tmp_path / "s.jsonl", lines))
    messages = await messages_of(rig, "session-1")

    assert report.problems == []
    assert messages[-1].content == output
    assert json.loads(messages[-1].item or "") == lines[1]


async def test_characters_that_the_store_refuses_are_replaced_in_the_text_only(rig: Rig, tmp_path: Path) -> None:
    path = tmp_path / "s.jsonl"
    path.write_text(json.dumps(claude_line("a\0b", None, "nul \0 and \ud800")) + "\n")
    report = await imported(rig, path)
    (message,) = await messages_of(rig, "session-1")

    assert report.problems == []
    assert message.content == "nul \u2400 and \ufffd"
    assert (message.item or "") + "\n" == path.read_text()


async def test_a_title_that_comes_late_is_given_to_a_long_session(rig: Rig, tmp_path: Path) -> None:
    item = {"type": "message", "role": "user", "content": "question"}
    lines = [codex_line("session_meta", {"id": "s"})]
    lines += [codex_line("response_item", {**item, "id": str(place)}, place % 60) for place in range(450)]
    lines.append(codex_line("event_msg", {"type": "thread_name_updated", "thread_name": "Named late"}))
    await imported(rig, write_lines(tmp_path / "rollout-1.jsonl", lines))
    page = await rig.app.conversations.read(LOCAL_OWNER, ContinuationId("s"), limit=1)

    assert (page.conversation.title, page.conversation.last_seq) == ("Named late", 450)


async def test_owners_do_not_see_each_others_imports(rig: Rig, tmp_path: Path) -> None:
    path = write_lines(tmp_path / "s.jsonl", [claude_line("a", None, "hi")])
    await imported(rig, path, owner=OTHER)

    assert await names_of(rig) == []
    assert await names_of(rig, OTHER) == ["session-1"]
    with pytest.raises(NotFound):
        await messages_of(rig, "session-1")


async def test_a_mirror_imports_what_changes_and_keeps_what_is_deleted(rig: Rig, tmp_path: Path) -> None:
    app = rig.app
    target = ImportTarget(app.conversations, app.files, app.transfer, app.settings.limits)
    root = tmp_path / "projects"
    path = write_lines(root / "-work" / "session-1.jsonl", [claude_line("a", None, "hi")])
    mirror = Mirror(target, LOCAL_OWNER, [root], "claude-code")
    first, idle = await mirror.once(), await mirror.once()
    write_lines(path, [claude_line("a", None, "hi"), claude_line("b", "a", "ho", "assistant")])
    second = await mirror.once()
    path.unlink()
    gone = await mirror.once()

    assert [each.messages for each in (first, idle, second, gone)] == [1, 0, 2, 0]
    assert second.stored == 1
    assert await contents_of(rig, "session-1") == ["hi", "ho"]


async def test_an_import_of_several_exported_conversations_is_read(rig: Rig, tmp_path: Path) -> None:
    app = rig.app
    for name in ("one", "two"):
        request = AppendRequest(OTHER, [NewMessage("user", name)], ContinuationId(name), create=True)
        await app.conversations.append(request)
    texts = [part for name in ("one", "two") async for part in app.transfer.export(OTHER, ContinuationId(name))]
    (tmp_path / "all.jsonl").write_text("{}\n" + "".join(texts), "utf-8")
    first, second = [await imported(rig, tmp_path / "all.jsonl") for _ in range(2)]

    assert (first.conversations, first.stored, second.stored) == (2, 2, 0)
    assert first.damaged == 1
    assert await names_of(rig) == ["one", "two"]


async def test_links_out_of_a_directory_are_reported_and_not_followed(rig: Rig, tmp_path: Path) -> None:
    """Another user of the directory could make a link to any file that this process may read."""
    (tmp_path / "watched" / "inner").mkdir(parents=True)
    secret = write_json(tmp_path / "secret.json", [chatgpt("secret", chain(["hidden"]))])
    real = write_json(tmp_path / "watched" / "inner" / "real.json", [chatgpt("real", chain(["shown"]))])
    (tmp_path / "watched" / "out.json").symlink_to(secret)
    (tmp_path / "watched" / "up.json").symlink_to(Path("..", "secret.json"))
    (tmp_path / "watched" / "own.json").symlink_to(real)
    (tmp_path / "watched" / "program").symlink_to("/bin/sh")
    (tmp_path / "watched" / "elsewhere").symlink_to(tmp_path)

    report = await imported(rig, tmp_path / "watched")
    assert await names_of(rig) == ["real"]
    leads_out = "is a link out of the directory, which is not followed"
    assert report.problems == [f"watched/out.json: {leads_out}", f"watched/up.json: {leads_out}"]
    # The directory itself may be given by a link.
    (tmp_path / "link").symlink_to(tmp_path / "watched")
    assert (await imported(rig, tmp_path / "link")).problems == [
        f"link/out.json: {leads_out}",
        f"link/up.json: {leads_out}",
    ]


async def test_a_mirror_reports_a_link_once_and_refuses_a_file_that_becomes_one(rig: Rig, tmp_path: Path) -> None:
    """Also when it changes between the look through the directory and the reading."""
    app, watched = rig.app, tmp_path / "watched"
    watched.mkdir()
    secret = write_json(tmp_path / "secret.json", [chatgpt("secret", chain(["hidden"]))])
    file = write_json(watched / "a.json", [chatgpt("a", chain(["one"]))])
    target = ImportTarget(app.conversations, app.files, app.transfer, app.settings.limits)
    mirror = Mirror(target, LOCAL_OWNER, [watched], None)
    assert (await mirror.once()).problems == []
    with open_bundle(watched) as bundle:
        assert bundle.names() == ["a.json"]
        file.unlink()
        file.symlink_to(secret)
        with pytest.raises(PermissionError, match="is a link out of the directory"):
            bundle.open_raw("a.json")
    assert len((await mirror.once()).problems) == 1
    assert (await mirror.once()).problems == []
    file.unlink()
    await mirror.once()
    file.symlink_to(secret)
    assert len((await mirror.once()).problems) == 1
    assert await names_of(rig) == ["a"]
