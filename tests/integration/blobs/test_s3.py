"""An S3-compatible bucket: errors that name the setting, long objects, and links."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator

import httpx
import pytest

from exai.blobs.faults import StoreAway
from exai.blobs.s3 import LINK_MAX_S, ONE_REQUEST_BYTES, S3Blobs, open_s3
from exai.errors import BlobError
from exai.models import LOCAL_OWNER, FileId, StoredFile
from exai.settings.load import S3Settings
from tests.support.counters import Counters
from tests.support.s3_server import s3_bucket

ATTEMPT = "00000000-0000-4000-8000-000000000001"


@pytest.fixture
async def settings() -> AsyncIterator[S3Settings]:
    async with s3_bucket() as given:
        yield given


async def put(blobs: S3Blobs, data: bytes) -> StoredFile:
    sha256 = hashlib.sha256(data).hexdigest()
    path = await blobs.put(LOCAL_OWNER, sha256, data, ATTEMPT)
    return StoredFile(FileId("1"), sha256, len(data), "text/plain", "a", None, store="s3", storage_path=path)  # type: ignore[arg-type]


async def test_long_object_is_sent_in_parts_and_read_by_range(settings: S3Settings) -> None:
    """Visible when its last part has arrived."""
    data = hashlib.shake_128(b"long").digest(ONE_REQUEST_BYTES + 1_000)
    async with open_s3(settings, Counters(), "space") as blobs:
        file = await put(blobs, data)
        assert await blobs.size(LOCAL_OWNER, file) == len(data)
        assert await blobs.read(LOCAL_OWNER, file, len(data) - 1_000, 1_000) == data[-1_000:]


async def test_link_needs_no_key_and_is_never_longer_than_the_protocol_allows(settings: S3Settings) -> None:
    """A server refuses a signature for more than a week."""
    async with open_s3(settings, Counters(), "space") as blobs:
        address = await blobs.link(LOCAL_OWNER, await put(blobs, b"linked"), LINK_MAX_S * 4)
    assert address is not None
    assert f"X-Amz-Expires={LINK_MAX_S}" in address
    assert "secret-of-the-test" not in address
    async with httpx.AsyncClient() as client:
        assert (await client.get(address)).content == b"linked"


async def test_keys_below_a_prefix_and_of_another_database_are_told_apart(settings: S3Settings) -> None:
    """One bucket for several uses: a sweep removes nothing of the others."""
    below = settings.model_copy(update={"prefix": "files/of exai"})

    async def none_used(_: object) -> frozenset[str]:
        return frozenset()

    async with open_s3(settings, Counters(), "one") as one, open_s3(below, Counters(), "one") as other:
        async with open_s3(settings, Counters(), "two") as two:
            mine, theirs, elsewhere = await put(one, b"1"), await put(other, b"2"), await put(two, b"3")
            assert (await one.sweep(-60, none_used)).contents == 1
            assert await one.size(LOCAL_OWNER, mine) is None
            assert await other.size(LOCAL_OWNER, theirs) == 1
            assert await two.size(LOCAL_OWNER, elsewhere) == 1


async def test_missing_bucket_and_unreachable_server_name_their_settings(settings: S3Settings) -> None:
    """Neither text holds the secret."""
    async with open_s3(settings.model_copy(update={"bucket": "nowhere-at-all"}), Counters(), "space") as blobs:
        with pytest.raises(BlobError, match="EXAI_FILES__S3__BUCKET"):
            await blobs.check()
    async with open_s3(settings.model_copy(update={"endpoint": "http://127.0.0.1:1"}), Counters(), "space") as blobs:
        with pytest.raises(StoreAway, match="EXAI_FILES__S3__ENDPOINT") as caught:
            await blobs.check()
    assert "secret-of-the-test" not in str(caught.value)
