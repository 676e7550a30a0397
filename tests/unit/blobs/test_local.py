"""The local blob store: whole or absent, checked when read, out of reach of names."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from exai.blobs.base import digest, storage_path
from exai.blobs.local import LocalBlobs
from exai.errors import BlobError
from exai.models import LOCAL_OWNER, Owner


async def test_blob_is_read_back_and_kept_once(tmp_path: Path) -> None:
    """The second put of the same content writes nothing."""
    blobs = LocalBlobs(tmp_path)
    sha256 = digest(b"data")
    await blobs.put(LOCAL_OWNER, sha256, b"data")
    (place,) = [path for path in tmp_path.rglob("*") if path.is_file()]
    inode = place.stat().st_ino
    await blobs.put(LOCAL_OWNER, sha256, b"data")
    assert place.stat().st_ino == inode
    assert await blobs.get(LOCAL_OWNER, sha256) == b"data"
    with pytest.raises(BlobError, match="missing"):
        await blobs.get(Owner("other"), sha256)


async def test_changed_blob_is_an_error_and_never_returned(tmp_path: Path) -> None:
    """A disk that changed a byte must not put words into a prompt."""
    blobs = LocalBlobs(tmp_path)
    sha256 = digest(b"data")
    await blobs.put(LOCAL_OWNER, sha256, b"data")
    (tmp_path / storage_path(LOCAL_OWNER, sha256)).write_bytes(b"dada")
    with pytest.raises(BlobError, match="changed"):
        await blobs.get(LOCAL_OWNER, sha256)


@pytest.mark.parametrize("owner", ["..", "../../etc", "/etc", ".", "a/b", "\u202e" * 200])
def test_no_owner_reaches_outside_the_store(owner: str) -> None:
    """Owners come from tokens, but a store should not have to believe that."""
    path = storage_path(Owner(owner), digest(b""))
    assert ".." not in path
    assert not path.startswith("/")
    assert path.count("/") == 2


async def test_sweep_sees_only_what_nobody_touched_lately(tmp_path: Path) -> None:
    """Giving a content again makes it young, so that its row has time to come."""
    blobs = LocalBlobs(tmp_path)
    for data in (b"old", b"again"):
        await blobs.put(LOCAL_OWNER, digest(data), data)
        os.utime(tmp_path / storage_path(LOCAL_OWNER, digest(data)), (0, 0))
    await blobs.put(LOCAL_OWNER, digest(b"again"), b"again")
    found = [blobs.key(place) async for places in blobs.older_than(60) for place in places]
    assert found == [storage_path(LOCAL_OWNER, digest(b"old"))]


async def test_sweep_leaves_what_was_put_again_since_it_looked(tmp_path: Path) -> None:
    """Between finding a blob old and removing it the same content may be given again, and get its row."""
    blobs = LocalBlobs(tmp_path)
    sha256 = digest(b"data")
    await blobs.put(LOCAL_OWNER, sha256, b"data")
    os.utime(tmp_path / storage_path(LOCAL_OWNER, sha256), (0, 0))
    ((place,),) = [places async for places in blobs.older_than(60)]
    await blobs.put(LOCAL_OWNER, sha256, b"data")
    assert await blobs.remove(place, 60) is False
    assert await blobs.get(LOCAL_OWNER, sha256) == b"data"
    os.utime(place, (0, 0))
    assert await blobs.remove(place, 60) is True
    assert await blobs.remove(place, 60) is False
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []
