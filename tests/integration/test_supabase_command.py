"""`exai supabase grant`, and what `exai doctor --supabase` finds before and after it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from exai.db.migrations.migrate import upgrade
from exai.db.supabase import examine, grant
from tests.support.commands import run_exai_as_text
from tests.support.database import new_id
from tests.support.migrations import run, session, value
from tests.support.supabase import REALTIME, ROLES, SURROUNDINGS, acting

OWNER = "11111111-1111-4111-8111-111111111111"


@pytest.fixture
async def later_url(postgres_url: str) -> AsyncIterator[str]:
    """A database that became Supabase's after EXAI was installed, so that its roles have all rights or none."""
    async with session(postgres_url) as connection:
        if not await connection.fetchval("select rolsuper from pg_roles where rolname = current_user"):
            pytest.skip("only a superuser can act as other roles")
    await run(
        postgres_url, *ROLES, *SURROUNDINGS, *REALTIME,
        "grant all on all tables in schema public to anon, authenticated, service_role",
        "alter table exai.contents disable row level security",
        # The roles are the server's, so the migration may have found those of another test.
        "drop policy if exists exai_own on public.requests", "drop policy if exists exai_named on public.requests",
    )  # fmt: skip
    yield postgres_url


async def exai(*arguments: str, url: str, cwd: Path) -> tuple[int, str]:
    done = await asyncio.to_thread(run_exai_as_text, *arguments, settings={"EXAI_DATABASE__URL": url}, cwd=cwd)
    return done.returncode, done.stdout


async def states(url: str, *, anonymous: bool = False) -> dict[str, str]:
    return {each.part: each.state for each in await examine(url, anonymous=anonymous)}


@pytest.mark.direct
async def test_the_command_mends_what_the_doctor_finds(later_url: str, tmp_path: Path) -> None:
    """Each problem has the command as its cure."""
    found = await examine(later_url, anonymous=False)
    problems = {each.part: each.cure for each in found if each.state in ("fail", "warn")}
    assert set(problems) == {"row security", "grants", "policies", "anonymous users", "publication", "broadcast"}
    assert all("supabase grant" in cure for cure in problems.values())
    for _ in range(2):
        status, out = await exai("supabase", "grant", "--adopted", url=later_url, cwd=tmp_path)
        assert status == 0, out
        assert "anon, authenticated, exai_app, service_role" in out
        assert "publication supabase_realtime, broadcast, topic exai:<owner>" in out
    assert not {each for each in (await states(later_url)).items() if each[1] in ("fail", "warn")}
    assert (await states(later_url, anonymous=True))["anonymous users"] == "warn"


@pytest.mark.direct
async def test_the_doctor_examines_the_project_on_request(later_url: str, tmp_path: Path) -> None:
    """Beside everything else, and with the connections that all workers would open."""
    status, out = await exai("doctor", "--supabase", "--workers", "200", url=later_url, cwd=tmp_path)
    assert status == 1, out
    assert "200 x 10 wanted" in out
    assert "supabase grant" in out


@pytest.mark.direct
async def test_a_change_is_sent_to_its_owner_only(later_url: str) -> None:
    """With the revision, by which a client knows whether it has read it already."""
    await grant(later_url, anonymous=False, adopted=False, realtime=True)
    await run(
        later_url,
        f"insert into conversations (owner, continuation_id) values ('{OWNER}', 'a')",
        "update conversations set title = 'b'",
    )
    async with session(later_url) as sql:
        sent = await sql.fetch(
            "select topic, event, private, payload::text from realtime.messages order by payload ->> 'revision'"
        )
        assert [tuple(row) for row in sent] == [
            (f"exai:{OWNER}", "changed", True, '{"revision": 0, "continuation_id": "a"}'),
            (f"exai:{OWNER}", "changed", True, '{"revision": 1, "continuation_id": "a"}'),
        ]
        for sub, topic, count in ((OWNER, OWNER, 2), (new_id(), OWNER, 0), (OWNER, new_id(), 0)):
            async with acting(sql, "authenticated", sub=sub):
                await sql.execute("select set_config('realtime.topic', $1::text, true)", f"exai:{topic}")
                assert await sql.fetchval("select count(*) from realtime.messages") == count


@pytest.mark.direct
async def test_a_broadcast_that_fails_or_waits_does_not_disturb_the_change(later_url: str) -> None:
    """The event is a hint; the row is the fact."""
    await grant(later_url, anonymous=False, adopted=False, realtime=True)
    insert = "insert into conversations (owner, continuation_id) values ('a', '{}')"
    async with session(later_url) as other, other.transaction():
        await other.execute("lock table realtime.messages in access exclusive mode")
        await run(later_url, insert.format("waited"))
    await run(
        later_url,
        "alter table realtime.messages add column other text not null",
        insert.format("failed"),
        "drop table realtime.messages",
        insert.format("gone"),
    )
    assert await value(later_url, "select count(*) from conversations") == 3


@pytest.mark.direct
async def test_realtime_can_be_left_out(later_url: str) -> None:
    """For projects whose message quota is used for something else."""
    await grant(later_url, anonymous=False, adopted=False, realtime=True)
    granted = await grant(later_url, anonymous=False, adopted=False, realtime=False)
    assert granted.realtime == []
    found = await states(later_url)
    assert (found["publication"], found["broadcast"]) == ("warn", "warn")


async def test_tables_of_an_older_system_keep_their_rights_unless_told_otherwise(empty_postgres_url: str) -> None:
    """Its clients may still be running."""
    url = empty_postgres_url
    async with session(url) as connection:
        if not await connection.fetchval("select rolsuper from pg_roles where rolname = current_user"):
            pytest.skip("only a superuser can act as other roles")
    await run(
        url, *ROLES, *SURROUNDINGS,
        "create table conversations (id uuid primary key default gen_random_uuid(), continuation_id text)",
    )  # fmt: skip
    await upgrade(url)
    may = "select has_table_privilege('anon', 'public.conversations', 'insert')"
    await grant(url, anonymous=False, adopted=False, realtime=True)
    assert await value(url, may)
    await grant(url, anonymous=False, adopted=True, realtime=True)
    assert not await value(url, may)
    assert not {each for each in (await states(url)).items() if each[1] == "fail"}
