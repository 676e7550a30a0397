"""A program that stores a file in a bucket, for tests that end it: DATABASE-URL SETTINGS ONE-REQUEST-BYTES."""

from __future__ import annotations

import asyncio
import sys

from exai.blobs.s3 import open_s3
from exai.files.loading import FileContent
from exai.models import LOCAL_OWNER
from exai.settings.load import S3Settings
from tests.integration.blobs.conftest import service
from tests.integration.blobs.putting import DATA
from tests.support.counters import Counters
from tests.support.database import opened

PART_BYTES = 5 * 1_048_576


async def main(database_url: str, settings: str, one_request_bytes: str) -> None:
    given = S3Settings.model_validate_json(settings)
    opening = open_s3(given, Counters(), "space", one_request_bytes=int(one_request_bytes), part_bytes=PART_BYTES)
    async with opened(database_url) as database, opening as store:
        await service(database, {"s3": store}, "s3").put(LOCAL_OWNER, [FileContent("a.bin", DATA)])


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
