"""Migrations: from empty to the newest, repeated, concurrent, down, as every kind of user, on every kind of address."""

from __future__ import annotations

import asyncio
import os
import tempfile
from pathlib import Path

import pytest
from alembic.util import CommandError

from exai.db.conversations import ConversationRepository
from exai.db.migrations import revision as own_revision
from exai.db.migrations.migrate import upgrade
from exai.db.migrations.revision import check_revision, expected_revision
from exai.errors import ConfigError, SchemaMismatch
from tests.support.commands import BASE, RUN_LIMIT_S, environment, run_exai_as_text, start
from tests.support.database import contents_of, conversation_of, opened
from tests.support.migrations import as_role, before, create_role, downgrade, revisions, run, session, value
from tests.support.older import LIKE_SUPABASE
from tests.support.pooler import Pooler
from tests.support.schema_text import schema_text
from tests.support.supabase import make_supabase

ROOT = Path(__file__).resolve().parents[2]
SCHEMA_FILE = ROOT / "alembic" / "schema.sql"
WRITE = "EXAI_WRITE_SCHEMA"


async def schema_of(url: str) -> str:
    async with session(url) as connection:
        return await schema_text(connection)


@pytest.mark.direct
async def test_the_committed_schema_is_what_the_migrations_make(postgres_url: str) -> None:
    """It is what reviews read; the same text on every version of Postgres."""
    made = await schema_of(postgres_url)
    if os.environ.get(WRITE):
        SCHEMA_FILE.write_text(made, "utf-8")
    assert made == SCHEMA_FILE.read_text("utf-8"), f"run this test with {WRITE}=1 and review alembic/schema.sql"


async def test_upgrading_again_changes_nothing(postgres_url: str) -> None:
    """Not even a row of the version table."""
    before = await value(postgres_url, "select xmin::text from exai.alembic_version")
    await upgrade(postgres_url)
    assert await value(postgres_url, "select xmin::text from exai.alembic_version") == before


async def test_every_step_goes_up_and_down_and_up(empty_postgres_url: str) -> None:
    """Each restores the earlier schema, and the whole way back leaves an empty database."""
    url = empty_postgres_url
    empty = await schema_of(url)
    seen = [empty]
    for revision in revisions():
        await upgrade(url, revision)
        seen.append(await schema_of(url))
    for revision in reversed(["base", *revisions()[:-1]]):
        await downgrade(url, revision)
        seen.pop()
        assert await schema_of(url) == seen[-1], f"down to {revision}"
    assert seen == [empty]
    await upgrade(url)
    assert await schema_of(url) == SCHEMA_FILE.read_text("utf-8")


async def test_going_back_never_loses_a_row(postgres_url: str) -> None:
    """A downgrade is refused with the reason, and the rows stay usable."""
    async with opened(postgres_url) as database:
        name = (await conversation_of(ConversationRepository(database), "kept")).continuation_id
    with pytest.raises(CommandError, match="holds rows"):
        await downgrade(postgres_url, "base")
    await upgrade(postgres_url)
    async with opened(postgres_url) as database:
        assert await contents_of(ConversationRepository(database), name) == ["kept"]


async def test_concurrent_upgrades_apply_once(empty_postgres_url: str) -> None:
    """Several daemons of one deployment start at once."""
    runs = await asyncio.gather(*(alembic({"DATABASE_URL": empty_postgres_url}, "upgrade", "head") for _ in range(3)))
    assert [status for status, _, _ in runs] == [0, 0, 0], runs
    assert sum(f"-> {expected_revision()}" in errors for _, _, errors in runs) == 1
    assert await schema_of(empty_postgres_url) == SCHEMA_FILE.read_text("utf-8")
    assert await value(empty_postgres_url, "select count(*) from exai.alembic_version") == 1


async def test_a_transaction_mode_pooler_is_enough(empty_postgres_url: str) -> None:
    """Some projects have no other address."""
    async with Pooler(empty_postgres_url) as pooler:
        await asyncio.gather(*(upgrade(pooler.url) for _ in range(2)))
        assert pooler.stats["switches"] > 0
        assert await schema_of(empty_postgres_url) == SCHEMA_FILE.read_text("utf-8")
        await downgrade(pooler.url, "base")
        await upgrade(pooler.url)


async def test_a_table_in_use_is_not_waited_for_without_end(empty_postgres_url: str) -> None:
    """A migration that waits for a lock blocks later sessions, so it gives up and retries."""
    url = empty_postgres_url
    await run(url, LIKE_SUPABASE)
    waiting = "select count(*) from pg_locks where not granted and relation = 'public.messages'::regclass"
    async with session(url) as observer:
        async with session(url) as other, other.transaction():
            await other.execute("lock table public.messages in row exclusive mode")
            running = asyncio.create_task(upgrade(url))
            while not await observer.fetchval(waiting):
                assert not running.done()
                await asyncio.sleep(0.01)
            await observer.execute("set lock_timeout = '2s'")
            await observer.execute("update public.messages set content = content where content = 'a1'")
            while await observer.fetchval(waiting):
                await asyncio.sleep(0.01)
        await running
    assert await value(url, "select version_num from exai.alembic_version") == expected_revision()


async def test_an_index_that_was_broken_off_is_built_again(empty_postgres_url: str) -> None:
    """A concurrent build that fails leaves an index that is there and of no use."""
    url = empty_postgres_url
    await upgrade(url, before("expand_indexes"))
    await run(url, "create index files_storage_path_idx on public.files (storage_path)")
    async with session(url) as connection:
        superuser = await connection.fetchval("select rolsuper from pg_roles where rolname = current_user")
        if not superuser:
            pytest.skip("only a superuser can break an index")
        await connection.execute(
            "update pg_index set indisvalid = false where indexrelid = 'public.files_storage_path_idx'::regclass"
        )
    await upgrade(url)
    valid = "select indisvalid from pg_index where indexrelid = 'public.files_storage_path_idx'::regclass"
    assert await value(url, valid)


async def test_the_database_may_be_ahead_but_not_behind(empty_postgres_url: str) -> None:
    """The migration runs first, while the previous release still serves."""
    url = empty_postgres_url
    await upgrade(url)
    async with opened(url) as database:
        assert await check_revision(database) == expected_revision() == revisions()[-1]
        await run(url, "update exai.alembic_version set version_num = '9999'")
        assert await check_revision(database) == "9999"
        await run(url, "update exai.alembic_version set version_num = '0001'")
        with pytest.raises(SchemaMismatch, match="exai migrate"):
            await check_revision(database)
    await run(url, "update exai.alembic_version set version_num = '9999'")
    with pytest.raises(SchemaMismatch, match="at revision 9999, which this release does not know"):
        await upgrade(url)


@pytest.mark.parametrize(
    "named", ["EXAI_DATABASE__MIGRATION_URL", "EXAI_DATABASE__URL", "SUPABASE_DB_URL", "DATABASE_URL"]
)
async def test_the_command_line_needs_no_flags(empty_postgres_url: str, named: str) -> None:
    """`alembic upgrade head` from the checkout, with any of the variables that name a database."""
    status, _, errors = await alembic({named: empty_postgres_url}, "upgrade", "head")
    assert status == 0, errors
    assert f"-> {expected_revision()}" in errors
    status, output, _ = await alembic({named: empty_postgres_url}, "current")
    assert expected_revision() in output


async def test_the_migration_address_wins_over_the_services(empty_postgres_url: str) -> None:
    """The service may go through a pooler that migrations should not."""
    given = {"EXAI_DATABASE__MIGRATION_URL": empty_postgres_url, "EXAI_DATABASE__URL": "postgresql://nobody@nowhere/x"}
    status, _, errors = await alembic(given, "upgrade", "head")
    assert status == 0, errors


@pytest.mark.parametrize(
    ("given", "part"),
    [
        ({}, "EXAI_DATABASE__MIGRATION_URL: is not set, nor is EXAI_DATABASE__URL, SUPABASE_DB_URL or DATABASE_URL"),
        ({"DATABASE_URL": "postgresql://u:secret@127.0.0.1:1/d"}, "no connection could be made"),
        ({"DATABASE_URL": "mysql://u:secret@h/d"}, "DATABASE_URL: is not a Postgres address"),
    ],
)
async def test_what_is_wrong_is_said_in_one_line(given: dict[str, str], part: str) -> None:
    """With the cure, without a traceback, without the password."""
    status, output, errors = await alembic(given, "upgrade", "head")
    assert status != 0
    said = [line for line in (output + errors).splitlines() if "Traceback" in line or part in line]
    assert said
    assert not any("Traceback" in line for line in said)
    assert "secret" not in output + errors


async def alembic(given: dict[str, str], *arguments: str) -> tuple[int, str, str]:
    """Run the command from the checkout."""
    with tempfile.TemporaryFile() as output, tempfile.TemporaryFile() as errors:
        env = environment({**BASE, **given})
        process = start("alembic", *arguments, env=env, cwd=ROOT, stdout=output, stderr=errors)
        status = await asyncio.to_thread(process.wait, RUN_LIMIT_S)
        output.seek(0)
        errors.seek(0)
        return status, output.read().decode(), errors.read().decode()


async def test_no_address_is_a_setting_to_correct() -> None:
    """The error of the Python interface is the same."""
    with pytest.raises(ConfigError, match="not a Postgres address"):
        await upgrade("nonsense")


async def test_only_the_owner_has_rights(postgres_url: str) -> None:
    """Every table has row level security, and no function is granted to public."""
    open_tables = await value(
        postgres_url,
        "select string_agg(oid::regclass::text, ', ') from pg_class where relkind in ('r', 'p') and not relrowsecurity"
        " and relnamespace = any(array['public', 'exai']::regnamespace[]) and relname <> 'alembic_version'",
    )
    open_functions = await value(
        postgres_url,
        "select string_agg(p.oid::regprocedure::text, ', ') from pg_proc p"
        " join pg_namespace n on n.oid = p.pronamespace where n.nspname = any(array['public', 'exai', 'monitoring'])"
        " and has_function_privilege('public', p.oid, 'execute')",
    )
    assert (open_tables, open_functions) == (None, None)


async def test_security_definers_fix_their_search_path(postgres_url: str) -> None:
    """Otherwise the caller decides to which objects their names refer."""
    loose = await value(
        postgres_url,
        "select string_agg(oid::regprocedure::text, ', ') from pg_proc where prosecdef"
        " and pronamespace in (select oid from pg_namespace where nspname = any(array['public', 'exai', 'monitoring']))"
        " and not coalesce(proconfig::text like '%search_path=pg_catalog%', false)",
    )
    assert loose is None


async def test_it_runs_where_supabase_s_roles_are(empty_postgres_url: str) -> None:
    """The schema is the same; what the roles may do is tested with the database."""
    url = empty_postgres_url
    async with session(url) as connection:
        await make_supabase(connection)
    await upgrade(url)
    assert await schema_of(url) == SCHEMA_FILE.read_text("utf-8")
    await downgrade(url, before("expand_requests"))
    assert not await value(url, "select exists (select from pg_policy)")
    assert not await value(url, "select has_table_privilege('authenticated', 'public.messages', 'select')")
    await upgrade(url)
    assert await value(url, "select has_table_privilege('authenticated', 'public.messages', 'select')")


async def test_no_superuser_and_no_extension_is_needed(empty_postgres_url: str) -> None:
    """A hosted Postgres gives no superuser."""
    url = empty_postgres_url
    database = await value(url, "select current_database()")
    await run(
        url,
        *create_role("exai_plain"),
        f'grant all on database "{database}" to exai_plain',
        "grant all on schema public to exai_plain",
    )
    plain = as_role(url, "exai_plain")
    if not await _lets_in(plain):
        pytest.skip("this server refuses other users")
    await upgrade(plain)
    async with opened(plain) as opened_database:
        await conversation_of(ConversationRepository(opened_database), "x")


async def _lets_in(url: str) -> bool:
    try:
        return bool(await value(url, "select true"))
    except Exception:
        return False


def test_the_revisions_are_found_from_a_wheel_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A wheel carries them inside the package, a checkout beside it."""
    package = tmp_path / "exai" / "db"
    (package / "alembic").mkdir(parents=True)
    monkeypatch.setattr(own_revision, "__file__", str(package / "migrations" / "revision.py"))
    assert own_revision.scripts_directory() == package / "alembic"


async def test_pending_migrations_can_be_listed_without_applying_them(empty_postgres_url: str) -> None:
    """The exit status tells a deployment whether there is anything to do; 4 is that of a schema that does not fit."""
    for before_it, status, text in (
        ("", 4, f"the database is not migrated, {len(revisions())} migrations are pending: 0001, 0002"),
        ("0002", 4, f"at revision 0002, {len(revisions()) - 2} migrations are pending: 0003"),
        ("head", 0, f"the database is at revision {expected_revision()}, no migration is pending"),
    ):
        if before_it:
            await upgrade(empty_postgres_url, before_it)
        seen = await schema_of(empty_postgres_url)
        given = {"EXAI_DATABASE__URL": empty_postgres_url}
        done = await asyncio.to_thread(run_exai_as_text, "migrate", "--check", settings=given, cwd=ROOT / "tests")
        assert (done.returncode, text in done.stdout) == (status, True), done.stdout
        assert await schema_of(empty_postgres_url) == seen
