"""`exai blobs`, `exai prune` and `exai doctor` as an operator runs them, with a remote store."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from pathlib import Path
from typing import Any

import httpx
import pytest

from exai.app import open_app
from exai.files.loading import FileContent
from exai.models import LOCAL_OWNER, StoredFile
from exai.settings.load import load_settings
from tests.support.commands import run_exai_as_text
from tests.support.migrations import run, value
from tests.support.supabase_storage import KEY, SupabaseStorage

ROOT = Path(__file__).resolve().parents[3]
Exai = Callable[..., Coroutine[Any, Any, tuple[int, str]]]
DATA = {f"{n}.txt": b"%d" % n * 100_000 for n in range(3)}


@pytest.fixture
async def server() -> AsyncIterator[SupabaseStorage]:
    async with SupabaseStorage() as running:
        yield running


@pytest.fixture
def variables(postgres_url: str, server: SupabaseStorage, tmp_path: Path) -> dict[str, str]:
    return {
        "HOME": str(tmp_path),
        "EXAI_DATABASE__URL": postgres_url,
        "EXAI_CACHE__URL": "off",
        "EXAI_DATA_DIR": str(tmp_path),
        "EXAI_FILES__SUPABASE__URL": server.url,
        "EXAI_FILES__SUPABASE__KEY": KEY,
    }


@pytest.fixture
def exai(variables: dict[str, str], tmp_path: Path) -> Exai:
    async def command(*arguments: str) -> tuple[int, str]:
        done = await asyncio.to_thread(run_exai_as_text, *arguments, settings=variables, cwd=tmp_path)
        return done.returncode, done.stdout + done.stderr

    return command


async def stored(variables: dict[str, str]) -> tuple[StoredFile, ...]:
    async with open_app(load_settings(variables, None)) as app:
        return await app.files.put(LOCAL_OWNER, [FileContent(name, data) for name, data in DATA.items()])


async def test_files_move_into_a_remote_store_are_verified_and_come_back(
    exai: Exai, variables: dict[str, str], server: SupabaseStorage, postgres_url: str
) -> None:
    """The second run finds nothing to move; an address for a download works without a key."""
    files = await stored(variables)
    assert (await exai("blobs", "link", files[0].id))[0] == 1
    status, out = await exai("blobs", "migrate", "postgres", "supabase")
    assert (status, "3 contents moved from postgres to supabase" in out) == (0, True), out
    assert len(server.objects["exai"]) == 3
    status, out = await exai("blobs", "migrate", "postgres", "supabase")
    assert "0 contents moved" in out
    status, out = await exai("blobs", "verify")
    assert (status, "3 contents verified (300,000 bytes), 0 with a problem" in out) == (0, True), out
    status, out = await exai("blobs", "link", files[0].id, "--lifetime-s", "60")
    async with httpx.AsyncClient() as client:
        assert (await client.get(out.split()[-1])).content == DATA["0.txt"]
    await run(postgres_url, "update exai.blobs set begun_at = '2000-01-01'")
    status, out = await exai("prune", "--dry-run")
    assert "would remove 0 orphaned files and the bytes of 3 contents (300,000 bytes)" in out
    await exai("prune")
    assert await value(postgres_url, "select count(*) from exai.blobs") == 0
    assert (await exai("blobs", "migrate", "supabase", "directory"))[0] == 0
    async with open_app(load_settings(variables, None)) as app:
        assert [(await app.files.read(LOCAL_OWNER, file.id))[1] for file in files] == list(DATA.values())
        runs = [each.data for each in await app.history.events() if each.type == "command_run"]
        assert [each["labels"] for each in runs] == [
            {"command": command, "outcome": "ok"}
            for command in ("blobs migrate", "prune", "blobs verify", "blobs migrate", "blobs migrate")
        ]
        assert [each["figures"]["contents"] for each in runs] == [3, 3, 3, 0, 3]
        # The database is the selected store, and moves what only this daemon can read.
        assert {file.store for file in (await app.files.list(LOCAL_OWNER)).files} == {"directory"}


async def test_lost_and_changed_objects_are_named_marked_and_repaired(
    exai: Exai, variables: dict[str, str], server: SupabaseStorage
) -> None:
    """One was deleted in the dashboard, one was overwritten; giving both again stores them again."""
    variables["EXAI_FILES__STORE"] = "supabase"
    lost, changed, _ = await stored(variables)
    objects = server.objects["exai"]
    del objects[lost.storage_path or ""]
    objects[changed.storage_path or ""].data = b"x" * 100_000
    status, out = await exai("prune", "--dry-run")
    assert lost.id in out
    assert "the bytes are missing" in out
    status, out = await exai("blobs", "verify", "--repair")
    assert status == 1
    assert "3 contents verified (300,000 bytes), 2 with a problem" in out
    assert "2 marked" in out
    assert "the bytes have changed" in out
    again = await stored(variables)
    assert [file.id for file in again][:2] == [lost.id, changed.id]
    assert (await exai("blobs", "verify"))[0] == 0


async def test_doctor_and_health_ask_the_store(exai: Exai, variables: dict[str, str], server: SupabaseStorage) -> None:
    """A public bucket and a wrong key are problems with a cure; the key is not shown."""
    variables["EXAI_FILES__STORE"] = "supabase"
    assert "which is made with the first file" in (await exai("doctor"))[1]
    async with open_app(load_settings(variables, None)) as app:
        assert component(app)["state"] == "ok"
        server.buckets["exai"] = True
    async with open_app(load_settings(variables, None)) as app:
        assert component(app)["state"] == "down"
        assert "public" in component(app)["detail"]
    status, out = await exai("doctor")
    assert "Make it private" in out
    variables["EXAI_FILES__SUPABASE__KEY"] = "sb_secret_of_another"
    status, out = await exai("doctor")
    assert status == 1
    assert "EXAI_FILES__SUPABASE__KEY" in out or "service_role key" in out
    assert "sb_secret_of_another" not in out


def component(app: Any) -> dict[str, Any]:
    found: dict[str, Any] = app.health.report().as_json()["components"]["storage"]
    return found


@pytest.mark.parametrize("store", ["s3", "nowhere"])
async def test_store_that_is_not_configured_is_named_with_the_cure(exai: Exai, store: str) -> None:
    """Before anything is moved."""
    status, out = await exai("blobs", "migrate", "postgres", store)
    assert status != 0
    assert "Traceback" not in out
    assert store in out
