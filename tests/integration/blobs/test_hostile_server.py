"""Supabase Storage whose answers are not those of a storage server: each is an error that names the cause."""

from __future__ import annotations

import gzip
import json
from collections.abc import Awaitable, Callable
from typing import Any

import httpx
import pytest

from exai.blobs.answers import MAX_ANSWER_BYTES
from exai.blobs.faults import StoreAway, StoreRefused
from exai.blobs.supabase import SupabaseBlobs
from exai.blobs.tus import MAX_PROBLEMS, own_address
from exai.errors import BlobError
from exai.models import LOCAL_OWNER, StoredFile
from tests.integration.blobs.test_supabase import LONG, is_patch, opened, put, server
from tests.support.supabase_storage import Answer, Asked, SupabaseStorage

__all__ = ["server"]

DEEP = b"[" * 200_000
BODIES: dict[str, Answer] = {
    "a number": Answer(200, b"5"),
    "a list": Answer(200, b"[1]"),
    "a text": Answer(200, b'"x"'),
    "rows without names": Answer(200, b'[{"id": null}]'),
    "metadata that is no object": Answer(200, b'{"metadata": 5, "signedURL": 5}'),
    "a negative size": Answer(200, b'{"size": -1, "signedURL": "https://evil.example/"}'),
    "a signed address of two lines": Answer(200, b'{"signedURL": "/a\\nb", "size": true}'),
    "deep": Answer(200, DEEP),
    "a deep error": Answer(400, DEEP),
    "a status of no digits": Answer(400, '{"statusCode": "²"}'.encode()),
    "a status of many digits": Answer(400, json.dumps({"statusCode": "4" * 5_000}).encode()),
    "no compression": Answer(200, b"abc", {"Content-Encoding": "gzip"}),
    "a compressed bomb": Answer(200, gzip.compress(bytes(64 * 1_048_576)), {"Content-Encoding": "gzip"}),
    "an error without end": Answer(400, b"x" * (MAX_ANSWER_BYTES + 65_537)),
}


async def nothing_used(_: Any) -> frozenset[str]:
    return frozenset()


OPERATIONS: dict[str, Callable[[SupabaseBlobs, StoredFile], Awaitable[Any]]] = {
    "size": lambda blobs, file: blobs.size(LOCAL_OWNER, file),
    "link": lambda blobs, file: blobs.link(LOCAL_OWNER, file, 60),
    "sweep": lambda blobs, _: blobs.sweep(-60, nothing_used),
    "check": lambda blobs, _: blobs.check(),
}


@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("kind", BODIES)
async def test_an_answer_of_another_form_is_an_error_of_the_store(
    server: SupabaseStorage, kind: str, operation: str
) -> None:
    """Never one of this program; and it is not believed, either."""
    async with opened(server) as blobs:
        file = await put(blobs, b"data")
        server.fail(*[BODIES[kind]] * 8)
        try:
            found = await OPERATIONS[operation](blobs, file)
        except BlobError:
            return
        assert operation in ("check", "sweep"), found
        assert kind not in ("deep", "a compressed bomb", "no compression")


async def test_an_endless_error_of_a_download_is_not_read_to_its_end(server: SupabaseStorage) -> None:
    """The answer to a download is read in pieces; so is its error."""
    async with opened(server) as blobs:
        file = await put(blobs, b"data")
        server.fail(BODIES["an error without end"])
        with pytest.raises(StoreRefused, match="more than"):
            await blobs.read(LOCAL_OWNER, file, 0, 4)


@pytest.mark.parametrize("stated", ["bytes 0-3/9", "bytes 55-58/99", "bytes 50", "pages 5-8/9"])
async def test_another_range_than_asked_for_is_not_taken_for_it(server: SupabaseStorage, stated: str) -> None:
    """A cache in between may answer with another part, and only whole files are compared with their digests."""
    async with opened(server) as blobs:
        file = await put(blobs, b"0123456789")
        server.fail(Answer(206, b"0123", {"Content-Range": stated}))
        with pytest.raises(StoreRefused, match="another range"):
            await blobs.read(LOCAL_OWNER, file, 5, 4)
        assert await blobs.read(LOCAL_OWNER, file, 5, 4) == b"5678"


async def test_a_listing_that_does_not_page_ends(server: SupabaseStorage) -> None:
    """A server that ignores the offset would be asked for ever."""
    rows = json.dumps([{"name": f"{number:032}", "id": None} for number in range(1_000)]).encode()
    async with opened(server) as blobs:
        await put(blobs, b"data")
        server.fail(*[Answer(200, rows)] * 100, when=lambda asked: "/object/list/" in asked.path)
        with pytest.raises(StoreRefused, match="same page"):
            await blobs.sweep(60, nothing_used)


@pytest.mark.parametrize(
    "location",
    [
        "http://[/upload/resumable/a",
        "/upload/resumable/\x7fa",
        "/upload/resumable/..",
        "/upload/resumable/../../bucket",
    ],
)
def test_a_location_that_is_no_address_is_refused(location: str) -> None:
    """The key is sent to the path of uploads only."""
    with pytest.raises(StoreRefused, match="names no address"):
        own_address(httpx.URL("https://ref.supabase.co/storage/v1/"), location)


@pytest.mark.parametrize("offset", ["999999999", "-7"])
async def test_a_server_that_claims_too_much_of_an_upload_is_not_believed(
    server: SupabaseStorage, offset: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A row would refer to bytes that were never sent."""
    for module in ("remote", "supabase"):
        monkeypatch.setattr(f"exai.blobs.{module}.BACKOFF_MAX_S", 0.001)

    def asks_or_sends(asked: Asked) -> bool:
        return asked.method in ("PATCH", "HEAD")

    async with opened(server) as blobs:
        await put(blobs, b"data")
        server.fail("reset", *[Answer(200, headers={"Upload-Offset": offset})] * 100, when=asks_or_sends)
        with pytest.raises((StoreAway, StoreRefused)):
            await put(blobs, LONG)
    assert all(offset not in each.headers.get("upload-offset", "") for each in server.asked)


async def test_an_upload_that_is_forgotten_each_time_ends(server: SupabaseStorage) -> None:
    """Each piece fails, and then the server does not know the upload any more."""
    waits: list[int] = []

    async def no_pause(problems: int) -> None:
        waits.append(problems)
        server.uploads.clear()

    async with opened(server) as blobs:
        await put(blobs, b"data")
        server.fail(*["busy"] * 1_000, when=is_patch)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("exai.blobs.supabase._pause", no_pause)
            patch.setattr("exai.blobs.remote.MAX_ATTEMPTS", 1)
            with pytest.raises(StoreAway):
                await put(blobs, LONG)
    assert len(waits) <= MAX_PROBLEMS
