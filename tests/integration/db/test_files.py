"""Files in Postgres: each content once per owner, links that may be repeated, orphans that are given time."""

from __future__ import annotations

import asyncio
import hashlib

import pytest

from exai.db.conversations import ConversationRepository
from exai.db.files import FileRepository, NewFile
from exai.db.pool import Database
from exai.errors import InvalidArgument
from exai.models import LOCAL_OWNER, ContinuationId, FileId, Owner
from tests.support.database import appending, opened

OTHER = Owner("other")


def content(text: str, name: str = "notes.md") -> NewFile:
    sha256 = hashlib.sha256(text.encode()).hexdigest()
    return NewFile(sha256, len(text), "text/markdown", name, f"local/{sha256}")


async def conversation(database: Database) -> ContinuationId:
    made = await ConversationRepository(database).append(appending(None, "hello"))
    assert made.conversation is not None
    return made.conversation.continuation_id


async def test_same_content_is_one_file_per_owner(postgres_url: str) -> None:
    """Content-addressed: the second put returns the first row, another owner gets a row of its own."""
    async with opened(postgres_url) as database:
        files = FileRepository(database)
        first = await files.put(LOCAL_OWNER, [content("a"), content("b"), content("a", "again.md")])
        second = await files.put(LOCAL_OWNER, [content("a", "later.md")])
        other = await files.put(OTHER, [content("a")])
    a = content("a").sha256
    assert len(first) == 2
    assert (first[a].created, second[a].created, other[a].created) == (True, False, True)
    assert second[a].id == first[a].id != other[a].id


async def test_link_is_one_row_however_often_and_by_however_many(postgres_url: str) -> None:
    """The primary key decides; eight at once are no error."""
    async with opened(postgres_url) as database:
        files = FileRepository(database)
        continuation_id = await conversation(database)
        stored = await files.put(LOCAL_OWNER, [content("a"), content("b")])
        ids = [file.id for file in stored.values()]
        links = await asyncio.gather(*(files.link(LOCAL_OWNER, continuation_id, ids) for _ in range(8)))
        listed = await files.list(LOCAL_OWNER, continuation_id=continuation_id)
    assert sum(link.linked for link in links) == 2
    assert {file.id for file in listed.files} == set(ids)


async def test_link_of_a_missing_file_links_none(postgres_url: str) -> None:
    """All or none, and the answer names what is missing; files of others are missing."""
    async with opened(postgres_url) as database:
        files = FileRepository(database)
        continuation_id = await conversation(database)
        mine = next(iter((await files.put(LOCAL_OWNER, [content("a")])).values()))
        theirs = next(iter((await files.put(OTHER, [content("b")])).values()))
        link = await files.link(LOCAL_OWNER, continuation_id, [mine.id, theirs.id])
        unknown = await files.link(OTHER, continuation_id, [theirs.id])
        assert (link.missing, link.linked) == ((theirs.id,), 0)
        assert unknown.conversation is False
        with pytest.raises(InvalidArgument, match=r"files\[0\]"):
            await files.link(LOCAL_OWNER, continuation_id, [FileId("nonsense")])


async def test_orphans_are_forgotten_after_their_grace_and_linked_files_never(postgres_url: str) -> None:
    """A file that was stored and not yet linked is no orphan; one null among the links must not save the others."""
    async with opened(postgres_url) as database:
        files = FileRepository(database)
        continuation_id = await conversation(database)
        linked = next(iter((await files.put(LOCAL_OWNER, [content("linked")])).values()))
        await files.link(LOCAL_OWNER, continuation_id, [linked.id])
        orphan = next(iter((await files.put(LOCAL_OWNER, [content("orphan")])).values()))
        assert await files.cleanup_orphans(3_600) == ()
        gone = await files.cleanup_orphans(0)
        left = await files.get(LOCAL_OWNER, [linked.id, orphan.id])
    assert [each.sha256 for each in gone] == [orphan.sha256]
    assert set(left) == {linked.id}


async def test_pages_of_files_neither_repeat_nor_miss(postgres_url: str) -> None:
    """Pages go by key, newest first."""
    async with opened(postgres_url) as database:
        files = FileRepository(database)
        stored = await files.put(LOCAL_OWNER, [content(f"{n}") for n in range(7)])
        seen, cursor = [], None
        while True:
            page = await files.list(LOCAL_OWNER, limit=3, cursor=cursor)
            seen += [file.id for file in page.files]
            cursor = page.next_cursor
            if cursor is None:
                break
    assert sorted(seen) == sorted(file.id for file in stored.values())
