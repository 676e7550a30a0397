"""Files in conversations: stored once, linked with the message, shown to the model as they were stored."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from exai.conversations import AppendRequest, ChatRequest
from exai.db.driver.pool import connect
from exai.errors import InvalidArgument, NotConfigured, NotFound
from exai.files.loading import FileContent, FilePath
from exai.files.origins import GivenFiles
from exai.files.paths import Roots
from exai.files.service import FileService
from exai.models import LOCAL_OWNER, ContinuationId, FileId, NewMessage, Owner, Unused
from exai.settings.load import FileSettings, LimitSettings
from tests.integration.conversations.conftest import Rig, open_rig


@pytest.fixture
async def rig(postgres_url: str, redis_url: str, tmp_path: Path) -> AsyncIterator[Rig]:
    """Directly on the database."""
    async with open_rig(postgres_url, redis_url, tmp_path) as opened:
        yield opened


async def put(rig: Rig, text: str, name: str = "notes.md") -> FileId:
    (file,) = await rig.app.files.put(LOCAL_OWNER, [FileContent(name, text.encode())])
    return file.id


def asked(rig: Rig) -> list[str]:
    return [part["content"] for part in rig.provider.chats[-1].body["messages"]]


async def test_model_reads_the_file_where_it_was_given_in_every_later_turn(rig: Rig) -> None:
    """The content as stored, once, at the message it came with."""
    file_id = await put(rig, "The launch code is 1234.")
    first = await rig.app.chat.run(ChatRequest(LOCAL_OWNER, "Read this.", files=[file_id]))
    await rig.app.chat.run(ChatRequest(LOCAL_OWNER, "And?", continuation_id=first.continuation_id))
    shown = asked(rig)
    assert "The launch code is 1234." in shown[0]
    assert shown[0].startswith("Read this.")
    assert sum(part.count("1234") for part in shown[:1] + shown[2:]) == 1
    listed = await rig.app.files.list(LOCAL_OWNER, continuation_id=first.continuation_id)
    assert [file.id for file in listed.files] == [file_id]


@pytest.mark.parametrize(
    ("name", "is_one"),
    [
        ("Screenshot 10.00.00\u202fAM.png", True),
        ("\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645.txt", True),
        ("\U0001f468\u200d\U0001f469\u200d\U0001f467 \u2764\ufe0f.txt", True),
        ("\U0001fae8 new emoji.txt", True),
        ("a\u00a0b", True),
        ("\u202egpj.exe", False),
        ("a\u2067b", False),
        ("a\nb", False),
        ("a\u2028b", False),
        ("a\x00b", False),
        ("\u200b\u200d", False),
        ("a" * 256, False),
    ],
)
async def test_name_of_a_file_is_one_line_in_any_script(rig: Rig, name: str, is_one: bool) -> None:
    """Joiners, variations and spaces of any width belong to it; what turns a line round or ends it does not."""
    if not is_one:
        with pytest.raises(InvalidArgument, match="is not a file name"):
            await put(rig, "text", name)
        return
    file = await rig.app.files.get(LOCAL_OWNER, await put(rig, "text", name))
    assert file.name == name


async def test_append_with_two_hundred_files_is_one_round_trip(rig: Rig) -> None:
    """Links travel in the statement of the append."""
    stored = await rig.app.files.put(LOCAL_OWNER, [FileContent(f"{n}.txt", f"{n}".encode()) for n in range(200)])
    rig.reset()
    appended = await rig.app.conversations.append(
        AppendRequest(LOCAL_OWNER, [NewMessage("user", "all of them")], files=[file.id for file in stored])
    )
    assert rig.database.round_trips == 1
    page = await rig.app.files.list(LOCAL_OWNER, continuation_id=appended.continuation_id, limit=200)
    assert {file.id for file in page.files} == {file.id for file in stored}


async def test_storing_many_files_is_one_round_trip(rig: Rig) -> None:
    """The bytes that are new, and one statement."""
    rig.reset()
    await rig.app.files.put(LOCAL_OWNER, [FileContent(f"{n}.txt", f"{n}".encode()) for n in range(50)])
    assert rig.database.round_trips == 1


async def test_files_of_earlier_turns_give_way_before_turns_do(rig: Rig) -> None:
    """Files crowded out half of the turns in an ancestor of this service."""
    model = "small-8k"
    big = await put(rig, "x" * 22_000, "big.txt")
    first = await rig.app.chat.run(ChatRequest(LOCAL_OWNER, "Read.", model=model, files=[big]))
    rig_id = first.continuation_id
    await rig.app.conversations.append(
        AppendRequest(LOCAL_OWNER, [NewMessage("user", "y" * 12_000), NewMessage("assistant", "noted")], rig_id)
    )
    await rig.app.chat.run(ChatRequest(LOCAL_OWNER, "So?", model=model, continuation_id=rig_id))
    shown = asked(rig)
    assert len(shown) == 5
    assert 'note="no room left for it"' in shown[0]
    assert "x" * 100 not in shown[0]


async def test_question_whose_own_files_do_not_fit_is_refused_by_name(rig: Rig) -> None:
    """Half a file would be worse than none."""
    big = await put(rig, "x" * 60_000)
    with pytest.raises(InvalidArgument) as caught:
        await rig.app.chat.run(ChatRequest(LOCAL_OWNER, "Read.", model="small-8k", files=[big]))
    assert caught.value.field == "files"
    assert rig.provider.chats == []


async def test_binary_and_deleted_files_are_named_and_not_shown(rig: Rig) -> None:
    """The prompt states that there is a file which the model cannot read."""
    (binary,) = await rig.app.files.put(LOCAL_OWNER, [FileContent("x.bin", b"\x00\x01")])
    gone = await put(rig, "gone")
    first = await rig.app.chat.run(ChatRequest(LOCAL_OWNER, "See.", files=[binary.id, gone]))
    await rig.app.files.delete(LOCAL_OWNER, gone)
    await rig.app.chat.run(ChatRequest(LOCAL_OWNER, "And?", continuation_id=first.continuation_id))
    assert "not text, 2 bytes" in asked(rig)[0]
    assert "deleted since" in asked(rig)[0]


async def test_files_of_others_do_not_exist(rig: Rig) -> None:
    """They cannot be read, linked or used in a question."""
    mine = await put(rig, "mine")
    other = Owner("other")
    with pytest.raises(NotFound):
        await rig.app.files.read(other, mine)
    with pytest.raises(NotFound):
        await rig.app.chat.run(ChatRequest(other, "Read.", files=[mine]))
    with pytest.raises(NotFound):
        await rig.app.files.delete(other, mine)


async def test_file_ids_that_a_writer_made_up_do_not_end_a_conversation(rig: Rig) -> None:
    """Metadata is the writer's own; every later turn reads it."""
    made_up = {"file_ids": ["not an id", 7, "urn:uuid:e8a10000-0000-4000-8000-000000000000"]}
    new = AppendRequest(LOCAL_OWNER, [NewMessage("user", "Before", metadata=made_up)])
    name = (await rig.app.conversations.append(new)).continuation_id
    await rig.app.chat.run(ChatRequest(LOCAL_OWNER, "And now?", continuation_id=name))
    assert asked(rig) == ["Before", "And now?"]


async def test_any_spelling_of_an_id_means_the_same_file(rig: Rig) -> None:
    """A UUID in capitals is the same id; an invalid one is refused before the statement."""
    file_id = await put(rig, "mine")
    assert (await rig.app.files.read(LOCAL_OWNER, FileId(file_id.upper())))[1] == b"mine"
    assert await rig.app.files.resolve(LOCAL_OWNER, [f"urn:uuid:{file_id}"]) == GivenFiles((file_id,))
    for name in ("nul\0", "x"):
        with pytest.raises((InvalidArgument, NotFound)):
            await rig.app.files.link(LOCAL_OWNER, ContinuationId(name), [file_id])


async def test_sweep_forgets_orphans_and_bytes_without_a_row_and_nothing_else(rig: Rig) -> None:
    """Linked files and young contents stay."""
    linked, orphan = await put(rig, "linked"), await put(rig, "orphan")
    await rig.app.conversations.append(AppendRequest(LOCAL_OWNER, [NewMessage("user", "x")], files=[linked]))
    assert await rig.app.files.sweep() == (0, Unused())
    await rig.app.files.delete(LOCAL_OWNER, orphan)
    assert await rig.app.files.sweep() == (0, Unused())
    await execute(
        rig, "update exai.contents set used_at = '2020-01-01'", "update exai.blobs set begun_at = '2020-01-01'"
    )
    assert await rig.app.files.sweep() == (0, Unused(1))
    assert (await rig.app.files.read(LOCAL_OWNER, linked))[1] == b"linked"


async def execute(rig: Rig, *statements: str) -> None:
    connection = await connect(rig.app.database.address, timeout_s=5)
    for statement in statements:
        await connection.execute(statement)
    await connection.close()


async def test_one_sweep_forgets_all_orphans(rig: Rig) -> None:
    """The function forgets a thousand at a time, so that no lock is held for long."""
    await execute(
        rig,
        "insert into files (name, used_at) select n::text, now() - interval '1 day' from generate_series(1, 2001) n",
    )
    assert await rig.app.files.sweep() == (2001, Unused())


@pytest.mark.parametrize("shape", ["outside", "link out", "up and out", "directory", "missing", "relative"])
async def test_path_outside_the_roots_is_refused(rig: Rig, tmp_path: Path, shape: str) -> None:
    """Symbolic links are resolved first, and the checked file is the one that is read."""
    root, secret = tmp_path / "root", tmp_path / "secret"
    root.mkdir()
    secret.write_text("secret")
    (root / "link").symlink_to(secret)
    paths = {
        "outside": str(secret),
        "link out": str(root / "link"),
        "up and out": f"{root}/../secret",
        "directory": str(root),
        "missing": str(root / "nothing"),
        "relative": "root/link",
    }
    files = rooted(rig, root)
    with pytest.raises(InvalidArgument) as caught:
        await files.put_paths(LOCAL_OWNER, [FilePath(paths[shape])])
    assert caught.value.field == "files[0]"


async def test_refusal_does_not_say_what_there_is_outside_the_roots(rig: Rig, tmp_path: Path) -> None:
    """The error does not reveal whether the file exists."""
    root, secret = tmp_path / "root", tmp_path / "secret"
    root.mkdir()
    secret.write_text("secret")
    (root / "link").symlink_to(secret)
    (root / "dangling").symlink_to(tmp_path / "nothing")
    files = rooted(rig, root)
    for there, missing in ((secret, tmp_path / "nothing"), (root / "link", root / "dangling")):
        with pytest.raises(InvalidArgument) as first:
            await files.put_paths(LOCAL_OWNER, [FilePath(str(there))])
        with pytest.raises(InvalidArgument) as second:
            await files.put_paths(LOCAL_OWNER, [FilePath(str(missing))])
        assert first.value.problem == second.value.problem.replace(str(missing), str(there))
        assert first.value.cure == second.value.cure


async def test_path_within_a_root_is_stored_and_without_roots_none_is(rig: Rig, tmp_path: Path) -> None:
    """Reading the daemon's machine has to be allowed first."""
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / "a.txt").write_text("allowed")
    path = str(tmp_path / "root" / "a.txt")
    (file,) = await rooted(rig, tmp_path / "root").put_paths(LOCAL_OWNER, [FilePath(path)])
    assert (await rig.app.files.read(LOCAL_OWNER, file.id))[1] == b"allowed"
    assert file.name == "a.txt"
    with pytest.raises(NotConfigured, match="EXAI_FILES__ROOTS"):
        await rig.app.files.put_paths(LOCAL_OWNER, [FilePath(path)])


def rooted(rig: Rig, root: Path) -> FileService:
    settings = FileSettings(roots=(root,))
    roots = Roots([root])
    return FileService(rig.app.files.repository, rig.app.files.blobs, settings, limits=LimitSettings(), roots=roots)
