"""A database that rejects writes: the errors, health and `exai doctor`, and recovery."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator
from urllib.parse import urlsplit

import pytest

from exai.db.conversations import ConversationRepository
from exai.db.diagnose import diagnose, may_create
from exai.db.driver.pool import REFUSAL_COUNTS_S, RENEW_AFTER_S, Database
from exai.errors import DatabaseUnavailable
from exai.models import Finding
from exai.probes import probe_database
from exai.settings.load import DatabaseSettings
from tests.support.database import appending, contents_of, conversation_of, opened
from tests.support.migrations import as_role, create_role, run, session
from tests.support.waiting import wait_until

TERMINATE = """
select pg_terminate_backend(pid) from pg_stat_activity where datname = current_database() and pid <> pg_backend_pid()"""


class Clock:
    def __init__(self) -> None:
        self.now = 1_000.0

    def __call__(self) -> float:
        return self.now


def name_of(url: str) -> str:
    return urlsplit(url).path[1:]


async def doctor(url: str) -> dict[str, Finding]:
    findings = await diagnose(DatabaseSettings.model_validate({"url": url}), url)
    return {each.part: each for each in findings}


async def make_read_only(url: str) -> None:
    """As Supabase does when the disk is full, to sessions that begin from now on, and to the others by ending them."""
    await run(url, f'alter database "{name_of(url)}" set default_transaction_read_only = on')
    async with session(url) as connection:
        await connection.execute("set default_transaction_read_only = off")
        await connection.execute(TERMINATE)


@pytest.mark.direct
async def test_a_database_made_read_only_is_not_fit_for_work_until_it_is_cured(postgres_url: str) -> None:
    """Reads go on; the obstacle and the refusal name the cure; sessions that only read are replaced after it."""
    clock = Clock()
    async with opened(postgres_url, clock=clock) as database:
        repository = ConversationRepository(database)
        name = (await conversation_of(repository, "one")).continuation_id
        assert await database.obstacle() is None
        await make_read_only(postgres_url)
        await seen(database)
        with pytest.raises(DatabaseUnavailable, match=r"only takes reads.*default_transaction_read_only"):
            await repository.append(appending(name, "two"))
        assert await contents_of(repository, name) == ["one"]
        assert "only takes reads" in str(await database.obstacle())
        assert "only takes reads" in str(database.refusal)
        writes = (await doctor(postgres_url))["postgres writes"]
        assert writes.state == "fail"
        assert "disk" in writes.cure
        async with session(postgres_url) as connection:
            await connection.execute("set default_transaction_read_only = off")
            await connection.execute(f'alter database "{name_of(postgres_url)}" reset default_transaction_read_only')
        clock.now += RENEW_AFTER_S
        await database.obstacle()
        await wait_until(lambda: database.usage() == (0, 4, 4))
        assert await database.obstacle() is None
        assert (await repository.append(appending(name, "two"))).status == "appended"
        assert database.refusal is None
        assert "postgres writes" not in await doctor(postgres_url)


@pytest.fixture
async def limited_url(postgres_url: str) -> AsyncIterator[str]:
    """The address of a role with the service's rights that owns nothing."""
    role = f"limited_{uuid.uuid4().hex}"
    await run(
        postgres_url,
        *create_role(role),
        f"grant usage on schema exai to {role}",
        f"grant all on all tables in schema public, exai to {role}",
        f"grant execute on all functions in schema public, exai to {role}",
        *(
            f"create policy everything on {table} to {role} using (true) with check (true)"
            for table in ("public.conversations", "public.messages", "public.turns", "public.files")
        ),
        *(f"alter table exai.{table} disable row level security" for table in ("unindexed_messages", "message_words")),
    )
    yield as_role(postgres_url, role)
    await run(
        postgres_url, "set default_transaction_read_only = off", f"drop owned by {role} cascade", f"drop role {role}"
    )


@pytest.mark.direct
async def test_revoked_rights_are_named(postgres_url: str, limited_url: str) -> None:
    """By the probe and by doctor; a refused write is remembered for a minute, and one that succeeds ends that."""
    clock = Clock()
    role = urlsplit(limited_url).username
    async with opened(limited_url, clock=clock) as database:
        repository = ConversationRepository(database)
        name = (await conversation_of(repository, "one")).continuation_id
        assert await database.obstacle() is None
        await run(postgres_url, f"revoke insert on public.messages from {role}")
        with pytest.raises(DatabaseUnavailable, match="lacks a right"):
            await repository.append(appending(name, "two"))
        assert "public.messages" in str(await database.obstacle())
        assert "lacks a right" in str(database.refusal)
        assert "public.messages" in (await doctor(limited_url))["postgres writes"].detail
        await run(postgres_url, f"grant insert on public.messages to {role}")
        assert await database.obstacle() is None
        clock.now += REFUSAL_COUNTS_S + 1
        assert database.refusal is None
        assert (await repository.append(appending(name, "two"))).status == "appended"


async def test_doctor_says_who_may_create_in_schema_public(postgres_url: str) -> None:
    """Every role may up to Postgres 14, and in databases upgraded from there."""
    assert "postgres schema public" not in await doctor(postgres_url)
    await run(postgres_url, "grant create on schema public to public")
    finding = (await doctor(postgres_url))["postgres schema public"]
    assert (finding.state, "every role" in finding.detail) == ("warn", True)
    assert "revoke create" in finding.cure
    assert await may_create(postgres_url) == [finding]


@pytest.mark.direct
async def test_the_probe_says_down_for_a_read_only_database(postgres_url: str, limited_url: str) -> None:
    """And degraded while a write was refused for another reason, such as a full disk."""
    role = urlsplit(limited_url).username
    async with opened(limited_url) as database:
        assert (await probe_database(database)).state == "ok"
        await run(postgres_url, f"revoke all on all functions in schema exai from {role}")
        with pytest.raises(DatabaseUnavailable, match="lacks a right"):
            await conversation_of(ConversationRepository(database), "one")
        degraded = await probe_database(database)
        assert (degraded.state, "Grant them" in degraded.detail) == ("degraded", True)
        await make_read_only(postgres_url)
        await seen(database)
        down = await probe_database(database)
        assert (down.state, "free space" in down.detail) == ("down", True)


async def seen(database: Database) -> None:
    """Wait until the pool's connections have been replaced and find the obstacle."""
    async with asyncio.timeout(5):
        while await database.obstacle() is None:
            await asyncio.sleep(0)
    await wait_until(lambda: database.usage() == (0, 4, 4))
