"""Settings of a role or a database do not change what EXAI does, on a direct connection and behind a pooler."""

from __future__ import annotations

import asyncio
from urllib.parse import urlsplit

import pytest

from exai.db.conversations import ConversationRepository
from exai.db.diagnose import diagnose
from exai.settings.load import DatabaseSettings
from tests.support.counters import Counters
from tests.support.database import appending, contents_of, conversation_of, opened
from tests.support.everything import use
from tests.support.migrations import run, session
from tests.support.pooler import Pooler

SETTINGS = (
    "default_transaction_isolation = 'serializable'",
    "standard_conforming_strings = off",
    "bytea_output = escape",
    "\"DateStyle\" = 'German'",
    "\"IntervalStyle\" = 'sql_standard'",
    "\"TimeZone\" = 'Asia/Kolkata'",
    "search_path = ''",
    "row_security = off",
    "idle_in_transaction_session_timeout = '1s'",
)
WRITERS = 12

PLAIN_BACKSLASH = r"""
select p.oid::regprocedure::text from pg_proc p
 where p.pronamespace in ('exai'::regnamespace, 'monitoring'::regnamespace)
   and not coalesce('standard_conforming_strings=on' = any(p.proconfig), false)
   and regexp_replace(p.prosrc, 'E''[^'']*''|--[^\n]*', '', 'g') like E'%\\\\%'
"""


async def set_all(url: str, *settings: str) -> None:
    database = urlsplit(url).path[1:]
    await run(url, *(f'alter database "{database}" set {setting}' for setting in settings))


@pytest.mark.direct
async def test_everything_works_with_other_defaults(postgres_url: str) -> None:
    """The session is given the settings it needs."""
    await set_all(postgres_url, *SETTINGS, "lock_timeout = '1ms'", "statement_timeout = '2s'")
    async with opened(postgres_url) as database:
        assert (await database.fetch("server_limit"))[0]["statement_timeout_ms"] == 4_800
        await use(database)


async def test_functions_with_a_backslash_in_a_string_say_how_strings_are_read(postgres_url: str) -> None:
    """Their text is read anew in every session."""
    async with session(postgres_url) as connection:
        assert [row[0] for row in await connection.fetch(PLAIN_BACKSLASH)] == []


@pytest.mark.direct
async def test_everything_works_with_other_defaults_behind_a_pooler(postgres_url: str) -> None:
    """Where no session can be given settings."""
    await set_all(postgres_url, *SETTINGS)
    async with Pooler(postgres_url) as pooler, opened(pooler.url) as database:
        await use(database)


@pytest.mark.direct
@pytest.mark.parametrize("level", ["repeatable read", "serializable"])
@pytest.mark.parametrize("pooled", [False, True])
async def test_writers_that_wait_for_each_other_all_succeed(postgres_url: str, level: str, *, pooled: bool) -> None:
    """A function that waited for a lock sees the rows committed meanwhile, without a serialization error."""
    await set_all(postgres_url, f"default_transaction_isolation = '{level}'")
    recorder = Counters()
    async with Pooler(postgres_url) as pooler:
        url = pooler.url if pooled else postgres_url
        async with opened(url, recorder=recorder, acquire_timeout_s=30) as database:
            repository = ConversationRepository(database)
            name = (await conversation_of(repository, "x" * 100_000)).continuation_id
            # Too large to share a statement, so each waits for the lock of the one before.
            large = [str(number) * 70_000 for number in range(WRITERS)]
            await asyncio.gather(*(repository.append(appending(name, content)) for content in large))
            assert len(await contents_of(repository, name)) == 1 + WRITERS
        if pooled:
            findings = await diagnose(DatabaseSettings.model_validate({"url": url}), url)
            (finding,) = [each for each in findings if each.part == "postgres isolation"]
            assert (finding.state, level in finding.detail) == ("warn", True)
    assert [key for key in recorder.counts if key[0] == "db_errors_total"] == []
