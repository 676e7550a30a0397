"""Backups of databases in use: adopted, written to meanwhile, with remote stores, or read by a weak role."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from exai.app import open_app
from exai.conversations.requests import AppendRequest
from exai.db.migrations.migrate import upgrade
from exai.files.service import FileContent
from exai.models import LOCAL_OWNER, NewMessage
from exai.settings.load import load_settings
from tests.integration.backup.bulk import bulk
from tests.integration.backup.conftest import Side
from tests.support.backend import Backend
from tests.support.migrations import as_role, create_role, run, session, value
from tests.support.older import LIKE_SUPABASE
from tests.support.supabase_storage import KEY, SupabaseStorage

UNNUMBERED = (
    "select count(*) from public.conversations c where c.next_seq <>"
    " coalesce(c.parent_seq, 0) + 1 + (select count(*) from public.messages m where m.conversation_id = c.id)"
)


async def test_an_adopted_database_is_restored_without_its_foreign_columns(
    target: Side, tmp_path: Path, adopted_url: str
) -> None:
    """Tables of an older system have columns that EXAI does not know; they are named, and nothing else is lost."""
    await run(adopted_url, LIKE_SUPABASE)
    await upgrade(adopted_url)
    (tmp_path / "adopted").mkdir()
    adopted = Side(adopted_url, tmp_path / "adopted")
    directory = str(tmp_path / "backup")
    status, out = await adopted.exai("backup", directory)
    assert status == 0, out
    status, out = await target.exai("restore", directory)
    assert (status, "public.messages.id" in out, "public.files.original_name" in out) == (0, True, True), out
    query = "select conversation_id, seq, role, content, created_at from public.messages order by 1, 2"
    async with session(adopted_url) as one, session(target.url) as other:
        assert await one.fetch(query) == await other.fetch(query)
    async with open_app(load_settings(target.variables(), None)) as app:
        listed = (await app.conversations.list(LOCAL_OWNER)).conversations
        assert {each.continuation_id for each in listed} >= {"a", "b", "c"}


@pytest.fixture
def adopted_url(backend: Backend) -> Iterator[str]:
    """Another database without anything."""
    url = backend.databases.create(migrated=False)
    yield url
    backend.databases.drop(url)


async def test_a_backup_of_a_database_in_use_is_of_one_moment(source: Side, target: Side) -> None:
    """Appends go on while it is made: no message is without its conversation, nor a number missing."""
    await bulk(source.url, 30_000)
    async with open_app(load_settings(source.variables(), None)) as app:
        process = await source.start("backup", str(source.home / "backup"))
        ended = asyncio.create_task(process.communicate())
        while not ended.done():
            messages = [NewMessage("user", "while it is made")] * 3
            made = await app.conversations.append(AppendRequest(LOCAL_OWNER, messages))
            await app.conversations.append(AppendRequest(LOCAL_OWNER, messages, continuation_id=made.continuation_id))
    assert process.returncode == 0, (await ended)[0]
    status, out = await target.exai("restore", str(source.home / "backup"))
    assert status == 0, out
    assert await value(target.url, UNNUMBERED) == 0
    status, out = await target.exai("validate")
    assert status == 0, out


async def test_files_move_from_one_remote_store_to_another(source: Side, target: Side) -> None:
    """Two databases in one bucket: each has objects of its own, also after the first one is erased."""
    async with SupabaseStorage() as server:
        remote = {
            "EXAI_FILES__STORE": "supabase",
            "EXAI_FILES__SUPABASE__URL": server.url,
            "EXAI_FILES__SUPABASE__KEY": KEY,
        }
        contents = [FileContent(f"{n}.bin", b"%d" % n * 200_000) for n in range(3)]
        async with open_app(load_settings(source.variables(**remote), None)) as app:
            files = await app.files.put(LOCAL_OWNER, contents)
        directory = str(source.home / "backup")
        assert (await source.exai("backup", directory, **remote))[0] == 0
        status, out = await target.exai("restore", directory, **remote)
        assert status == 0, out
        assert len(server.objects["exai"]) == 6
        status, out = await source.exai("erase", "owner", LOCAL_OWNER, "--yes", **remote)
        assert status == 0, out
        assert len(server.objects["exai"]) == 3
        async with open_app(load_settings(target.variables(**remote), None)) as app:
            assert [(await app.files.read(LOCAL_OWNER, file.id))[1] for file in files] == [c.data for c in contents]
        status, out = await source.exai("backup", str(source.home / "without"))
        assert status == 0, out


async def test_a_role_from_which_rows_are_hidden_makes_no_backup(source: Side) -> None:
    """A backup without the rows of others would look whole."""
    await bulk(source.url, 1_000)
    role = "exai_weak"
    await run(
        source.url,
        *create_role(role),
        f"grant usage on schema public, exai, monitoring to {role}",
        f"grant select on all tables in schema public, exai, monitoring to {role}",
    )
    weak = Side(as_role(source.url, role), source.home)
    try:
        if await value(weak.url, "select current_user") != role:
            pytest.skip("this server refuses other users")
    except Exception:
        pytest.skip("this server refuses other users")
    status, out = await weak.exai("backup", str(source.home / "backup"))
    assert (status, "Set EXAI_DATABASE__MIGRATION_URL" in out) == (3, True), out
    strong = {"EXAI_DATABASE__MIGRATION_URL": source.url}
    assert (await weak.exai("backup", str(source.home / "backup"), **strong))[0] == 0


async def test_a_full_disk_ends_the_backup_with_the_reason(source: Side) -> None:
    """Not with a traceback, and not with an error of the database."""
    await bulk(source.url, 20_000)
    directory = source.home / "backup"
    status, out = await source.exai("backup", str(directory), limit_kb=64)
    assert (status, "cannot be written (File too large)" in out) == (1, True), out
    assert not (directory / "manifest.json").exists()
    assert (await source.exai("backup", str(directory)))[0] == 0
