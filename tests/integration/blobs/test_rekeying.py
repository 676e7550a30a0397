"""Contents of files in every store are stored again when encryption begins or ends, and not when keys change."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

import pytest

from exai.blobs.base import Blobs
from exai.db.contents import PostgresBlobs
from exai.db.documents import DocumentRepository, StoredText
from exai.db.encryption import open_codec
from exai.db.files import FileRepository
from exai.db.rekey import RekeyBatch, RekeyRepository
from exai.db.rekey_contents import FIRST_CONTENT, ContentRekeyRepository
from exai.files.loading import FileContent
from exai.files.paths import Roots
from exai.files.rekeying import ContentRekeying
from exai.files.service import FileService
from exai.files.upkeep import verify
from exai.models import LOCAL_OWNER, Owner, StoredFile
from exai.settings.load import FileSettings, LimitSettings
from tests.integration.blobs.conftest import Stored
from tests.integration.encryption.conftest import store_of
from tests.support.database import opened
from tests.support.migrations import run, value

LONG = b"".join(b"zanzibar %07d\n" % number for number in range(80_000))
"""More than one part."""

CONTENTS = {"empty.txt": b"", "short.txt": b"zanzibar", "long.txt": LONG}
SEALS = """
select string_agg(distinct coalesce(substring(c.encoding from '^\\$exai1\\$([a-z0-9]+)\\$'), 'plain'), ',')
  from exai.contents c
 where exists (select from public.files f where f.owner = c.owner and f.sha256 = c.sha256)
"""


async def with_keys(stored: Stored, *names: str) -> FileService:
    """A service with the keys of these names, on the same stores."""
    stored.database.codec = await open_codec(stored.database, store_of(*names))
    chosen = stored.store
    others = [store for store in stored.stores.values() if store is not chosen]
    if "postgres" not in stored.stores:
        # As in an application: it sweeps the rows of all contents.
        others.append(PostgresBlobs(stored.database))
    return FileService(
        FileRepository(stored.database),
        Blobs(chosen, *others, codec=stored.database.codec),
        FileSettings(orphan_grace_s=60),
        limits=LimitSettings(),
        roots=Roots([]),
    )


async def rekeyed(files: FileService, stored: Stored, *, is_rehearsal: bool = False) -> list[RekeyBatch]:
    """Rekey contents, seals and texts once, in the order that `Rekeying` has."""
    rows = ContentRekeyRepository(stored.database)
    works: Sequence[Callable[..., object]] = (ContentRekeying(files, rows).contents, rows.seals, rows.texts)
    if not stored.database.codec.is_on:
        works = (rows.texts, works[0], rows.seals)
    batches = []
    for work in works:
        place: object = FIRST_CONTENT
        while place is not None:
            batch = await work(place, is_rehearsal=is_rehearsal)  # type: ignore[misc]
            batches.append(batch)
            place = batch.place
    return batches


def total(batches: Sequence[RekeyBatch]) -> tuple[int, int, int, list[str]]:
    """Contents and rows found, those replaced, and what could not be read."""
    unread = [each for batch in batches for each in batch.unreadable]
    counts = (sum(getattr(batch, name) for batch in batches) for name in ("contents", "found", "replaced"))
    contents, found, replaced = counts
    return contents, found, replaced, unread


async def seen(files: FileService) -> dict[str, tuple[StoredFile, bytes]]:
    """Every file with its content, by name."""
    listed = (await files.list(LOCAL_OWNER)).files
    return {file.name: await files.read(LOCAL_OWNER, file.id) for file in listed}


async def test_contents_go_from_plain_to_a_key_to_another_and_back(stored: Stored) -> None:
    """Files keep their ids; a change of keys stores no content again."""
    plain = await with_keys(stored)
    put = await plain.put(LOCAL_OWNER, [FileContent(name, data) for name, data in CONTENTS.items()])
    ids = {file.name: file.id for file in put}
    documents = DocumentRepository(stored.database)
    text = StoredText("local", "zanzibar", "1 page")
    await documents.keep(LOCAL_OWNER, put[1].sha256, text)
    steps: Sequence[tuple[tuple[str, ...], str, int]] = (
        (("k1",), "k1", 3),
        (("k2", "k1"), "k2", 0),
        (("plain", "k2"), "plain", 3),
    )
    for names, form, contents in steps:
        files = await with_keys(stored, *names)
        rehearsed = total(await rekeyed(files, stored, is_rehearsal=True))
        # In the rehearsal seals that will be written anew are counted, and nothing is replaced.
        assert (rehearsed[0], rehearsed[2], rehearsed[3]) == (contents, 0, [])
        done = total(await rekeyed(files, stored))
        assert (done[0], done[3]) == (contents, [])
        assert done[1] == done[2] > 0
        assert total(await rekeyed(files, stored)) == (0, 0, 0, [])
        await RekeyRepository(stored.database).keep_keys([form])
        assert await value(stored.url, SEALS) == form
        found = await seen(files)
        assert {name: data for name, (_, data) in found.items()} == CONTENTS
        assert {name: file.id for name, (file, _) in found.items()} == ids
        short = found["short.txt"][0]
        assert (await DocumentRepository(stored.database).texts(LOCAL_OWNER, [short.address]))[short.address] == text
        assert [each.problem async for each in verify(files, files.blobs.names)] == [None] * 3
        raw = await stored.store.read(LOCAL_OWNER, (await stored_rows(stored))[short.id], 0, 8)
        assert (raw == b"zanzibar") == (form == "plain")


async def stored_rows(stored: Stored) -> dict[str, StoredFile]:
    """The files as the stores know them, by id."""
    rows = await ContentRekeyRepository(stored.database).scan(FIRST_CONTENT)
    return {file.id: file for _, file in rows}


async def test_former_bytes_are_swept_and_no_others(stored: Stored) -> None:
    """They stay for the grace period, because a reader may have read the row before."""
    plain = await with_keys(stored)
    before = {file.name: file for file in await plain.put(LOCAL_OWNER, [FileContent("a.txt", LONG)])}["a.txt"]
    files = await with_keys(stored, "k1")
    await rekeyed(files, stored)
    assert await files.blobs.get(LOCAL_OWNER, before) == LONG
    await run(
        stored.url,
        "update exai.contents set used_at = used_at - interval '1 day'",
        "update exai.blobs set begun_at = begun_at - interval '1 day'",
    )
    await files.sweep()
    assert await value(stored.url, "select count(*) from exai.contents") == 1
    assert (await seen(files))["a.txt"][1] == LONG


async def test_two_processes_at_once_store_each_content_once(stored: Stored) -> None:
    """The second finds the rows of the first."""
    plain = await with_keys(stored)
    await plain.put(LOCAL_OWNER, [FileContent(f"{number}.txt", b"zanzibar %d" % number) for number in range(12)])
    files = await with_keys(stored, "k1")
    async with opened(stored.url) as database:
        database.codec = stored.database.codec
        one, other = (ContentRekeyRepository(each) for each in (stored.database, database))
        works = (ContentRekeying(files, rows).contents(FIRST_CONTENT, is_rehearsal=False) for rows in (one, other))
        both = await asyncio.gather(*works)
    assert [each for batch in both for each in batch.unreadable] == []
    assert total(await rekeyed(files, stored)) == (0, 0, 0, [])
    referred = "select count(distinct sha256) from public.files"
    assert await value(stored.url, referred) == 12
    assert await value(stored.url, "select count(*) from exai.contents") == 24
    assert sorted(data for _, data in (await seen(files)).values()) == sorted(b"zanzibar %d" % n for n in range(12))


async def test_content_without_its_bytes_is_named_and_the_others_are_stored(stored: Stored) -> None:
    """Nothing refers to what could not be read, and a later pass finds it again."""
    plain = await with_keys(stored)
    lost, _ = await plain.put(LOCAL_OWNER, [FileContent("lost.txt", b"lost" * 30_000), FileContent("b.txt", b"kept")])
    if stored.store.name == "postgres":
        of_lost = f"(select c.blob_id from exai.contents c where c.sha256 = '{lost.sha256}')"
        await run(stored.url, f"delete from exai.blob_parts p where p.blob_id = {of_lost}")
    else:
        await stored.store.remove(LOCAL_OWNER, lost)
    files = await with_keys(stored, "k1")
    contents, found, replaced, unread = total(await rekeyed(files, stored))
    assert (contents, found, replaced) == (1, 2, 1)
    assert len(unread) == 1
    assert lost.id in unread[0]
    assert total(await rekeyed(files, stored))[1] == 1


@pytest.mark.parametrize("is_changed", [False, True])
async def test_bytes_of_an_interrupted_attempt_are_not_used(stored: Stored, is_changed: bool) -> None:
    """They may be whole, or not: the next attempt stores its own, or finds equal ones."""
    plain = await with_keys(stored)
    (file,) = await plain.put(LOCAL_OWNER, [FileContent("a.txt", LONG)])
    files = await with_keys(stored, "k1")
    work = ContentRekeying(files, ContentRekeyRepository(stored.database))
    new, data = work._stored_form(LOCAL_OWNER, file, LONG)
    cut = data[:-1] + b"x" if is_changed else data
    await stored.store.put(LOCAL_OWNER, new.sha256, cut, new.blob_id)
    done = total(await rekeyed(files, stored))
    if is_changed and stored.store.name == "directory":
        # A directory has one place for a content, and trusts a file of the right size there.
        assert done[2] == 0
        assert "have changed" in done[3][0]
    else:
        assert (done[0], done[3]) == (1, [])
    assert (await seen(files))["a.txt"][1] == LONG


async def test_owners_stay_apart(stored: Stored) -> None:
    """An equal content of two owners has two stored forms."""
    plain = await with_keys(stored)
    for owner in (LOCAL_OWNER, Owner("other")):
        await plain.put(owner, [FileContent("a.txt", b"zanzibar")])
    files = await with_keys(stored, "k1")
    assert total(await rekeyed(files, stored))[0] == 2
    assert await value(stored.url, "select count(distinct sha256) from public.files") == 2
