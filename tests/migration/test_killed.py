"""A migration that is killed, at any statement of any revision, is finished by the next run."""

from __future__ import annotations

import asyncio
import os
import re
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
RECORDS = re.compile(r"^(INSERT INTO|UPDATE) exai\.alembic_version")
FIRST, LATER = 40, 6
"""Statements until the first revision is at work, and from the record of one until the next one is at work."""

LIMIT_S = 60
ROWS = {
    "conversations": "select id, owner, continuation_id, title, next_seq from public.conversations order by id",
    "messages": "select conversation_id, seq, role, content, created_at from public.messages order by 1, 2",
    "files": "select id, storage_path, name, owner from public.files order by id",
    "links": "select conversation_id, file_id from public.conversation_files order by 1, 2",
    "quarantine": "select table_name, reason, row::text from exai.quarantine order by 1, 2, 3",
}


class WatchingProxy(PgProxy):
    """Notes when one statement has arrived, and passes it on.

    It belongs to the work of the first revision of the run, or with `number` 1 of the one after it; or it is, with
    `at_end`, the commit of the first one.
    """

    def __init__(self, url: str, number: int, *, at_end: bool) -> None:
        super().__init__(url)
        self._number, self._at_end = number, at_end
        self.arrived = asyncio.Event()

    def _note_packet(self, kind: bytes, body: bytes) -> bool:
        is_lost = super()._note_packet(kind, body)
        if self._has_arrived():
            self.arrived.set()
        return is_lost

    def _has_arrived(self) -> bool:
        recorded = [place for place, each in enumerate(self.statements) if RECORDS.search(each)]
        if self._at_end:
            return bool(recorded) and not RECORDS.search(self.statements[-1])
        if self._number:
            return bool(recorded) and len(self.statements) > recorded[0] + LATER
        return len(self.statements) > FIRST


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


@pytest.mark.heavy
@pytest.mark.direct
@pytest.mark.parametrize(
    ("older", "at_end"),
    [("", False), (LIKE_SUPABASE, False), (LIKE_SUPABASE, True)],
    ids=["from empty", "adopting", "adopting, when a revision is recorded"],
)
async def test_a_killed_migration_is_finished_by_the_next_run(
    empty_postgres_url: str, whole_url: str, older: str, *, at_end: bool
) -> None:
    """Killed once in each revision, one after the other; the end is that of a run in one piece."""
    url = empty_postgres_url
    for each in (url, whole_url):
        await run(each, *filter(None, (older,)))
    await upgrade(whole_url)
    found_after = []
    for number in range(len(known_revisions()) + 1):
        async with WatchingProxy(url, min(number, 1), at_end=at_end) as proxy:
            process = await start(proxy.url)
            ended, arrived = asyncio.create_task(process.wait()), asyncio.create_task(proxy.arrived.wait())
            await asyncio.wait({ended, arrived}, return_when=asyncio.FIRST_COMPLETED, timeout=LIMIT_S)
            arrived.cancel()
            if ended.done():
                assert process.stderr is not None
                assert process.returncode == 0, await process.stderr.read()
                break
            process.kill()
            await ended
        found_after.append(await found(url))
    assert found_after == list(known_revisions() if at_end else ("", *known_revisions()[:-1]))
    await upgrade(url)
    assert await value(url, "select version_num from exai.alembic_version") == expected_revision()
    assert await state_of(url) == await state_of(whole_url)
