"""Opens the stores that may have bytes of files, and selects the one for new files."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from typing import Final

from exai.blobs.base import Blobs, BlobStore
from exai.blobs.local import LocalBlobs
from exai.blobs.remote import RemoteBlobs
from exai.blobs.s3 import open_s3
from exai.blobs.supabase import open_supabase
from exai.db.contents import PostgresBlobs, space_of
from exai.db.driver.pool import Database
from exai.models import Recorder
from exai.settings.load import FileSettings, Settings

DIRECTORY: Final = "files"
"""The directory below the data directory in which local files are kept."""


@asynccontextmanager
async def open_stores(settings: Settings, database: Database, recorder: Recorder) -> AsyncIterator[Blobs]:
    """Open the stores; the contents of those that are not selected stay readable.

    Raises `StartupError` if a configured store needs a package that is not installed.
    """
    async with AsyncExitStack() as stack:
        stores: list[BlobStore] = [PostgresBlobs(database), LocalBlobs(settings.data_dir / DIRECTORY)]
        if settings.files.supabase.is_on or settings.files.s3.bucket is not None:
            space = await PostgresBlobs(database).identity()
            openings = remote_stores(settings.files, recorder, space)
            stores += [await stack.enter_async_context(opening) for opening in openings]
        chosen = next(store for store in stores if store.name == settings.files.store)
        yield Blobs(chosen, *(store for store in stores if store is not chosen), codec=database.codec)


@asynccontextmanager
async def open_outer_stores(
    settings: Settings, identity: str, recorder: Recorder
) -> AsyncIterator[dict[str, BlobStore]]:
    """Open the stores outside the database of this identity, which need no schema, by their names."""
    async with AsyncExitStack() as stack:
        stores: list[BlobStore] = [LocalBlobs(settings.data_dir / DIRECTORY)]
        openings = remote_stores(settings.files, recorder, space_of(identity))
        stores += [await stack.enter_async_context(opening) for opening in openings]
        yield {store.name: store for store in stores}


def remote_stores(
    settings: FileSettings, recorder: Recorder, space: str
) -> Iterator[AbstractAsyncContextManager[RemoteBlobs]]:
    """Return the openings of the configured stores that are neither on this machine nor in the database.

    `space` is the beginning of the keys under which they store.
    """
    if settings.supabase.is_on:
        yield open_supabase(settings.supabase, recorder, space)
    if settings.s3.bucket is not None:
        yield open_s3(settings.s3, recorder, space)
