"""A program that stores a file in Supabase Storage, for tests that end it: DATABASE-URL STORAGE-URL KEY."""

from __future__ import annotations

import asyncio
import hashlib
import sys

from exai.blobs.supabase import open_supabase
from exai.files.loading import FileContent
from exai.models import LOCAL_OWNER
from exai.settings.load import SupabaseStorageSettings
from tests.integration.blobs.conftest import service
from tests.support.counters import Counters
from tests.support.database import opened

DATA = hashlib.shake_128(b"killed").digest(13 * 1_048_576)


async def main(database_url: str, storage_url: str, key: str) -> None:
    settings = SupabaseStorageSettings.model_validate({"url": storage_url, "key": key})
    async with opened(database_url) as database, open_supabase(settings, Counters(), "space") as store:
        await service(database, {"supabase": store}, "supabase").put(LOCAL_OWNER, [FileContent("a.bin", DATA)])


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
