"""Opens the stores that may have bytes of files, and selects the one for new files."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

from exai.blobs.base import Blobs, BlobStore
from exai.blobs.local import LocalBlobs
from exai.db.contents import PostgresBlobs
from exai.db.driver.pool import Database
from exai.settings.load import Settings

DIRECTORY: Final = "files"
"""The directory below the data directory in which local files are kept."""


@asynccontextmanager
async def open_stores(settings: Settings, database: Database) -> AsyncIterator[Blobs]:
    """Open the stores; the contents of those that are not selected stay readable."""
    stores: list[BlobStore] = [PostgresBlobs(database), LocalBlobs(settings.data_dir / DIRECTORY)]
    chosen = next(store for store in stores if store.name == settings.files.store)
    yield Blobs(chosen, *(store for store in stores if store is not chosen))
