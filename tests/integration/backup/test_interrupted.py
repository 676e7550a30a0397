"""A process that is killed leaves no half of a backup that looks whole, and no half of a restored database."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from exai.backup.manifest import NAME
from tests.integration.backup.bulk import bulk
from tests.integration.backup.conftest import Side
from tests.support.migrations import session, value

pytestmark = pytest.mark.heavy

Rows = Callable[[str], Awaitable[dict[str, list[str]]]]
MESSAGES = 60_000
LIMIT_S = 60

POINTS = {
    "migrating": "select to_regclass('exai.alembic_version') is not null",
    "copying": 'select exists (select from pg_stat_activity where query like \'COPY "public"."messages"%\')',
    "indexing": "select exists (select from pg_stat_activity where query like 'CREATE INDEX message_words%')",
}


@pytest.mark.direct
@pytest.mark.parametrize("point", POINTS)
async def test_a_killed_restoration_leaves_no_row_and_can_be_repeated(
    source: Side, target: Side, rows_of: Rows, point: str
) -> None:
    """At each step; the same command restores everything afterwards."""
    await bulk(source.url, MESSAGES)
    backup = str(source.home / "backup")
    assert (await source.exai("backup", backup))[0] == 0
    process = await target.start("restore", backup)
    async with asyncio.timeout(LIMIT_S), session(target.url) as observer:
        while not await observer.fetchval(POINTS[point]):
            assert process.returncode is None, await process.communicate()
        process.kill()
        await process.communicate()
        others = "select count(*) from pg_stat_activity where datname = current_database() and pid <> pg_backend_pid()"
        while await observer.fetchval(f"{others} and backend_type = 'client backend'"):
            await asyncio.sleep(0.01)
        if await observer.fetchval("select to_regclass('public.messages') is not null"):
            assert not await observer.fetchval("select exists (select from public.messages)")
    status, out = await target.exai("restore", backup)
    assert status == 0, out
    assert await rows_of(target.url) == await rows_of(source.url)
    assert await value(target.url, "select count(*) from pg_trigger where tgenabled = 'D'") == 0


async def test_a_killed_backup_is_none_and_is_started_over(source: Side, target: Side) -> None:
    """It has no manifest, so neither `restore` nor `--verify` takes it."""
    await bulk(source.url, MESSAGES)
    directory = source.home / "backup"
    process = await source.start("backup", str(directory))
    async with asyncio.timeout(LIMIT_S):
        while not list(directory.glob("tables/public.messages*")):
            assert process.returncode is None, await process.communicate()
            await asyncio.sleep(0)
        process.kill()
        await process.communicate()
    assert not (directory / NAME).exists()
    for side, command in ((target, ("restore",)), (source, ("backup", "--verify"))):
        status, out = await side.exai(*command, str(directory))
        assert (status, "holds no complete backup" in out) == (1, True), out
    assert (await source.exai("backup", str(directory)))[0] == 0
    assert not list(directory.rglob("*.unfinished"))
    status, out = await target.exai("restore", str(directory))
    assert status == 0, out
    assert await value(target.url, "select count(*) from public.messages") == MESSAGES


async def test_a_directory_that_holds_something_is_refused(source: Side, tmp_path: Path) -> None:
    """Neither another backup nor anything else is overwritten."""
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "letter.txt").write_text("mine")
    status, out = await source.exai("backup", str(tmp_path / "full"))
    assert (status, "is not empty" in out) == (1, True), out
    assert (await source.exai("backup", str(tmp_path / "new")))[0] == 0
    status, out = await source.exai("backup", str(tmp_path / "new"))
    assert (status, "holds a backup" in out) == (1, True), out
