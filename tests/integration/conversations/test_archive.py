"""Exports with their files, and imports: exact, repeatable, and also where the export came from."""

from __future__ import annotations

import hashlib
import json
import subprocess
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest

from exai.cli.archive import open_text, read_parts
from exai.conversations import AppendRequest
from exai.conversations.formats import ExportItem, Format, read_lines, read_markdown
from exai.conversations.transfer import EMBEDDED_BYTES, ImportProgress
from exai.db.contents import PART_BYTES
from exai.db.driver.address import parse_address
from exai.db.driver.pool import connect
from exai.db.filters import ListFilter
from exai.errors import Conflict, InvalidArgument
from exai.files.loading import FileContent
from exai.models import LOCAL_OWNER, ContinuationId, Message, NewMessage, Owner
from tests.integration.conversations.conftest import Rig, open_rig
from tests.integration.encryption.conftest import store_of
from tests.support.commands import run_exai

OTHER = Owner("other")
KINDS: tuple[Format, ...] = ("jsonl", "markdown")
BINARY = hashlib.shake_128(b"seed").digest(2 * PART_BYTES + 12_345)
CONTENTS = {
    "notes.md": b"# Notes\n\n<!-- exai message {} -->\n{}\n",
    "dos.txt": b"one\r\ntwo\r",
    "empty": b"",
    "big.bin": BINARY,
    "latin.txt": "café".encode("cp1252"),
    "mark.txt": b"\xef\xbb\xbfmarked",
}


@pytest.fixture(params=[(), ("k1",)], ids=["plain", "encrypted"])
async def rig(postgres_url: str, redis_url: str, tmp_path: Path, request: pytest.FixtureRequest) -> AsyncIterator[Rig]:
    """Directly on the database, without and with encryption."""
    async with open_rig(postgres_url, redis_url, tmp_path / "data", store=store_of(*request.param)) as opened:
        yield opened


async def stored(rig: Rig, *contents: str, title: str | None = None) -> ContinuationId:
    messages = [NewMessage("user", content) for content in contents]
    return (await rig.app.conversations.append(AppendRequest(LOCAL_OWNER, messages, title=title))).continuation_id


async def exported(rig: Rig, name: ContinuationId, kind: Format = "jsonl", owner: Owner = LOCAL_OWNER) -> str:
    return "".join([part async for part in rig.app.transfer.export(owner, name, kind)])


def parts(text: str, kind: Format = "jsonl") -> Iterator[ExportItem]:
    return read_lines(text.split("\n")) if kind == "jsonl" else read_markdown(text)


async def imported(
    rig: Rig, text: str, kind: Format = "jsonl", owner: Owner = LOCAL_OWNER, as_name: str | None = None
) -> ImportProgress:
    name = ContinuationId(as_name) if as_name else None
    return [each async for each in rig.app.transfer.import_text(owner, parts(text, kind), as_name=name)][-1]


async def messages_of(rig: Rig, name: ContinuationId, owner: Owner = LOCAL_OWNER) -> tuple[Message, ...]:
    return (await rig.app.conversations.read(owner, name, limit=500)).messages


async def with_files(rig: Rig) -> ContinuationId:
    files = await rig.app.files.put(LOCAL_OWNER, [FileContent(name, data) for name, data in CONTENTS.items()])
    first = await rig.app.conversations.append(
        AppendRequest(LOCAL_OWNER, [NewMessage("user", "see")], files=[file.id for file in files[:4]])
    )
    await rig.app.files.link(LOCAL_OWNER, first.continuation_id, [file.id for file in files])
    return first.continuation_id


@pytest.mark.parametrize("kind", KINDS)
async def test_files_go_along_and_come_back_exact(rig: Rig, kind: Format) -> None:
    """Under other ids where there are none yet, and the messages name those; a second import changes nothing."""
    name = await with_files(rig)
    text = await exported(rig, name, kind)
    progress = await imported(rig, text, kind, OTHER)
    assert (progress.stored, progress.notes) == (1, ())
    listed = (await rig.app.files.list(OTHER, continuation_id=name)).files
    assert {file.name: (await rig.app.files.read(OTHER, file.id))[1] for file in listed} == CONTENTS
    originals = {file.id for file in (await rig.app.files.list(LOCAL_OWNER)).files}
    assert originals.isdisjoint(file.id for file in listed)
    (message,) = await messages_of(rig, name, OTHER)
    by_id = {file.id: file.name for file in listed}
    assert [by_id[file_id] for file_id in message.metadata["file_ids"]] == list(CONTENTS)[:4]
    assert (await imported(rig, text, kind, OTHER)).stored == 0
    assert len((await rig.app.files.list(OTHER)).files) == len(CONTENTS)
    assert (await imported(rig, text, kind, as_name="copy")).stored == 1
    assert {file.id for file in (await rig.app.files.list(LOCAL_OWNER)).files} == originals


async def test_deleted_file_comes_back_with_the_import(rig: Rig) -> None:
    """It has another id then, and its message names it."""
    name = await with_files(rig)
    text = await exported(rig, name)
    for file in (await rig.app.files.list(LOCAL_OWNER)).files:
        await rig.app.files.delete(LOCAL_OWNER, file.id)
    await imported(rig, text, as_name="copy")
    listed = (await rig.app.files.list(LOCAL_OWNER, continuation_id=ContinuationId("copy"))).files
    (message,) = await messages_of(rig, ContinuationId("copy"))
    assert set(message.metadata["file_ids"]) < {file.id for file in listed}


@pytest.mark.parametrize("kind", KINDS)
async def test_files_with_names_of_an_older_system_come_back(rig: Rig, postgres_url: str, kind: Format) -> None:
    """It gave none, or what no line can show; one that has no bytes here is only named."""
    name = await with_files(rig)
    ids = {file.name: file.id for file in (await rig.app.files.list(LOCAL_OWNER, continuation_id=name)).files}
    connection = await connect(parse_address(postgres_url), timeout_s=5.0)
    await connection.execute(
        "update files set name = case id when $1::uuid then null when $2::uuid then e'a\\nb' else repeat('x', 300) end,"
        " media_type = repeat('t', 300)",
        ids["empty"],
        ids["notes.md"],
    )
    await connection.close()
    await imported(rig, await exported(rig, name, kind), kind, OTHER)
    listed = (await rig.app.files.list(OTHER, continuation_id=name)).files
    assert {file.name for file in listed} == {"file", "ab", "x" * 255}
    assert {file.media_type for file in listed} == {"application/octet-stream"}
    assert {(await rig.app.files.read(OTHER, file.id))[1] for file in listed} == set(CONTENTS.values())


async def test_conversation_without_files_costs_an_export_nothing_for_them(rig: Rig) -> None:
    """One round trip a page, as before there were any."""
    name = await stored(rig, "a", "b")
    rig.reset()
    await exported(rig, name)
    assert rig.database.round_trips == 1


@pytest.mark.parametrize("kind", KINDS)
async def test_damaged_files_are_refused_by_their_place(rig: Rig, kind: Format) -> None:
    """A digest does not agree, a part is missing, or the end."""
    name = await with_files(rig)
    text = await exported(rig, name, kind)
    mark = '"offset": ' if kind == "markdown" else '"offset":'
    begin = text.index(f"{mark}{PART_BYTES}")
    line = text.rindex("\n<!--" if kind == "markdown" else "\n", 0, begin) + 1
    end = text.index("\n<!-- exai file" if kind == "markdown" else "\n", begin) + 1
    damaged: dict[str, Callable[[], str]] = {
        "missing": lambda: text[:line] + text[end:],
        "twice": lambda: text[:end] + text[line:end] + text[end:],
        "changed": lambda: text.replace(hashlib.sha256(CONTENTS["dos.txt"]).hexdigest(), "0" * 64),
    }
    for make in damaged.values():
        with pytest.raises(InvalidArgument, match=r"line \d+"):
            await imported(rig, make(), kind, OTHER)
    assert (await rig.app.conversations.list(OTHER)).conversations == ()


async def test_parts_for_a_model_carry_small_files_and_name_the_others(rig: Rig) -> None:
    """The joined parts can be imported beside the contents; elsewhere they name the missing files."""
    name = await with_files(rig)
    part = await rig.app.transfer.export_part(LOCAL_OWNER, name, "jsonl", after_seq=0, budget_bytes=1_000)
    text = part.header + part.text
    assert len(text) < EMBEDDED_BYTES * 2
    assert "# Notes" in text
    notes = (await imported(rig, text, as_name="copy")).notes
    copied = (await rig.app.files.list(LOCAL_OWNER, continuation_id=ContinuationId("copy"))).files
    # The digest in the text is not that of an encrypted content.
    missing = {"big.bin"} if rig.app.database.codec.is_on else set()
    assert len(notes) == len(missing)
    assert {file.name for file in copied} == set(CONTENTS) - missing
    (note,) = (await imported(rig, text, owner=OTHER)).notes
    assert "big.bin" in note


@pytest.mark.parametrize("kind", KINDS)
async def test_export_can_be_imported_where_it_came_from(rig: Rig, kind: Format) -> None:
    """All of it is there: nothing is stored, nothing changes, and that is no error. Also after it has grown."""
    name = await stored(rig, *(f"{n}" for n in range(700)), title="T")
    text = await exported(rig, name, kind)
    before = await rig.app.conversations.read(LOCAL_OWNER, name)
    progress = await imported(rig, text, kind)
    assert (progress.seen, progress.stored, progress.restored) == (700, 0, False)
    assert (await rig.app.conversations.read(LOCAL_OWNER, name)).conversation == before.conversation
    await rig.app.conversations.append(AppendRequest(LOCAL_OWNER, [NewMessage("user", "later")], name))
    assert (await imported(rig, text, kind)).stored == 0
    assert [m.content for m in (await messages_of(rig, name))[-2:]] == ["699", "later"]


async def test_deleted_conversation_is_brought_back_by_its_export(rig: Rig) -> None:
    """Whether it was made here or imported; every reader sees it again."""
    for name in (await stored(rig, "one", "two"), ContinuationId("copy")):
        text = await exported(rig, await stored(rig, "one", "two") if name == "copy" else name)
        if name == "copy":
            await imported(rig, text, as_name="copy")
        await messages_of(rig, name)
        await rig.app.conversations.delete(LOCAL_OWNER, name)
        progress = await imported(rig, text, as_name=name)
        assert (progress.stored, progress.restored) == (0, True)
        assert [message.content for message in await messages_of(rig, name)] == ["one", "two"]
        assert name in [each.continuation_id for each in (await rig.app.conversations.list(LOCAL_OWNER)).conversations]
        again = await imported(rig, text, as_name=name)
        assert (again.stored, again.restored) == (0, False)


async def test_import_adds_what_an_older_copy_lacks(rig: Rig) -> None:
    """A database that was restored from a backup: the messages that it lost come back, once."""
    name = await stored(rig, "one", "two")
    await imported(rig, await exported(rig, name), as_name="copy")
    await rig.app.conversations.append(AppendRequest(LOCAL_OWNER, [NewMessage("user", "three")], name))
    text = await exported(rig, name)
    assert (await imported(rig, text, as_name="copy")).stored == 1
    assert (await imported(rig, text, as_name="copy")).stored == 0
    assert [message.content for message in await messages_of(rig, ContinuationId("copy"))] == ["one", "two", "three"]


async def test_fork_can_be_imported_where_it_came_from(rig: Rig) -> None:
    """Most of its messages are those of another conversation."""
    name = await stored(rig, "one", "two", "three")
    fork = (await rig.app.conversations.fork(LOCAL_OWNER, name, at_seq=2)).continuation_id
    await rig.app.conversations.append(AppendRequest(LOCAL_OWNER, [NewMessage("user", "other")], fork))
    second = (await rig.app.conversations.fork(LOCAL_OWNER, fork)).continuation_id
    for each in (fork, second):
        assert (await imported(rig, await exported(rig, each))).stored == 0
        assert [message.content for message in await messages_of(rig, each)] == ["one", "two", "other"]
    other = (await exported(rig, fork)).replace('"two"', '"too"')
    with pytest.raises(Conflict):
        await imported(rig, other)


async def test_other_messages_under_the_same_name_are_a_conflict(rig: Rig) -> None:
    """Two conversations are never mixed."""
    name = await stored(rig, "mine", "second")
    text = await exported(rig, name)
    for other in (text.replace('"second"', '"yours"'), text.replace('"role":"user"', '"role":"assistant"')):
        with pytest.raises(Conflict) as caught:
            await imported(rig, other)
        assert caught.value.reason == "exists"
    listed = (await rig.app.conversations.list(LOCAL_OWNER)).conversations
    assert [each.continuation_id for each in listed] == [name]


async def test_other_messages_under_a_deleted_name_are_another_conversation(rig: Rig) -> None:
    """The deleted one is not brought back under the words of another, and can still be restored."""
    name = await stored(rig, "mine", "second")
    text = await exported(rig, name)
    await rig.app.conversations.delete(LOCAL_OWNER, name)
    await imported(rig, text.replace('"second"', '"yours"'))
    page = await rig.app.conversations.read(LOCAL_OWNER, name)
    assert [message.content for message in page.messages] == ["mine", "yours"]
    with pytest.raises(Conflict) as caught:
        await imported(rig, text)
    assert caught.value.reason == "exists"
    deleted = (await rig.app.conversations.list(LOCAL_OWNER, only=ListFilter(deleted=True))).conversations
    former = await rig.app.conversations.restore(LOCAL_OWNER, deleted[0].continuation_id)
    page = await rig.app.conversations.read(LOCAL_OWNER, former.continuation_id)
    assert [message.content for message in page.messages] == ["mine", "second"]


@pytest.fixture
def exai(rig: Rig, postgres_url: str, tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[bytes]]:
    """The command, with the keys of the test and some variables."""
    settings = {"EXAI_DATABASE__URL": postgres_url, "EXAI_CACHE__URL": "off", "EXAI_DATA_DIR": str(tmp_path / "data")}
    if (keys := rig.app.settings.store.keys) is not None:
        settings["EXAI_STORE__KEYS"] = keys.get_secret_value()

    def run(*arguments: str, given: bytes = b"", **variables: str) -> subprocess.CompletedProcess[bytes]:
        return run_exai(*arguments, settings={**settings, **variables}, cwd=tmp_path, given=given)

    return run


@pytest.mark.parametrize("encoding", ["cp1252", "gbk", "ascii"])
async def test_export_is_independent_of_the_terminals_encoding(
    rig: Rig, exai: Callable[..., subprocess.CompletedProcess[bytes]], encoding: str
) -> None:
    """It is a file for programs: UTF-8 with line feeds, and it can be piped into an import."""
    name = await stored(rig, "“smart”, 数据库, café, 😀")
    done = exai("export", name, "-", PYTHONIOENCODING=encoding)
    assert done.returncode == 0, done.stderr
    assert done.stdout.decode() == await exported(rig, name)
    back = exai("import", "-", "--as", "copy", given=done.stdout, PYTHONIOENCODING=encoding)
    assert b"1 of 1 messages stored" in back.stdout, back.stderr
    assert [each.content for each in await messages_of(rig, ContinuationId("copy"))] == ["“smart”, 数据库, café, 😀"]


VARIANTS: dict[str, Callable[[str], bytes]] = {
    "mark": lambda text: b"\xef\xbb\xbf" + text.encode(),
    "windows": lambda text: text.replace("\n", "\r\n").encode(),
    "mark and windows": lambda text: b"\xef\xbb\xbf" + text.replace("\n", "\r\n").encode(),
    "utf-16": lambda text: text.replace("\n", "\r\n").encode("utf-16"),
    "utf-16-le": lambda text: text.replace("\n", "\r\n").encode("utf-16-le"),
    "utf-16-be": lambda text: text.encode("utf-16-be"),
    "mark and utf-16-be": lambda text: b"\xfe\xff" + text.encode("utf-16-be"),
}
"""As editors and shells write a text again; PowerShell's redirection makes UTF-16."""


@pytest.mark.parametrize("kind", KINDS)
async def test_text_that_an_editor_or_a_shell_has_written_again_is_read(rig: Rig, tmp_path: Path, kind: Format) -> None:
    """With a byte order mark, line ends of Windows, or in UTF-16: the same parts."""
    text = await exported(rig, await stored(rig, "smart “quotes”\nand 数据库", "two"), kind)
    wanted = list(parts(text, kind))
    for name, make in VARIANTS.items():
        (tmp_path / "variant").write_bytes(make(text))
        with open_text(str(tmp_path / "variant")) as stream:
            assert list(read_parts(stream, kind)) == wanted, name


async def test_command_reads_what_a_shell_has_written_again(
    rig: Rig, exai: Callable[..., subprocess.CompletedProcess[bytes]], tmp_path: Path
) -> None:
    """From a file and from standard input."""
    name = await stored(rig, "smart “quotes”\nand 数据库", "two")
    (tmp_path / "16.md").write_bytes(VARIANTS["utf-16"](await exported(rig, name, "markdown")))
    piped = VARIANTS["mark and windows"](await exported(rig, name))
    for arguments, given in ((("16.md", "--as", "copy-1"), b""), (("-", "--as", "copy-2"), piped)):
        done = exai("import", *arguments, given=given)
        assert b"2 of 2 messages stored" in done.stdout, done.stderr
        contents = [each.content for each in await messages_of(rig, ContinuationId(arguments[2]))]
        assert contents == ["smart “quotes”\nand 数据库", "two"]


async def test_ordinary_mistakes_with_files_are_one_line(
    rig: Rig, exai: Callable[..., subprocess.CompletedProcess[bytes]], tmp_path: Path
) -> None:
    """Each has the problem and the cure, and leaves no file behind."""
    name = await stored(rig, "one")
    (tmp_path / "directory.jsonl").mkdir()
    (tmp_path / "latin.jsonl").write_bytes((await exported(rig, name)).replace("one", "café").encode("cp1252"))
    (tmp_path / "no-zone.jsonl").write_text(
        (await exported(rig, name)).split("\n")[0]
        + '\n\n{"seq":1,"role":"user","content":"x","created_at":"2026-01-02 03:04:05"}'
    )
    (tmp_path / "empty.jsonl").write_text("")
    (tmp_path / "binary.jsonl").write_bytes(b"\0\1\2\3" * 100)
    before = sorted(tmp_path.iterdir())
    for arguments, words in (
        (("import", "nothing.jsonl"), "there is no file"),
        (("import", "directory.jsonl"), "Is a directory"),
        (("import", "latin.jsonl"), "is not utf-8"),
        (("import", "no-zone.jsonl"), "line 3, created_at: has no time zone"),
        (("import", "binary.jsonl"), "line 1"),
        (("export", name, "directory.jsonl"), "is a directory"),
        (
            ("export", name, "x.pdf"),
            "FILE: x.pdf has an ending that is no format of exports; known are .jsonl (jsonl), .md",
        ),
        (("export", name, "x.json"), "say which format with --format"),
        (("export", name, "nowhere/x.jsonl"), "there is no directory nowhere"),
        (("export", "nobody", "x.jsonl"), "there is no conversation"),
    ):
        done = exai(*arguments)
        said = done.stderr.decode()
        assert done.returncode == 1, (arguments, said)
        assert words in said
        assert said.startswith("exai: ")
        assert said.count("\n") == 1, said
    assert sorted(tmp_path.iterdir()) == before


async def test_export_of_a_conversation_is_json_that_other_programs_read(rig: Rig) -> None:
    """Each line by itself; files before messages."""
    lines = [json.loads(line) for line in (await exported(rig, await with_files(rig))).splitlines()]
    kinds = ["conversation" if "format" in line else "message" if "role" in line else "file" for line in lines]
    assert kinds == ["conversation", *["file"] * (len(CONTENTS) + 2), "message"]
