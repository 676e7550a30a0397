"""The local blob store: files are complete or absent, verified when read, and confined to its directory."""

from __future__ import annotations

import os
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import pytest

from exai.blobs.base import Blobs, digest, storage_path
from exai.blobs.local import LocalBlobs
from exai.errors import BlobError
from exai.models import LOCAL_OWNER, FileId, Owner, StoredFile, Unused


def row_of(sha256: str, store: str = "directory") -> StoredFile:
    return StoredFile(FileId("1"), sha256, 4, "text/plain", "x", datetime.now(UTC), store=store)


async def test_blob_is_read_back_and_kept_once(tmp_path: Path) -> None:
    """The second put of the same content writes nothing."""
    blobs = LocalBlobs(tmp_path)
    sha256 = digest(b"data")
    await blobs.put(LOCAL_OWNER, sha256, b"data", "")
    (place,) = [path for path in tmp_path.rglob("*") if path.is_file()]
    inode = place.stat().st_ino
    await blobs.put(LOCAL_OWNER, sha256, b"data", "")
    assert place.stat().st_ino == inode
    assert await blobs.read(LOCAL_OWNER, row_of(sha256), 0, 4) == b"data"
    with pytest.raises(BlobError, match="missing"):
        await blobs.read(Owner("other"), row_of(sha256), 0, 4)


async def test_changed_blob_is_an_error_and_never_returned(tmp_path: Path) -> None:
    """A disk that changed a byte must not put words into a prompt."""
    blobs = LocalBlobs(tmp_path)
    sha256 = digest(b"data")
    file = row_of(sha256)
    await blobs.put(LOCAL_OWNER, sha256, b"data", "")
    assert await Blobs(blobs).get(LOCAL_OWNER, file) == b"data"
    assert await Blobs(blobs).get_all(LOCAL_OWNER, [file]) == {sha256: b"data"}
    for changed in (b"dada", b"dat"):
        (tmp_path / storage_path(LOCAL_OWNER, sha256)).write_bytes(changed)
        with pytest.raises(BlobError, match="changed"):
            await Blobs(blobs).get(LOCAL_OWNER, file)
        reason = "its bytes have changed since it was stored"
        assert await Blobs(blobs).get_all(LOCAL_OWNER, [file]) == {sha256: reason}


async def test_each_reason_why_a_file_cannot_be_read_is_named(tmp_path: Path) -> None:
    """A missing blob, an unreadable one, and one in a store that this daemon does not have."""
    blobs = Blobs(LocalBlobs(tmp_path))
    missing, unreadable, elsewhere = (digest(name) for name in (b"missing", b"unreadable", b"elsewhere"))
    (tmp_path / storage_path(LOCAL_OWNER, unreadable)).mkdir(parents=True)
    files = [
        row_of(sha256, store)
        for sha256, store in ((missing, "directory"), (unreadable, "directory"), (elsewhere, "postgres"))
    ]
    assert await blobs.get_all(LOCAL_OWNER, files) == {
        missing: "its bytes are not there",
        unreadable: "its bytes cannot be read (Is a directory)",
        elsewhere: "it is in the store 'postgres', which this daemon does not have",
    }


@pytest.mark.parametrize("before", [0o755, 0o777])
async def test_no_other_user_can_list_the_store(tmp_path: Path, before: int) -> None:
    """Also if another program, or a wider umask, created a directory before."""
    root = tmp_path / "files"
    root.mkdir(mode=before)
    root.chmod(before)
    await LocalBlobs(root).put(LOCAL_OWNER, digest(b"data"), b"data", "")
    levels = [root, *(path for path in root.rglob("*") if path.is_dir())]
    assert len(levels) == 3
    assert {path.stat().st_mode & 0o777 for path in levels} == {0o700}


@pytest.mark.parametrize("owner", ["..", "../../etc", "/etc", ".", "a/b", "\u202e" * 200])
def test_no_owner_reaches_outside_the_store(owner: str) -> None:
    """Owners come from tokens, but a store should not have to believe that."""
    path = storage_path(Owner(owner), digest(b""))
    assert ".." not in path
    assert not path.startswith("/")
    assert path.count("/") == 2


async def none_known(_: Sequence[str]) -> frozenset[str]:
    return frozenset()


async def test_sweep_removes_only_old_contents_without_a_file(tmp_path: Path) -> None:
    """Storing a content again renews its time, so that its row can follow."""
    blobs = LocalBlobs(tmp_path)
    kept = storage_path(LOCAL_OWNER, digest(b"kept"))
    for data in (b"old", b"again", b"kept"):
        await blobs.put(LOCAL_OWNER, digest(data), data, "")
        os.utime(tmp_path / storage_path(LOCAL_OWNER, digest(data)), (0, 0))
    await blobs.put(LOCAL_OWNER, digest(b"again"), b"again", "")

    async def known(keys: Sequence[str]) -> frozenset[str]:
        assert set(keys) == {kept, storage_path(LOCAL_OWNER, digest(b"old"))}
        return frozenset([kept])

    assert await blobs.sweep(60, known) == Unused(1, 3)
    assert sorted(path.name for path in tmp_path.rglob("*") if path.is_file()) == sorted(
        map(digest, (b"again", b"kept"))
    )


async def test_sweep_leaves_what_was_put_again_since_it_looked(tmp_path: Path) -> None:
    """Between finding a blob old and removing it the same content may be given again, and get its row."""
    blobs = LocalBlobs(tmp_path)
    sha256 = digest(b"data")
    await blobs.put(LOCAL_OWNER, sha256, b"data", "")
    os.utime(tmp_path / storage_path(LOCAL_OWNER, sha256), (0, 0))

    async def meanwhile(_: Sequence[str]) -> frozenset[str]:
        await blobs.put(LOCAL_OWNER, sha256, b"data", "")
        return frozenset()

    assert await blobs.sweep(60, meanwhile) == Unused()
    assert await blobs.read(LOCAL_OWNER, row_of(sha256), 0, 4) == b"data"
    os.utime(tmp_path / storage_path(LOCAL_OWNER, sha256), (0, 0))
    assert await blobs.sweep(60, none_known) == Unused(1, 4)
    assert await blobs.sweep(60, none_known) == Unused()
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []
