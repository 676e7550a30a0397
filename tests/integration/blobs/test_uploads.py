"""Uploads to a remote store: what a repetition costs, and what a process leaves that is killed at any step of one."""

from __future__ import annotations

import asyncio
import json
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from exai.blobs.local import LocalBlobs
from exai.blobs.s3 import open_s3
from exai.blobs.supabase import open_supabase
from exai.db.contents import PostgresBlobs
from exai.files.loading import FileContent
from exai.models import LOCAL_OWNER
from exai.settings.load import S3Settings, SupabaseStorageSettings
from tests.integration.blobs.conftest import service
from tests.integration.blobs.putting import DATA
from tests.support.commands import ROOT, Process, environment, start
from tests.support.counters import Counters
from tests.support.database import opened
from tests.support.migrations import run, value
from tests.support.pg_proxy import PgProxy
from tests.support.s3_server import HoldingProxy, s3_bucket
from tests.support.supabase_storage import KEY, SupabaseStorage

REQUESTS = 6
"""Of an upload in three pieces: the bucket is asked for and made, the upload begun, and three pieces sent."""

FEWEST_CHANGES = 5
"""The directory and one below it, the temporary file, its new name, and the row."""


@pytest.mark.direct
async def test_eight_files_given_again_cost_one_statement_and_no_upload(postgres_url: str) -> None:
    """The first time: one statement that finds none, the bytes, and one statement for all rows."""
    contents = [FileContent(f"{n}.txt", b"%d" % n * 100_000) for n in range(8)]
    async with SupabaseStorage() as server, PgProxy(postgres_url) as proxy, opened(proxy.url) as database:
        settings = SupabaseStorageSettings.model_validate({"url": server.url, "key": KEY})
        async with open_supabase(settings, Counters(), "space") as store:
            files = service(database, {"supabase": store, "postgres": PostgresBlobs(database)}, "supabase")
            await files.list(LOCAL_OWNER)
            proxy.reset()
            first = await files.put(LOCAL_OWNER, contents)
            assert (proxy.round_trips, server.uploads_of()) == (2, 8)
            proxy.reset()
            server.asked.clear()
            again = await files.put(LOCAL_OWNER, contents)
            renamed = await files.put(LOCAL_OWNER, [FileContent(f"new {each.name}", each.data) for each in contents])
            assert (proxy.round_trips, len(server.asked)) == (2, 0)
            assert [file.id for file in again] == [file.id for file in first]
            assert all(file.created for file in renamed)


@pytest.mark.parametrize("is_done", [False, True])
async def test_process_killed_at_any_step_of_an_upload_leaves_nothing_broken(postgres_url: str, is_done: bool) -> None:
    """Before each request is carried out, and before its answer arrives: no row without bytes, no half of a file."""
    async with SupabaseStorage() as server, opened(postgres_url) as database:
        settings = SupabaseStorageSettings.model_validate({"url": server.url, "key": KEY})
        for step in range(1, REQUESTS + 1):
            server.buckets.clear()
            server.objects.clear()
            server.asked.clear()
            server.held.clear()
            server.stop_at = step, is_done
            await killed(postgres_url, server)
            server.stop_at = None
            complete = [each for each in server.objects.get("exai", {}).values() if each.data == DATA]
            assert len(complete) == len(server.objects.get("exai", {})) == (step == REQUESTS and is_done)
            assert await value(postgres_url, "select count(*) from exai.contents") == 0
            async with open_supabase(settings, Counters(), "space") as store:
                files = service(database, {"supabase": store}, "supabase")
                assert (await files.list(LOCAL_OWNER)).files == ()
                (file,) = await files.put(LOCAL_OWNER, [FileContent("a.bin", DATA)])
                assert (await files.read(LOCAL_OWNER, file.id))[1] == DATA
                assert (await store.sweep(-60, files.repository.known)).contents == len(complete)
                assert (await files.read(LOCAL_OWNER, file.id))[1] == DATA
            await run(postgres_url, "delete from public.files", "delete from exai.contents")


async def test_process_killed_at_any_step_of_a_write_to_the_directory_leaves_nothing_broken(
    postgres_url: str, tmp_path: Path
) -> None:
    """Before each change of the directory, and before the row is stored: no row without bytes, no half of a file."""
    steps = 0
    async with opened(postgres_url) as database:
        while await ends_itself(postgres_url, tmp_path / f"{steps + 1}", steps + 1):
            steps += 1
            store = LocalBlobs(tmp_path / f"{steps}")
            complete = [path for path in store.root.glob("*/*/*") if not path.name.startswith(".")]
            assert all(path.read_bytes() == DATA for path in complete)
            assert await value(postgres_url, "select count(*) from exai.contents") == 0
            files = service(database, {"directory": store}, "directory")
            assert (await files.list(LOCAL_OWNER)).files == ()
            (file,) = await files.put(LOCAL_OWNER, [FileContent("a.bin", DATA)])
            await store.sweep(-60, files.repository.known)
            assert (await files.read(LOCAL_OWNER, file.id))[1] == DATA
            assert [path.name for path in store.root.rglob("*") if path.is_file()] == [file.sha256]
            await run(postgres_url, "delete from public.files", "delete from exai.contents")
    assert steps >= FEWEST_CHANGES


@pytest.mark.parametrize(
    ("one_request_bytes", "requests"), [(64 * 1_048_576, 1), pytest.param(1, 5, marks=pytest.mark.heavy)]
)
async def test_process_killed_at_any_step_of_an_upload_to_a_bucket_leaves_nothing_broken(
    postgres_url: str, one_request_bytes: int, requests: int
) -> None:
    """In one request, and in parts: begun, three parts, and completed. Each process ends before one of them, or when
    the last is done. Slow, because each imports all of EXAI; those in parts run with `make fault`."""
    async with s3_bucket() as settings, opened(postgres_url) as database:
        async with HoldingProxy(settings.endpoint or "").running() as proxy:
            through = settings.model_copy(update={"endpoint": proxy.url})
            steps = [(number, False) for number in range(1, requests + 1)] + [(requests, True)]
            for number, is_done in steps:
                proxy.stop(number, is_done=is_done)
                await killed_at(proxy, postgres_url, through, one_request_bytes)
                assert await value(postgres_url, "select count(*) from exai.contents") == 0
                async with open_s3(settings, Counters(), "space") as store:
                    assert (await store.sweep(-60, nothing_used, is_rehearsal=True)).contents == is_done
                    files = service(database, {"s3": store}, "s3")
                    assert (await files.list(LOCAL_OWNER)).files == ()
                    (file,) = await files.put(LOCAL_OWNER, [FileContent("a.bin", DATA)])
                    # What `exai prune` counts in a rehearsal, and removes.
                    assert (await store.sweep(-60, files.repository.known, is_rehearsal=True)).contents == is_done
                    assert (await store.sweep(-60, files.repository.known)).size_bytes == is_done * len(DATA)
                    assert (await files.read(LOCAL_OWNER, file.id))[1] == DATA
                    await store.remove(LOCAL_OWNER, file)
                await run(postgres_url, "delete from public.files", "delete from exai.contents")


async def nothing_used(_: Sequence[str]) -> frozenset[str]:
    return frozenset()


async def killed_at(proxy: HoldingProxy, postgres_url: str, settings: S3Settings, one_request_bytes: int) -> None:
    """Run the program until the proxy holds its request, and kill it there."""
    secrets = {"access_key_id": "test", "secret_access_key": "secret-of-the-test"}
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "tests.integration.blobs.putting_s3",
        postgres_url,
        json.dumps({"bucket": settings.bucket, "endpoint": settings.endpoint, **secrets}),
        str(one_request_bytes),
        cwd=ROOT,
        env=environment({"PYTHONPATH": str(ROOT)}),
    )
    try:
        async with asyncio.timeout(60):
            await proxy.held.wait()
    finally:
        process.kill()
        await process.wait()


async def ends_itself(postgres_url: str, directory: Path, step: int) -> bool:
    """Run the program; return whether it reached the step at which it kills itself."""
    process = start_here("putting_locally", postgres_url, str(directory), str(step))
    status = await asyncio.to_thread(process.wait, 60)
    assert status in (0, -signal.SIGKILL)
    return status != 0


async def killed(postgres_url: str, server: SupabaseStorage) -> None:
    """Run the program until the server holds its request, and kill it there."""
    process = start_here("putting", postgres_url, server.url, KEY)
    try:
        async with asyncio.timeout(60):
            await server.held.wait()
    finally:
        process.kill()
        await asyncio.to_thread(process.wait, 60)


def start_here(module: str, *arguments: str) -> Process:
    env = environment({"PYTHONPATH": str(ROOT)})
    output = sys.__stderr__.buffer
    return start(f"{__package__}.{module}", *arguments, env=env, cwd=ROOT, stdout=output, stderr=output)
