"""One file service for each store, on a database of its own."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from exai.blobs.base import Blobs, BlobStore
from exai.blobs.local import LocalBlobs
from exai.blobs.s3 import open_s3
from exai.blobs.supabase import open_supabase
from exai.db.contents import PostgresBlobs
from exai.db.driver.pool import Database
from exai.db.files import FileRepository
from exai.files.paths import Roots
from exai.files.service import FileService
from exai.settings.load import FileSettings, LimitSettings, SupabaseStorageSettings
from tests.support.counters import Counters
from tests.support.database import opened
from tests.support.s3_server import s3_bucket
from tests.support.supabase_storage import KEY, SupabaseStorage

OTHERS: Mapping[str, str] = {
    "postgres": "directory",
    "directory": "postgres",
    "supabase": "postgres",
    "s3": "directory",
}
"""A second store for each, which stays readable."""


@dataclass
class Stored:
    """A file service, its stores, and the database behind it."""

    files: FileService
    stores: Mapping[str, BlobStore]
    database: Database
    url: str

    @property
    def store(self) -> BlobStore:
        """The selected store."""
        return self.files.blobs.chosen

    def choosing(self, name: str) -> FileService:
        """The same stores with another one selected."""
        return service(self.database, self.stores, name)


def service(database: Database, stores: Mapping[str, BlobStore], name: str) -> FileService:
    others = (store for each, store in stores.items() if each != name)
    settings = FileSettings(orphan_grace_s=60)
    return FileService(
        FileRepository(database),
        Blobs(stores[name], *others),
        settings,
        limits=LimitSettings(),
        roots=Roots([]),
    )


Opening = Callable[[Database, Path], AbstractAsyncContextManager[BlobStore]]


@asynccontextmanager
async def _postgres(database: Database, _: Path) -> AsyncIterator[BlobStore]:
    yield PostgresBlobs(database)


@asynccontextmanager
async def _directory(_: Database, path: Path) -> AsyncIterator[BlobStore]:
    yield LocalBlobs(path / "files")


@asynccontextmanager
async def _supabase(_: Database, __: Path) -> AsyncIterator[BlobStore]:
    async with SupabaseStorage() as server:
        settings = SupabaseStorageSettings.model_validate({"url": server.url, "key": KEY})
        async with open_supabase(settings, Counters(), "space") as store:
            yield store


@asynccontextmanager
async def _s3(_: Database, __: Path) -> AsyncIterator[BlobStore]:
    async with s3_bucket() as settings, open_s3(settings, Counters(), "space") as store:
        yield store


OPENINGS: Mapping[str, Opening] = {"postgres": _postgres, "directory": _directory, "supabase": _supabase, "s3": _s3}


@pytest.fixture(params=list(OPENINGS))
async def stored(request: pytest.FixtureRequest, postgres_url: str, tmp_path: Path) -> AsyncIterator[Stored]:
    """A service with one of the stores, and another store beside it."""
    name = request.param
    async with opened(postgres_url) as database:
        async with OPENINGS[name](database, tmp_path) as one, OPENINGS[OTHERS[name]](database, tmp_path) as other:
            stores = {name: one, other.name: other}
            yield Stored(service(database, stores, name), stores, database, postgres_url)
