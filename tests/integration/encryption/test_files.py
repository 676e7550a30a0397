"""Contents of files, and what is taken out of messages, are encrypted in every store, and read as before."""

from __future__ import annotations

import base64
import os
from pathlib import Path

import pytest

from exai.conversations import AppendRequest
from exai.db.rekey_contents import FIRST_CONTENT, ContentRekeyRepository
from exai.errors import BlobError, ContentUnreadable
from exai.files.loading import FileContent
from exai.files.moving import move
from exai.files.rekeying import ContentRekeying
from exai.files.upkeep import verify
from exai.models import LOCAL_OWNER, NewMessage, Owner
from tests.integration.conversations.conftest import Rig
from tests.integration.encryption.conftest import OpenRig
from tests.support.migrations import run, value

CANARY = b"zanzibar"
LONG = b"".join(b"zanzibar %07d\n" % number for number in range(200_000))
"""More than two parts."""


@pytest.mark.parametrize("data", [b"", CANARY, LONG, os.urandom(1_048_576)], ids=["empty", "short", "long", "one part"])
async def test_content_is_read_whole_and_in_parts(rig: Rig, data: bytes) -> None:
    """Sizes, digests and parts are those of the content."""
    files = rig.app.files
    (file,) = await files.put(LOCAL_OWNER, [FileContent("a.txt", data)])
    assert file.size_bytes == len(data)
    stored, whole = await files.read(LOCAL_OWNER, file.id)
    assert (whole, stored.sha256) == (data, file.sha256)
    for offset, size in ((0, 10), (1_048_570, 20), (len(data) - 5, 5)):
        if 0 <= offset < len(data):
            assert await files.read_bytes(LOCAL_OWNER, stored, offset, size) == data[offset : offset + size]
    if data is LONG:
        part = await files.read_part(LOCAL_OWNER, file.id, 2_000_000, 160)
        assert part.text == LONG[2_000_000:2_000_160].decode()
        lines = await files.read_lines(LOCAL_OWNER, file.id, 150_000, 1, 100)
        assert lines.text == "zanzibar 0149999\n"


async def test_equal_content_is_stored_once_for_an_owner_and_not_shared(rig: Rig, postgres_url: str) -> None:
    """The digest of one owner's stored form tells nothing about another's."""
    for owner in (LOCAL_OWNER, Owner("other")):
        for name in ("a.txt", "b.txt"):
            await rig.app.files.put(owner, [FileContent(name, CANARY)])
    assert await value(postgres_url, "select count(*) from exai.contents") == 2
    assert await value(postgres_url, "select count(distinct sha256) from exai.contents") == 2


async def test_no_part_holds_the_content(rig: Rig, postgres_url: str) -> None:
    """Neither of a file nor of a large image in a message; what was taken out is put back."""
    await rig.app.files.put(LOCAL_OWNER, [FileContent("a.txt", LONG)])
    image = b"\x89PNG\r\n\x1a\n" + CANARY * 10_000
    text = f"see data:image/png;base64,{base64.b64encode(image).decode()} there"
    name = (await rig.app.conversations.append(AppendRequest(LOCAL_OWNER, [NewMessage("user", text)]))).continuation_id
    again = await rig.app.conversations.append(AppendRequest(LOCAL_OWNER, [NewMessage("user", text)], name))
    assert again.last_seq == 2
    page = await rig.app.conversations.read(LOCAL_OWNER, name, whole=True)
    assert [message.content for message in page.messages] == [text, text]
    assert await value(postgres_url, "select count(*) from exai.contents") == 2
    held = f"select count(*) from exai.blob_parts where position('\\x{CANARY.hex()}'::bytea in data) > 0"
    assert await value(postgres_url, held) == 0


async def test_changed_or_exchanged_content_is_named(rig: Rig, postgres_url: str) -> None:
    """It is bound to the digest in the row, and its parts to their places."""
    (file,) = await rig.app.files.put(LOCAL_OWNER, [FileContent("a.txt", LONG)])
    swap = "update exai.blob_parts p set data = o.data from exai.blob_parts o where p.number + o.number = 1"
    await run(postgres_url, swap)
    with pytest.raises((ContentUnreadable, BlobError), match="changed"):
        await rig.app.files.read(LOCAL_OWNER, file.id)


async def test_encrypted_contents_are_verified_and_moved(rig: Rig, tmp_path: Path) -> None:
    """Without their keys, because their names are digests of the stored form."""
    files = rig.app.files
    (file,) = await files.put(LOCAL_OWNER, [FileContent("a.txt", LONG)])
    moved = [each.problem async for each in move(files, ["postgres"], files.blobs.named("directory"))]
    assert moved == [None]
    assert [each.problem async for each in verify(files, ["directory"])] == [None]
    held = [path for path in (tmp_path / "files").rglob("*") if path.is_file() and CANARY in path.read_bytes()]
    assert held == []
    assert (await files.read(LOCAL_OWNER, file.id))[1] == LONG
    part = await files.read_part(LOCAL_OWNER, file.id, 2_000_000, 160)
    assert part.text == LONG[2_000_000:2_000_160].decode()
    assert [each.problem async for each in move(files, ["directory"], files.blobs.named("postgres"))] == [None]
    assert (await files.read_part(LOCAL_OWNER, file.id, 2_000_000, 160)).text == part.text


async def test_files_of_before_are_read(with_keys: OpenRig) -> None:
    """They stay as they are until they are stored again."""
    async with with_keys() as rig:
        (file,) = await rig.app.files.put(LOCAL_OWNER, [FileContent("a.txt", LONG)])
    async with with_keys("k1") as rig:
        assert (await rig.app.files.read(LOCAL_OWNER, file.id))[1] == LONG
    async with with_keys("k2", "k1") as rig:
        (other,) = await rig.app.files.put(LOCAL_OWNER, [FileContent("b.txt", LONG)])
        assert (await rig.app.files.read(LOCAL_OWNER, other.id))[1] == LONG


async def test_same_name_of_the_same_content_is_the_same_file_for_every_key(
    with_keys: OpenRig, postgres_url: str
) -> None:
    """The database compares keyed hashes, which outlive the keys."""
    async with with_keys("k1") as rig:
        (file,) = await rig.app.files.put(LOCAL_OWNER, [FileContent("a.txt", LONG)])
        (again,) = await rig.app.files.put(LOCAL_OWNER, [FileContent("a.txt", LONG)])
        (other,) = await rig.app.files.put(LOCAL_OWNER, [FileContent("b.txt", LONG)])
        assert (again.id, again.name, other.name) == (file.id, "a.txt", "b.txt")
        assert other.id != file.id
    async with with_keys("k2", "k1") as rig:
        (again,) = await rig.app.files.put(LOCAL_OWNER, [FileContent("a.txt", LONG)])
        assert (again.id, again.name) == (file.id, "a.txt")
        listed = (await rig.app.files.list(LOCAL_OWNER)).files
        assert sorted(each.name for each in listed) == ["a.txt", "b.txt"]
    assert await value(postgres_url, "select count(*) from public.files where name not like '$exai1$k1$%'") == 0


async def test_name_of_another_file_is_named_and_hides_nothing_else(rig: Rig, postgres_url: str) -> None:
    """It is bound to the content of its file."""
    files = rig.app.files
    one, other = await files.put(LOCAL_OWNER, [FileContent("a.txt", b"one"), FileContent("b.txt", b"other")])
    moved = f"update public.files set name = (select f.name from public.files f where f.id = '{other.id}')"
    await run(postgres_url, f"{moved} where id = '{one.id}'")
    assert "was encrypted for another place" in (await files.get(LOCAL_OWNER, one.id)).name
    assert (await files.get(LOCAL_OWNER, other.id)).name == "b.txt"
    assert (await files.read(LOCAL_OWNER, one.id))[1] == b"one"


async def test_files_are_found_by_the_beginning_of_their_id_only(rig: Rig) -> None:
    """No pattern matches an encrypted name by accident."""
    files = rig.app.files
    (file,) = await files.put(LOCAL_OWNER, [FileContent("exai.txt", CANARY)])
    assert [each.id for each in (await files.find(LOCAL_OWNER, file.id[:8], 10)).files] == [file.id]
    for part in ("exai", "a", "$"):
        assert [each for each in (await files.find(LOCAL_OWNER, part, 10)).files if not each.id.startswith(part)] == []


@pytest.mark.parametrize("names", [(), ("k1",)], ids=["without keys", "with a key"])
async def test_name_that_begins_like_an_encrypted_one_is_kept(with_keys: OpenRig, names: tuple[str, ...]) -> None:
    """As any other text of a caller."""
    async with with_keys(*names) as rig:
        for given in ("$exai1$k1$AAAA$BBBB", "$exai0$a"):
            (file,) = await rig.app.files.put(LOCAL_OWNER, [FileContent(given, CANARY)])
            assert (await rig.app.files.get(LOCAL_OWNER, file.id)).name == given
            (again,) = await rig.app.files.put(LOCAL_OWNER, [FileContent(given, CANARY)])
            assert again.id == file.id


async def test_image_of_a_message_is_the_same_file_after_encryption_ended(
    with_keys: OpenRig, postgres_url: str
) -> None:
    """Its id follows from its content, and its row is found by it although the name is still encrypted."""
    image = b"\x89PNG\r\n\x1a\n" + CANARY * 10_000
    text = f"see data:image/png;base64,{base64.b64encode(image).decode()} there"
    for names in ((), ("k1",), ("plain", "k1")):
        async with with_keys(*names) as rig:
            if names:
                work = ContentRekeying(rig.app.files, ContentRekeyRepository(rig.app.database))
                await work.contents(FIRST_CONTENT, is_rehearsal=False)
            appended = await rig.app.conversations.append(AppendRequest(LOCAL_OWNER, [NewMessage("user", text)]))
            page = await rig.app.conversations.read(LOCAL_OWNER, appended.continuation_id, whole=True)
            assert page.messages[0].content == text
    assert await value(postgres_url, "select count(*) from public.files") == 2
