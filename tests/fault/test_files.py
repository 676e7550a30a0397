"""Files under concurrent writers, a database outage and concurrent sweeps: bytes and rows agree."""

from __future__ import annotations

import asyncio

import pytest

from exai.db.contents import PART_BYTES
from exai.errors import BlobError, DatabaseError, NotFound, OutcomeUnknown
from exai.files.loading import FileContent
from exai.models import LOCAL_OWNER, FileId, Unused
from tests.fault.service import Servers, Service
from tests.support.migrations import run, session, value
from tests.support.waiting import wait_until


async def put(service: Service, text: str) -> str:
    """Store a file; its id."""
    (stored,) = await service.app.files.put(LOCAL_OWNER, [FileContent("a.txt", text.encode())])
    return stored.id


async def content(service: Service, file_id: str) -> bytes:
    """A file's bytes."""
    return (await service.app.files.read(LOCAL_OWNER, file_id))[1]  # type: ignore[arg-type]


async def blobs(rig: Servers) -> int:
    """How many contents have bytes in the database, whole or not."""
    return int(await value(rig.postgres_url, "select count(*) from exai.blobs"))


async def age(rig: Servers) -> None:
    """Make everything that is stored look years old."""
    then = "'2000-01-01'"
    await run(
        rig.postgres_url, f"update exai.blobs set begun_at = {then}", f"update exai.contents set used_at = {then}"
    )


async def test_same_file_linked_at_once_from_everywhere_is_linked_once(rig: Servers) -> None:
    """Eight links in parallel from two daemons: one row, no error."""
    services = [await rig.open(), await rig.open()]
    name = (await services[0].append(None, "one")).continuation_id
    file_id = await put(services[0], "same")
    new = await asyncio.gather(
        *(service.app.files.link(LOCAL_OWNER, name, [file_id]) for service in services * 4)  # type: ignore[list-item]
    )
    assert sorted(new) == [0] * 7 + [1]
    files = await services[1].app.files.list(LOCAL_OWNER, continuation_id=name)
    assert [file.id for file in files.files] == [file_id]


async def test_same_content_stored_at_once_from_everywhere_is_one_file(rig: Servers) -> None:
    """Content is its own key."""
    services = [await rig.open(), await rig.open()]
    ids = await asyncio.gather(*(put(service, "same") for service in services * 4))
    assert len(set(ids)) == 1
    assert await blobs(rig) == 1


async def test_bytes_whose_row_was_never_written_go_with_the_sweep_and_not_before(rig: Servers) -> None:
    """The database was lost between two parts; no file is visible, and it can be stored again at once."""
    service = await rig.open()
    text = "lonely" * PART_BYTES
    with pytest.raises(DatabaseError):
        await broken_off(rig, service, text)
    service.database.mode = "pass"
    await wait_until(lambda: service.app.database.usage()[1] > 0)
    assert await blobs(rig) == 1
    assert (await service.app.files.list(LOCAL_OWNER)).files == ()
    assert await service.app.files.sweep() == (0, Unused())
    assert await content(service, await put(service, text)) == text.encode()
    await age(rig)
    assert await service.app.files.sweep() == (0, Unused(1))
    assert await blobs(rig) == 1


async def broken_off(rig: Servers, service: Service, text: str) -> None:
    """Store a file while the database stops to answer in the middle of its parts."""
    held = service.database.hold_replies_from(b"insert into exai.blob_parts")
    storing = asyncio.create_task(put(service, text))
    await held.wait()
    while not await blobs(rig):
        await asyncio.sleep(0.01)
    service.database.mode = "reset"
    await storing


async def test_row_whose_bytes_are_gone_is_an_error_that_says_so(rig: Servers) -> None:
    """Another program deleted the bytes; storing the content again repairs the file."""
    service = await rig.open()
    file_id = await put(service, "stolen")
    await run(rig.postgres_url, "delete from exai.blob_parts")
    with pytest.raises(BlobError):
        await content(service, file_id)
    assert await put(service, "stolen") == file_id
    assert await content(service, file_id) == b"stolen"


async def test_content_given_again_in_the_middle_of_a_sweep_keeps_its_bytes(rig: Servers) -> None:
    """The sweep has removed the content and not yet committed; the file that comes then brings its bytes again."""
    sweeper, user = await rig.open(), await rig.open()
    await user.app.files.delete(LOCAL_OWNER, await put(user, "again"))  # type: ignore[arg-type]
    await age(rig)
    async with session(rig.postgres_url) as other, other.transaction():
        await other.execute("select from exai.sweep_contents_v1('1 hour', 20)")
        storing = asyncio.create_task(put(user, "again"))
        while not await value(rig.postgres_url, "select exists (select from pg_locks where not granted)"):
            await asyncio.sleep(0.01)
    file_id = await storing
    assert await sweeper.app.files.sweep() == (0, Unused())
    assert await content(sweeper, file_id) == b"again"


async def test_lost_answer_to_a_deletion_is_doubt_and_the_next_look_ends_it(rig: Servers) -> None:
    """A repetition behind the caller's back would find nothing and call that an error."""
    service = await rig.open()
    file_id = FileId(await put(service, "going"))
    lost = service.database.drop_reply_to(b"delete from public.files")
    with pytest.raises(OutcomeUnknown):
        await service.app.files.delete(LOCAL_OWNER, file_id)
    assert lost.done()
    with pytest.raises(NotFound):
        await service.app.files.delete(LOCAL_OWNER, file_id)
    assert (await service.app.files.list(LOCAL_OWNER)).files == ()
