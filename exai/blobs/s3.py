"""Stores blobs in an S3-compatible bucket, through obstore.

Only what every server of the protocol has is used: no tags, no checksum trailers, no conditional writes. A content is
one request up to 64 MiB, which is atomic; a longer one is a multipart upload, which becomes visible with its last call.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, ClassVar, Final

from exai.blobs.faults import BlobMissing, StoreAway, StoreRefused
from exai.blobs.remote import RemoteBlobs, StoredObject
from exai.errors import StartupError
from exai.models import Recorder
from exai.settings.load import S3Settings

if TYPE_CHECKING:
    from obstore.store import S3Config, S3Store

ONE_REQUEST_BYTES: Final = 64 * 1_048_576
PART_BYTES: Final = 16 * 1_048_576
LIST_ITEMS: Final = 1_000
LINK_MAX_S: Final = 604_800
"""Signed addresses of S3 end after a week."""

CONNECT_S: Final = 5
REQUEST_S: Final = 60
LIBRARY_RETRIES: Final = 0
"""`Retries` repeats requests, within the deadline of the call."""

BUCKET: Final = "EXAI_FILES__S3__BUCKET"
KEYS: Final = "Check EXAI_FILES__S3__ACCESS_KEY_ID and EXAI_FILES__S3__SECRET_ACCESS_KEY"


class S3Blobs(RemoteBlobs):
    """A `BlobStore` in a bucket of an S3-compatible service."""

    name: ClassVar[str] = "s3"


@asynccontextmanager
async def open_s3(
    settings: S3Settings,
    recorder: Recorder,
    space: str,
    *,
    one_request_bytes: int = ONE_REQUEST_BYTES,
    part_bytes: int = PART_BYTES,
) -> AsyncIterator[S3Blobs]:
    """Open the store; no request is made yet. Raises `StartupError` without the extra `s3`.

    A longer content than `one_request_bytes` is sent in parts of `part_bytes`, at least 5 MiB.
    """
    try:
        from obstore.store import S3Store
    except ImportError as error:
        problem = f"needs a package that is not installed ({error.name})"
        raise StartupError("EXAI_FILES__S3__BUCKET", problem, 'Install it with pip install "exai[s3]"') from None
    if settings.bucket is None:
        raise AssertionError("the settings were checked")
    config: S3Config = {
        "region": settings.region,
        "virtual_hosted_style_request": settings.endpoint is None,
    }
    if settings.endpoint is not None:
        config["endpoint"] = settings.endpoint
    if settings.access_key_id is not None and settings.secret_access_key is not None:
        config["access_key_id"] = settings.access_key_id.get_secret_value()
        config["secret_access_key"] = settings.secret_access_key.get_secret_value()
    store = S3Store(
        settings.bucket,
        prefix=settings.prefix or None,
        config=config,
        client_options={
            "allow_http": (settings.endpoint or "").lower().startswith("http://"),
            "connect_timeout": timedelta(seconds=CONNECT_S),
            "timeout": timedelta(seconds=REQUEST_S),
        },
        retry_config={"max_retries": LIBRARY_RETRIES},
    )
    bucket = S3Bucket(store, settings, one_request_bytes=one_request_bytes, part_bytes=part_bytes)
    yield S3Blobs(bucket, recorder, space=space)


class S3Bucket:
    """One bucket, or the part of it below a prefix."""

    def __init__(self, store: S3Store, settings: S3Settings, *, one_request_bytes: int, part_bytes: int) -> None:
        self._store, self._settings = store, settings
        self._one_request_bytes, self._part_bytes = one_request_bytes, part_bytes

    @property
    def shown(self) -> str:
        """Return the bucket and its address."""
        where = self._settings.endpoint or f"AWS ({self._settings.region})"
        prefix = f", prefix {self._settings.prefix}" if self._settings.prefix else ""
        return f"S3 at {where}, bucket {self._settings.bucket}{prefix}"

    async def check(self) -> str:
        """List at most one object."""
        import obstore

        with _translated():
            async for _ in obstore.list(self._store, chunk_size=1):
                break
        return self.shown

    async def put(self, key: str, data: bytes) -> None:
        """Store an object, visible when it is complete."""
        import obstore

        is_long = len(data) > self._one_request_bytes
        with _translated():
            await obstore.put_async(self._store, key, data, use_multipart=is_long, chunk_size=self._part_bytes)

    async def read(self, key: str, offset: int, size_bytes: int) -> bytes:
        """Return some bytes of an object."""
        import obstore

        with _translated():
            return bytes(await obstore.get_range_async(self._store, key, start=offset, length=size_bytes))

    async def size(self, key: str) -> int:
        """Return the size of an object."""
        import obstore

        with _translated():
            return (await obstore.head_async(self._store, key))["size"]

    async def link(self, key: str, lifetime_s: int, name: str) -> str:
        """Return a signed address; the protocol's signature cannot be given a file name by the library."""
        import obstore

        del name
        with _translated():
            return await obstore.sign_async(self._store, "GET", key, timedelta(seconds=min(lifetime_s, LINK_MAX_S)))

    async def delete(self, keys: Sequence[str]) -> None:
        """Delete objects one by one: not every server has the request for many."""
        import obstore

        for key in keys:
            try:
                with _translated():
                    await obstore.delete_async(self._store, key)
            except BlobMissing:
                continue

    async def list(self, space: str) -> AsyncIterator[Sequence[StoredObject]]:
        """List all objects below the prefix and `space`."""
        import obstore

        with _translated():
            async for batch in obstore.list(self._store, space, chunk_size=LIST_ITEMS):
                yield [StoredObject(each["path"], each["size"], each["last_modified"].timestamp()) for each in batch]


@contextmanager
def _translated() -> Iterator[None]:
    """Translate the library's errors by their class; its texts name requests, and are not shown."""
    from obstore import exceptions

    try:
        yield
    except (exceptions.NotFoundError, FileNotFoundError) as error:
        cure = f"Check {BUCKET}; else restore it from a backup"
        raise BlobMissing("files", "S3 has no such object or bucket: it is missing", cure) from error
    except (exceptions.PermissionDeniedError, exceptions.UnauthenticatedError) as error:
        raise StoreRefused("EXAI_FILES__S3", "S3 refused the access key, or what it may do", KEYS) from error
    except (exceptions.InvalidPathError, exceptions.NotSupportedError) as error:
        raise StoreRefused("files", f"S3 cannot do this ({type(error).__name__})", f"Check {BUCKET}") from error
    except exceptions.BaseError as error:
        cure = f"Check the network, EXAI_FILES__S3__ENDPOINT, and that the bucket of {BUCKET} exists"
        raise StoreAway("files", f"S3 did not answer as expected ({type(error).__name__})", cure) from error
