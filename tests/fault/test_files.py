"""Files when writers meet, the database goes away, and the sweep comes at the worst moment: bytes and rows agree."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest

from exai.errors import BlobError, DatabaseError, NotFound, OutcomeUnknown
from exai.files import FileContent
from exai.models import LOCAL_OWNER, FileId
from tests.fault.service import Servers, Service
from tests.support.waiting import wait_until

LONG_AGO = (0, 0)


async def put(service: Service, text: str) -> str:
    """Store a file; its id."""
    (stored,) = await service.app.files.put(LOCAL_OWNER, [FileContent("a.txt", text.encode())])
    return stored.id


async def content(service: Service, file_id: str) -> bytes:
    """A file's bytes."""
    return (await service.app.files.read(LOCAL_OWNER, file_id))[1]  # type: ignore[arg-type]


def kept(data_dir: Path) -> list[Path]:
    """Every file in the blob store."""
    return [place for place in (data_dir / "files").rglob("*") if place.is_file()]


def age(data_dir: Path) -> None:
    """Let everything in the blob store be as if nobody had touched it for years."""
    for place in kept(data_dir):
        os.utime(place, LONG_AGO)


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
    assert len(kept(rig.data_dir)) == 1


async def test_bytes_whose_row_was_never_written_go_with_the_sweep_and_not_before(rig: Servers) -> None:
    """The database went away between the bytes and the row; the caller repeats it, or the grace period ends it."""
    service = await rig.open()
    service.database.mode = "reset"
    with pytest.raises(DatabaseError):
        await put(service, "lonely")
    service.database.mode = "pass"
    await wait_until(lambda: service.app.database.usage()[1] > 0)
    assert await service.app.files.sweep() == (0, 0)
    assert len(kept(rig.data_dir)) == 1
    age(rig.data_dir)
    assert await service.app.files.sweep() == (0, 1)
    assert kept(rig.data_dir) == []
    assert await content(service, await put(service, "lonely")) == b"lonely"


async def test_row_whose_bytes_are_gone_is_an_error_that_says_so(rig: Servers) -> None:
    """The reverse, which only somebody else can have made; storing the content again cures it."""
    service = await rig.open()
    file_id = await put(service, "stolen")
    for place in kept(rig.data_dir):
        place.unlink()
    with pytest.raises(BlobError):
        await content(service, file_id)
    assert await put(service, "stolen") == file_id
    assert await content(service, file_id) == b"stolen"


async def test_content_given_again_in_the_middle_of_a_sweep_keeps_its_bytes(rig: Servers) -> None:
    """The sweep has looked at age and rows, and removes only what is still as it was then."""
    sweeper, user = await rig.open(), await rig.open()
    await user.app.files.delete(LOCAL_OWNER, await put(user, "again"))  # type: ignore[arg-type]
    age(rig.data_dir)
    # The sweep has seen the old bytes and asks which places have rows; somebody stores the content before it goes on.
    asked = sweeper.database.hold_replies_from(b"from public.files f where f.storage_path = any")
    sweeping = asyncio.create_task(sweeper.app.files.sweep())
    await asked.wait()
    file_id = await put(user, "again")
    sweeper.database.mode = "pass"
    assert await sweeping == (0, 0)
    assert await content(user, file_id) == b"again"


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
