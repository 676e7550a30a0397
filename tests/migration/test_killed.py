"""A migration that is killed, at any statement of any revision, is finished by the next run."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from exai.db.migrations.migrate import upgrade
from exai.db.migrations.revision import expected_revision, known_revisions
from tests.support.backend import Backend
from tests.support.migrations import run, session, value
from tests.support.older import LIKE_SUPABASE
from tests.support.pg_proxy import PgProxy
from tests.support.schema_text import schema_text

ROOT = Path(__file__).resolve().parents[2]
STEP = 4
LIMIT_S = 60
ROWS = {
    "conversations": "select id, owner, continuation_id, title, next_seq from public.conversations order by id",
    "messages": "select conversation_id, seq, role, content, created_at from public.messages order by 1, 2",
    "files": "select id, storage_path, name, owner from public.files order by id",
    "links": "select conversation_id, file_id from public.conversation_files order by 1, 2",
    "quarantine": "select table_name, reason, row::text from exai.quarantine order by 1, 2, 3",
}


class CuttingProxy(PgProxy):
    """Lets the reply to the statement of this number get lost, after the server has carried it out."""

    last = 0

    def _note_packet(self, kind: bytes, body: bytes) -> bool:
        return super()._note_packet(kind, body) or len(self.statements) == self.last


async def start(url: str) -> asyncio.subprocess.Process:
    inherited = {name: text for name, text in os.environ.items() if name in {"PATH", "HOME", "LANG", "TMPDIR"}}
    return await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "alembic", "upgrade", "head"),
        cwd=ROOT,
        env={**inherited, "DATABASE_URL": url},
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
    )


async def found(url: str) -> str:
    """The revision, once the session of the killed process has ended."""
    async with asyncio.timeout(LIMIT_S), session(url) as observer:
        others = "select count(*) from pg_stat_activity where datname = current_database() and pid <> pg_backend_pid()"
        while await observer.fetchval(f"{others} and backend_type = 'client backend'"):
            await asyncio.sleep(0.01)
        if not await observer.fetchval("select to_regclass('exai.alembic_version') is not null"):
            return ""
        return await observer.fetchval("select max(version_num) from exai.alembic_version") or ""


async def state_of(url: str) -> dict[str, object]:
    async with session(url) as connection:
        rows = {name: [tuple(row) for row in await connection.fetch(query)] for name, query in ROWS.items()}
        return {**rows, "schema": await schema_text(connection)}


@pytest.fixture
def whole_url(backend: Backend) -> Iterator[str]:
    """Another database without anything."""
    url = backend.databases.create(migrated=False)
    yield url
    backend.databases.drop(url)


@pytest.mark.direct
@pytest.mark.parametrize("older", ["", LIKE_SUPABASE], ids=["from empty", "adopting"])
async def test_a_killed_migration_is_finished_by_the_next_run(
    empty_postgres_url: str, whole_url: str, older: str
) -> None:
    """Killed after the 4th statement, then after the 8th and so on; the end is that of a run in one piece."""
    url = empty_postgres_url
    for each in (url, whole_url):
        await run(each, *filter(None, (older,)))
    await upgrade(whole_url)
    killed_in = set()
    for last in range(STEP, 10_000, STEP):
        async with CuttingProxy(url) as proxy:
            proxy.last = last
            process = await start(proxy.url)
            ended, lost = asyncio.create_task(process.wait()), asyncio.create_task(proxy.lost.wait())
            await asyncio.wait({ended, lost}, return_when=asyncio.FIRST_COMPLETED, timeout=LIMIT_S)
            if ended.done():
                lost.cancel()
                assert process.stderr is not None
                assert process.returncode == 0, await process.stderr.read()
                break
            process.kill()
            await ended
        killed_in.add(await found(url))
    assert killed_in >= {"", *known_revisions()[:-1]}
    assert await value(url, "select version_num from exai.alembic_version") == expected_revision()
    assert await state_of(url) == await state_of(whole_url)
