"""What every blob store does: bytes come back unchanged, are stored once, and are removed when they are unused."""

from __future__ import annotations

import asyncio
import hashlib
from dataclasses import replace

import pytest

from exai.blobs.base import PART_BYTES
from exai.errors import BlobError
from exai.files.loading import FileContent
from exai.files.moving import move
from exai.files.service import FileService
from exai.files.upkeep import sweep, verify
from exai.models import LOCAL_OWNER, Owner, StoredFile
from tests.integration.blobs.conftest import OTHERS, Stored
from tests.support.migrations import run, value

OTHER = Owner("other")
TEXT = ("aé数😀\n" * 700_000).encode()
"""More than one request's worth, with characters of every length."""

CONTENTS = {
    "empty": b"",
    "one byte": b"x",
    "small": b"hello\r\n\0world",
    "a part and a byte": b"p" * (PART_BYTES + 1),
    "long": TEXT,
    "binary": bytes(range(256)) * 30_000,
}


async def put(files: FileService, data: bytes, name: str = "a.txt", owner: Owner = LOCAL_OWNER) -> StoredFile:
    (file,) = await files.put(owner, [FileContent(name, data)])
    return file


async def age(stored: Stored) -> None:
    """Make all rows older than the grace period."""
    then = "'2000-01-01'"
    await run(
        stored.url,
        f"update exai.blobs set begun_at = {then}",
        f"update exai.contents set used_at = {then}",
    )


async def test_bytes_come_back_unchanged_and_with_their_size(stored: Stored) -> None:
    """Whole, and as the store measures them."""
    for content, data in CONTENTS.items():
        file = await put(stored.files, data)
        assert file.created, content
        assert file.store == stored.store.name
        assert (await stored.files.read(LOCAL_OWNER, file.id))[1] == data, content
        assert await stored.store.size(LOCAL_OWNER, file) == len(data), content
        assert await stored.files.blobs.get_all(LOCAL_OWNER, [file]) == {file.sha256: data}, content


RANGES = ((0, 1), (PART_BYTES - 2, 4), (len(TEXT) - 3, 3), (len(TEXT) - 1, 10), (5, 2 * PART_BYTES))


async def test_a_range_of_bytes_is_exactly_that_range(stored: Stored) -> None:
    """Across the borders of parts, and up to the end."""
    file = await put(stored.files, TEXT)
    for offset, size in RANGES:
        found = await stored.files.blobs.read(LOCAL_OWNER, file, offset, size)
        assert found == TEXT[offset : offset + size], (offset, size)


async def test_characters_are_counted_by_part(stored: Stored) -> None:
    """So that a place in a long text is found without reading what is before it."""
    file = await put(stored.files, TEXT)
    counts = await stored.store.characters(LOCAL_OWNER, file)
    assert len(counts) == -(-len(TEXT) // PART_BYTES)
    assert sum(counts) == len(TEXT.decode())
    part = await stored.files.read_part(LOCAL_OWNER, file.id, 3_000_000, 7)
    assert part.text == TEXT.decode()[3_000_000:3_000_007]


async def test_content_is_stored_once_for_an_owner_and_never_shared(stored: Stored) -> None:
    """Another owner with the same bytes has rows, and where it matters bytes, of its own."""
    one, again = await put(stored.files, b"same"), await put(stored.files, b"same", "b.txt")
    other = await put(stored.files, b"same", owner=OTHER)
    assert (one.store, one.storage_path) == (again.store, again.storage_path)
    assert one.id != again.id
    await stored.files.delete(OTHER, other.id)
    await age(stored)
    await stored.files.sweep()
    assert await stored.store.read(LOCAL_OWNER, one, 0, 4) == b"same"


async def test_same_content_stored_at_once_by_many_is_one_content(stored: Stored) -> None:
    """The losers of the race leave no broken row; their bytes are removed by a sweep at most."""
    data = b"race" * 100_000
    files = await asyncio.gather(*(put(stored.files, data, f"{n}.txt") for n in range(8)))
    assert await value(stored.url, "select count(*) from exai.contents") == 1
    for file in files:
        assert (await stored.files.read(LOCAL_OWNER, file.id))[1] == data


async def test_missing_content_is_a_named_error_and_no_empty_answer(stored: Stored) -> None:
    """A row whose bytes are gone: reading says so, a list of contents has the reason, a measurement says None."""
    file = await put(stored.files, b"here" * 50_000)
    sha256 = hashlib.sha256(b"gone").hexdigest()
    gone = replace(file, sha256=sha256, storage_path=file.storage_path and f"{'0' * 32}/{sha256}-gone")
    assert await stored.store.size(LOCAL_OWNER, gone) is None
    with pytest.raises(BlobError, match=r"missing|not all there"):
        await stored.files.blobs.read(LOCAL_OWNER, gone, 0, 4)
    assert await stored.files.blobs.get_all(LOCAL_OWNER, [gone]) == {sha256: "its bytes are not there"}


async def test_put_whose_row_was_never_written_is_invisible_and_removed(stored: Stored) -> None:
    """The process died between the bytes and the row; nothing refers to them, and giving the content again works."""
    data = b"half" * 100_000
    sha256 = hashlib.sha256(data).hexdigest()
    await stored.store.put(LOCAL_OWNER, sha256, data, "00000000-0000-4000-8000-000000000001")
    assert (await stored.files.list(LOCAL_OWNER)).files == ()
    file = await put(stored.files, data)
    assert (await stored.files.read(LOCAL_OWNER, file.id))[1] == data
    await run(stored.url, "update exai.blobs set begun_at = '2000-01-01'")
    await stored.store.sweep(-60, stored.files.repository.known)
    assert (await stored.files.read(LOCAL_OWNER, file.id))[1] == data


async def test_sweep_removes_what_no_file_has_and_nothing_else(stored: Stored) -> None:
    """A rehearsal counts the same and removes nothing."""
    kept, gone = await put(stored.files, b"kept" * 50_000), await put(stored.files, b"gone" * 50_000, "b.txt")
    await run(stored.url, "insert into public.conversations (owner, continuation_id) values ('local', 'c')")
    await stored.files.link(LOCAL_OWNER, "c", [kept.id])  # type: ignore[arg-type]
    await stored.files.delete(LOCAL_OWNER, gone.id)
    find_used = stored.files.repository.known
    await age(stored)
    if stored.store.name != "postgres":
        without = "not exists (select from public.files f where f.sha256 = c.sha256)"
        await run(stored.url, f"delete from exai.contents c where {without}")
    rehearsed = await stored.store.sweep(-60, find_used, is_rehearsal=True)
    assert (rehearsed.contents, rehearsed.size_bytes) == (1, 200_000)
    assert await stored.store.size(LOCAL_OWNER, gone) in (200_000, None)
    assert (await stored.store.sweep(-60, find_used)).contents == 1
    assert await stored.store.size(LOCAL_OWNER, gone) is None
    assert (await stored.files.read(LOCAL_OWNER, kept.id))[1] == b"kept" * 50_000
    assert (await stored.store.sweep(-60, find_used)).contents == 0


async def test_check_asks_the_store(stored: Stored) -> None:
    """The answer names the place without a credential."""
    assert (await stored.store.check()).startswith(stored.store.shown)


async def test_contents_move_into_another_store_and_back(stored: Stored) -> None:
    """Interrupted after the first, and started again; every file stays readable all the time."""
    data = {f"{n}.txt": (f"content {n} " * 30_000 * n).encode() for n in range(4)}
    files = [await put(stored.files, content, name) for name, content in data.items()]
    here, there = stored.store, stored.stores[OTHERS[stored.store.name]]
    for source, target in ((here, there), (there, here)):
        mover = move(stored.files, [source.name], target)
        assert (await anext(mover)).problem is None
        await mover.aclose()
        for file in files:
            assert (await stored.files.read(LOCAL_OWNER, file.id))[1] == data[file.name]
        assert [each.problem async for each in move(stored.files, [source.name], target)] == [None] * 3
        assert [each async for each in move(stored.files, [source.name], target)] == []
        for file in files:
            row = await stored.files.get(LOCAL_OWNER, file.id)
            assert row.store == target.name
            assert (await stored.files.read(LOCAL_OWNER, file.id))[1] == data[file.name]
    assert [each.problem async for each in verify(stored.files, stored.files.blobs.names)] == [None] * 4


async def test_changed_bytes_are_not_moved(stored: Stored) -> None:
    """A content that does not match its digest stays, and its name is reported."""
    file = await put(stored.files, b"true" * 30_000)
    await run(
        stored.url,
        f"update exai.contents set sha256 = '{'0' * 64}'",
        f"update public.files set sha256 = '{'0' * 64}'",
    )
    (moved,) = [
        each async for each in move(stored.files, [stored.store.name], stored.stores[OTHERS[stored.store.name]])
    ]
    assert moved.problem is not None
    assert moved.file.id == file.id
    assert (await stored.files.get(LOCAL_OWNER, file.id)).store == stored.store.name


async def test_lost_bytes_are_found_and_stored_again_when_they_are_given_again(stored: Stored) -> None:
    """Another program removed them. A rehearsal names the file, a sweep marks it, and the next put repairs it."""
    data = b"stolen" * 30_000
    file, kept = await put(stored.files, data), await put(stored.files, b"kept", "kept.txt")
    await steal(stored, file)
    for is_rehearsal in (True, False):
        swept = await sweep(stored.files, is_rehearsal=is_rehearsal)
        assert [each.file.id for each in swept.missing] == [file.id]
    (found,) = [each for each in [each async for each in verify(stored.files, [stored.store.name])] if each.problem]
    assert found.is_lost
    again = await put(stored.files, data)
    assert again.id == file.id
    assert (await stored.files.read(LOCAL_OWNER, file.id))[1] == data
    assert (await stored.files.read(LOCAL_OWNER, kept.id))[1] == b"kept"
    assert (await sweep(stored.files, is_rehearsal=True)).missing == ()


async def steal(stored: Stored, file: StoredFile) -> None:
    """Remove the bytes of a file and leave its row."""
    if stored.store.name == "postgres":
        await run(stored.url, "delete from exai.blob_parts where octet_length(data) = 180000")
    else:
        await stored.store.sweep(-60, others_than(file))


def others_than(file: StoredFile):  # type: ignore[no-untyped-def]
    """Everything is used but this file."""

    async def find_used(paths):  # type: ignore[no-untyped-def]
        return frozenset(path for path in paths if path != file.storage_path)

    return find_used
