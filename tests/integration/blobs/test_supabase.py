"""Supabase Storage: what its server answers, how uploads survive interruptions, and where the key goes."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest

from exai.blobs.faults import BlobMissing, StoreAway, StoreRefused
from exai.blobs.supabase import SupabaseBlobs, open_supabase
from exai.blobs.tus import own_address
from exai.errors import BlobError
from exai.models import LOCAL_OWNER, FileId, StoredFile
from exai.settings.load import SupabaseStorageSettings
from tests.support.counters import Counters
from tests.support.supabase_storage import KEY, PIECE_BYTES, Asked, Object, SupabaseStorage

LONG = hashlib.shake_128(b"seed").digest(2 * PIECE_BYTES + 1_000_003)
ATTEMPT = "00000000-0000-4000-8000-000000000001"


@pytest.fixture
async def server() -> AsyncIterator[SupabaseStorage]:
    async with SupabaseStorage() as running:
        yield running


@asynccontextmanager
async def opened(server: SupabaseStorage, **given: Any) -> AsyncIterator[SupabaseBlobs]:
    settings = SupabaseStorageSettings.model_validate({"url": server.url, "key": KEY, **given})
    async with open_supabase(settings, Counters(), "space") as blobs:
        yield blobs


def row_of(data: bytes, path: str) -> StoredFile:
    sha256 = hashlib.sha256(data).hexdigest()
    return StoredFile(
        FileId("1"),
        sha256,
        len(data),
        "text/plain",
        "ä b.txt",
        None,
        store="supabase",
        storage_path=path,  # type: ignore[arg-type]
    )


async def put(blobs: SupabaseBlobs, data: bytes, attempt: str = ATTEMPT) -> StoredFile:
    return row_of(data, await blobs.put(LOCAL_OWNER, hashlib.sha256(data).hexdigest(), data, attempt))


async def read(blobs: SupabaseBlobs, file: StoredFile) -> bytes:
    return await blobs.read(LOCAL_OWNER, file, 0, file.size_bytes)


def is_patch(asked: Asked) -> bool:
    return asked.method == "PATCH"


def is_upload(asked: Asked) -> bool:
    return asked.path.startswith("/storage/v1/object/exai/")


async def test_bucket_is_made_private_with_the_first_file_and_once(server: SupabaseStorage) -> None:
    """Also by two that begin at the same time: the one that comes second finds it."""
    async with opened(server) as one, opened(server) as other:
        assert "made with the first file" in await one.check()
        assert server.buckets == {}
        await asyncio.gather(put(one, b"a"), put(other, b"b"))
        await put(one, b"c")
        assert await one.check() == one.shown
    assert server.buckets == {"exai": False}
    assert KEY not in one.shown


async def test_public_bucket_is_refused_before_anything_is_stored(server: SupabaseStorage) -> None:
    """Any client with the address could read the files."""
    server.buckets["exai"] = True
    async with opened(server) as blobs:
        with pytest.raises(StoreRefused, match=r"EXAI_FILES__SUPABASE__BUCKET.*public.*Make it private"):
            await put(blobs, b"secret")
        with pytest.raises(StoreRefused, match="public"):
            await blobs.check()
    assert server.uploads_of() == 0


async def test_bucket_removed_meanwhile_is_made_again(server: SupabaseStorage) -> None:
    """The answer to an upload says so."""
    async with opened(server) as blobs:
        await put(blobs, b"before")
        server.buckets.clear()
        server.objects.clear()
        for data in (b"after", LONG):
            assert await read(blobs, await put(blobs, data)) == data


async def test_up_to_6_mb_one_request_and_above_it_pieces_of_6_mb(server: SupabaseStorage) -> None:
    """The server takes no other size of piece, except the last one."""
    async with opened(server) as blobs:
        exact = LONG[:PIECE_BYTES]
        assert await read(blobs, await put(blobs, exact)) == exact
        assert server.uploads_of() == 1
        server.asked.clear()
        assert await read(blobs, await put(blobs, LONG)) == LONG
    assert [len(each.body) for each in server.asked if is_patch(each)] == [PIECE_BYTES, PIECE_BYTES, 1_000_003]


@pytest.mark.parametrize("fault", ["reset", "reset after", "busy", "error 500", "limited"])
async def test_small_upload_is_repeated_after_a_passing_fault(server: SupabaseStorage, fault: Any) -> None:
    """Also if the first one had arrived, and only its answer was lost: the same bytes under the same key."""
    async with opened(server) as blobs:
        await put(blobs, b"first")
        server.fail(fault, when=is_upload)
        assert await read(blobs, await put(blobs, b"second")) == b"second"
        assert len(server.objects["exai"]) == 2


@pytest.mark.parametrize("fault", ["reset", "reset after", "busy", "short", "conflict", "forget"])
@pytest.mark.parametrize("piece", [1, 2, 3])
async def test_resumable_upload_survives_a_fault_at_every_piece(
    server: SupabaseStorage, fault: Any, piece: int
) -> None:
    """After each the server is asked how much it has; a forgotten upload begins again."""
    seen = 0

    def is_this_piece(asked: Asked) -> bool:
        nonlocal seen
        seen += is_patch(asked)
        return is_patch(asked) and seen == piece

    async with opened(server) as blobs:
        server.fail(fault, when=is_this_piece)
        assert await read(blobs, await put(blobs, LONG)) == LONG
    assert not server.faults
    sent = sum(len(each.body) for each in server.asked if is_patch(each))
    assert sent <= len(LONG) * 2 + PIECE_BYTES


async def test_finished_upload_whose_answer_was_lost_is_not_sent_again(server: SupabaseStorage) -> None:
    """The server does not know a finished upload any more, but it has the object (supabase/storage 417)."""
    seen = 0

    def is_last(asked: Asked) -> bool:
        nonlocal seen
        seen += is_patch(asked)
        return is_patch(asked) and seen == 3

    async with opened(server) as blobs:
        server.fail("reset after", when=is_last)
        await put(blobs, LONG)
    assert sum(map(is_patch, server.asked)) == 3


@pytest.mark.parametrize(
    "location",
    [
        "https://inner.example/upload/resumable",
        "http://kong:8000/storage/v1/upload/resumable",
        "/upload/resumable",
        "//evil.example/storage/v1/upload/resumable",
    ],
)
async def test_key_goes_to_the_configured_server_only(server: SupabaseStorage, location: str) -> None:
    """Servers behind a proxy name an inner host, another scheme, or leave the prefix of their path out."""
    server.location = location
    async with opened(server) as blobs:
        assert await read(blobs, await put(blobs, LONG)) == LONG


def test_location_that_is_no_upload_is_refused() -> None:
    """Nothing is sent to a path that the answer could choose freely."""
    base = httpx.URL("https://ref.supabase.co/storage/v1/")
    assert own_address(base, "http://x/upload/resumable/a") == "https://ref.supabase.co/storage/v1/upload/resumable/a"
    for location in ("", "http://x/", "https://x/upload/resumable", "https://x/bucket/../a"):
        with pytest.raises(StoreRefused):
            own_address(base, location)


async def test_redirect_is_not_followed(server: SupabaseStorage) -> None:
    """The key would go to another host."""
    async with opened(server) as blobs:
        server.fail("redirect")
        with pytest.raises(StoreRefused, match=r"302.*EXAI_FILES__SUPABASE__URL"):
            await blobs.check()


async def test_address_of_another_server_is_not_taken_for_an_empty_project(server: SupabaseStorage) -> None:
    """A gateway's 404 has no status in its body; a missing bucket's has."""
    async with opened(server, url=f"{server.url}/elsewhere") as blobs:
        with pytest.raises(StoreRefused, match="EXAI_FILES__SUPABASE__URL"):
            await blobs.check()


async def test_outage_is_an_error_that_names_the_setting_and_later_calls_do_not_wait(server: SupabaseStorage) -> None:
    """After a few failures the store is not asked for a while."""
    async with opened(server) as blobs:
        file = await put(blobs, b"data")
        server.fail(*["reset"] * 100)
        with pytest.raises(StoreAway, match="EXAI_FILES__SUPABASE__URL"):
            await read(blobs, file)
        before = len(server.asked)
        with pytest.raises(BlobError):
            await read(blobs, file)
        with pytest.raises(BlobError, match="not called"):
            await read(blobs, file)
        assert len(server.asked) - before <= 4


async def test_wrong_key_names_the_setting_and_is_not_repeated(server: SupabaseStorage) -> None:
    """The server answers 400 with another status in the body."""
    async with opened(server, key="sb_secret_another") as blobs:
        with pytest.raises(StoreRefused, match=r"EXAI_FILES__SUPABASE__KEY.*403") as caught:
            await put(blobs, b"data")
    assert "sb_secret_another" not in str(caught.value)
    assert len(server.asked) == 1


async def test_too_large_file_names_the_limit_and_is_not_repeated(server: SupabaseStorage) -> None:
    """A plan has a limit of its own, for one request and for pieces."""
    server.size_limit = PIECE_BYTES // 2
    async with opened(server) as blobs:
        for data in (LONG[:PIECE_BYTES], LONG):
            server.asked.clear()
            with pytest.raises(StoreRefused, match="Raise the size limit"):
                await put(blobs, data)
            assert len([each for each in server.asked if each.body or "resumable" in each.path]) <= 2


async def test_page_of_another_server_is_no_answer(server: SupabaseStorage) -> None:
    """A parked domain answers 200 with a page."""
    async with opened(server) as blobs:
        server.fail("html")
        with pytest.raises(StoreRefused, match="not Supabase Storage"):
            await blobs.check()


async def test_missing_object_is_missing_and_not_an_error_of_the_server(server: SupabaseStorage) -> None:
    """HTTP 400, and 404 in the body."""
    async with opened(server) as blobs:
        file = await put(blobs, b"data")
        server.objects["exai"].clear()
        with pytest.raises(BlobMissing):
            await read(blobs, file)
        assert await blobs.size(LOCAL_OWNER, file) is None
        assert await blobs.read_all(LOCAL_OWNER, {file.sha256: file}) == {}


async def test_server_that_ignores_ranges_still_gives_the_range(server: SupabaseStorage) -> None:
    """A proxy may drop the header."""
    async with opened(server) as blobs:
        file = await put(blobs, LONG[:1_000_000])
        server.fail("whole", when=lambda asked: asked.method == "GET")
        assert await blobs.read(LOCAL_OWNER, file, 500_000, 1_000) == LONG[500_000:501_000]


async def test_download_link_needs_no_key_and_other_objects_have_none(server: SupabaseStorage) -> None:
    """Signed for one object; made for each request, and never stored."""
    async with opened(server) as blobs:
        file, other = await put(blobs, b"linked"), await put(blobs, b"other", ATTEMPT.replace("1", "2"))
        address = await blobs.link(LOCAL_OWNER, file, 60)
        assert address is not None
        assert KEY not in address
        async with httpx.AsyncClient() as client:
            assert (await client.get(address)).content == b"linked"
            moved = address.replace(file.storage_path or "", other.storage_path or "")
            assert (await client.get(moved)).status_code == 400


async def test_half_of_an_upload_is_never_visible(server: SupabaseStorage) -> None:
    """The process is stopped between two pieces; the object is not there, and the next attempt stores it."""
    server.hold = asyncio.Event()
    async with opened(server) as blobs:
        uploading = asyncio.create_task(put(blobs, LONG))
        await server.held.wait()
        uploading.cancel()
        with pytest.raises(asyncio.CancelledError):
            await uploading
        assert server.objects["exai"] == {}
        server.hold.set()
        assert await read(blobs, await put(blobs, LONG, ATTEMPT.replace("1", "2"))) == LONG


async def test_sweep_removes_old_unused_objects_of_all_owners_and_pages(server: SupabaseStorage) -> None:
    """More objects than one page of a listing; young ones, used ones and those of another database stay."""
    async with opened(server) as blobs:
        kept = await put(blobs, b"kept")
        objects = server.objects["exai"]
        old = "2020-01-01T00:00:00+00:00"
        for number in range(1_500):
            objects[f"space/{'a' * 32}/{number:064}-x"] = Object(b"1234", old)
        young = [f"space/{'b' * 32}/{'c' * 64}-y", f"of another database/{'b' * 32}/{'c' * 64}-z"]
        objects[young[0]] = Object(b"new", "2999-01-01T00:00:00Z")
        objects[young[1]] = Object(b"their", old)
        objects[kept.storage_path or ""].created_at = old

        async def find_used(paths: Any) -> frozenset[str]:
            return frozenset(path for path in paths if path == kept.storage_path)

        rehearsed = await blobs.sweep(60, find_used, is_rehearsal=True)
        assert (rehearsed.contents, rehearsed.size_bytes, len(objects)) == (1_500, 6_000, 1_503)
        assert (await blobs.sweep(60, find_used)).contents == 1_500
        assert sorted(objects) == sorted([kept.storage_path or "", *young])
