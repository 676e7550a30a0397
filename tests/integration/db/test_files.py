"""Files in Postgres: each content once per owner, repeatable links, and a grace period for orphans."""

from __future__ import annotations

import asyncio
import hashlib
from dataclasses import replace
from datetime import UTC, datetime

import pytest

from exai.db.contents import PART_BYTES, PostgresBlobs
from exai.db.conversations import ConversationRepository
from exai.db.driver.pool import Database
from exai.db.files import FileRepository, NewFile
from exai.models import LOCAL_OWNER, ContinuationId, FileId, Owner, StoredFile, Unused
from tests.support.database import appending, new_id, opened
from tests.support.migrations import value

OTHER = Owner("other")


def content(text: str, name: str = "notes.md", media_type: str = "text/markdown") -> NewFile:
    sha256 = hashlib.sha256(text.encode()).hexdigest()
    return NewFile(
        new_id(), sha256, len(text), media_type, name, new_id(), "utf-8", characters=(len(text),), data=text.encode()
    )


async def put(files: FileRepository, owner: Owner, *contents: NewFile) -> list[StoredFile]:
    stored = await files.put(owner, "postgres", contents)
    assert None not in stored
    return [file for file in stored if file]


async def conversation(database: Database) -> ContinuationId:
    made = await ConversationRepository(database).append(appending(None, "hello"))
    assert made.commit is not None
    return made.commit.conversation.continuation_id


async def test_same_content_name_and_media_type_is_one_file_per_owner(postgres_url: str) -> None:
    """The second put returns the first row, another owner gets a row of its own."""
    async with opened(postgres_url) as database:
        files = FileRepository(database)
        first = await put(files, LOCAL_OWNER, content("a"), content("b"), content("a"))
        (second,) = await put(files, LOCAL_OWNER, content("a"))
        (other,) = await put(files, OTHER, content("a"))
    assert [file.created for file in first] == [True, True, False]
    assert (second.created, other.created) == (False, True)
    assert second.id == first[0].id == first[2].id != other.id


async def test_names_and_media_types_of_one_content_are_files_of_their_own(postgres_url: str) -> None:
    """The bytes are there once, and stay until the last file that has them is gone."""
    async with opened(postgres_url) as database:
        files, blobs = FileRepository(database), PostgresBlobs(database)
        stored = await put(
            files,
            LOCAL_OWNER,
            content("a", "staging/config.yaml"),
            content("a", "production/config.json"),
            content("a", "production/config.json", "application/json"),
        )
        assert len({file.id for file in stored}) == 3
        assert [file.name for file in stored] == [
            "staging/config.yaml",
            "production/config.json",
            "production/config.json",
        ]
        assert await count(postgres_url, "exai.contents") == await count(postgres_url, "exai.blobs") == 1
        for file in stored:
            assert await blobs.sweep(0, files.known) == Unused()
            assert await blobs.read(LOCAL_OWNER, file, 0, 1) == b"a"
            assert await files.delete(LOCAL_OWNER, file.id)
        assert await blobs.sweep(0, files.known) == Unused(1)
        assert await count(postgres_url, "exai.contents") == await count(postgres_url, "exai.blob_parts") == 0


async def test_file_whose_bytes_are_neither_here_nor_given_is_not_stored(postgres_url: str) -> None:
    """Half of a content is none: a row is written when all parts are there."""
    async with opened(postgres_url) as database:
        files, blobs = FileRepository(database), PostgresBlobs(database)
        data = b"0123456789" * 200_000
        new = replace(content("x"), sha256=hashlib.sha256(data).hexdigest(), size_bytes=len(data), data=None)
        assert await files.put(LOCAL_OWNER, "postgres", [new]) == [None]
        await database.fetch("put_part", new.blob_id, len(data), 0, PART_BYTES, data[:PART_BYTES])
        assert await files.put(LOCAL_OWNER, "postgres", [new]) == [None]
        assert await blobs.read(LOCAL_OWNER, row_of(new), 0, 10) == b""
        again = replace(new, blob_id=new_id())
        await blobs.put(LOCAL_OWNER, new.sha256, data, again.blob_id)
        (stored,) = await put(files, LOCAL_OWNER, again)
        assert stored.size_bytes == len(data)
        assert await blobs.sweep(0, files.known) == Unused(1)
        assert await blobs.read(LOCAL_OWNER, row_of(new), 0, len(data)) == data


@pytest.mark.parametrize(
    ("offset", "size"), [(0, 1), (PART_BYTES - 2, 4), (2 * PART_BYTES, 3), (5, 3 * PART_BYTES), (0, 0)]
)
async def test_some_bytes_are_read_across_parts(postgres_url: str, offset: int, size: int) -> None:
    """Exactly those that were asked for."""
    async with opened(postgres_url) as database:
        files, blobs = FileRepository(database), PostgresBlobs(database)
        data = hashlib.shake_128(b"seed").digest(3 * PART_BYTES + 10)
        new = replace(content("x"), sha256=hashlib.sha256(data).hexdigest(), size_bytes=len(data), data=None)
        await blobs.put(LOCAL_OWNER, new.sha256, data, new.blob_id)
        await put(files, LOCAL_OWNER, new)
        assert await blobs.read(LOCAL_OWNER, row_of(new), offset, size) == data[offset : offset + size]


def row_of(new: NewFile) -> StoredFile:
    return StoredFile(FileId(new.id), new.sha256, new.size_bytes, new.media_type, new.name, datetime.now(UTC))


async def count(url: str, table: str) -> int:
    return int(await value(url, f"select count(*) from {table}"))


async def test_link_is_one_row_however_often_and_by_however_many(postgres_url: str) -> None:
    """The primary key decides; eight at once are no error."""
    async with opened(postgres_url) as database:
        files = FileRepository(database)
        continuation_id = await conversation(database)
        ids = [file.id for file in await put(files, LOCAL_OWNER, content("a"), content("b"))]
        links = await asyncio.gather(*(files.link(LOCAL_OWNER, continuation_id, ids) for _ in range(8)))
        listed = await files.list(LOCAL_OWNER, continuation_id=continuation_id)
    assert sum(link.linked for link in links) == 2
    assert {file.id for file in listed.files} == set(ids)


async def test_link_of_a_missing_file_links_none(postgres_url: str) -> None:
    """All or none, and the answer names the missing ones; files of other owners are missing."""
    async with opened(postgres_url) as database:
        files = FileRepository(database)
        continuation_id = await conversation(database)
        mine = (await put(files, LOCAL_OWNER, content("a")))[0]
        theirs = (await put(files, OTHER, content("b")))[0]
        link = await files.link(LOCAL_OWNER, continuation_id, [mine.id, theirs.id])
        unknown = await files.link(OTHER, continuation_id, [theirs.id])
        assert (link.missing, link.linked) == ((theirs.id,), 0)
        assert unknown.conversation is False


async def test_orphans_are_forgotten_after_their_grace_and_linked_files_never(postgres_url: str) -> None:
    """A file that was stored and not yet linked is no orphan; one null among the links must not save the others."""
    async with opened(postgres_url) as database:
        files = FileRepository(database)
        continuation_id = await conversation(database)
        linked = (await put(files, LOCAL_OWNER, content("linked")))[0]
        await files.link(LOCAL_OWNER, continuation_id, [linked.id])
        orphan = (await put(files, LOCAL_OWNER, content("orphan")))[0]
        assert await files.cleanup_orphans(3_600) == ()
        gone = await files.cleanup_orphans(0)
        left = await files.get(LOCAL_OWNER, [linked.id, orphan.id])
    assert [each.sha256 for each in gone] == [orphan.sha256]
    assert set(left) == {linked.id}


async def test_pages_of_files_neither_repeat_nor_miss(postgres_url: str) -> None:
    """Pages go by key, newest first."""
    async with opened(postgres_url) as database:
        files = FileRepository(database)
        stored = await put(files, LOCAL_OWNER, *(content(f"{n}") for n in range(7)))
        seen, cursor = [], None
        while True:
            page = await files.list(LOCAL_OWNER, limit=3, cursor=cursor)
            seen += [file.id for file in page.files]
            cursor = page.next_cursor
            if cursor is None:
                break
    assert sorted(seen) == sorted(file.id for file in stored)
