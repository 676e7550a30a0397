"""A repository over a database of the test's own."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from exai.db.conversations import ConversationRepository
from exai.db.driver.pool import Database
from exai.db.turns import TurnRepository
from tests.support.database import opened
from tests.support.migrations import session

STATEMENT_TIMEOUT_S = 60.0


@pytest.fixture
async def database(postgres_url: str) -> AsyncIterator[Database]:
    # A search stops after a time that a busy machine may need for its first message. Work is bounded by other counts.
    async with session(postgres_url) as connection:
        name = await connection.fetchval("select quote_ident(current_database())")
        await connection.execute(f"alter database {name} set exai.search_time = '30 s'")
    async with opened(postgres_url, statement_timeout_s=STATEMENT_TIMEOUT_S) as database:
        yield database


@pytest.fixture
def repository(database: Database) -> ConversationRepository:
    return ConversationRepository(database)


@pytest.fixture
def turns(database: Database) -> TurnRepository:
    return TurnRepository(database)
