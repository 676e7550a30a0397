"""A repository over a database of the test's own."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from exai.db.conversations import ConversationRepository
from exai.db.driver.pool import Database
from exai.db.turns import TurnRepository
from tests.support.database import opened


@pytest.fixture
async def database(postgres_url: str) -> AsyncIterator[Database]:
    async with opened(postgres_url) as database:
        yield database


@pytest.fixture
def repository(database: Database) -> ConversationRepository:
    return ConversationRepository(database)


@pytest.fixture
def turns(database: Database) -> TurnRepository:
    return TurnRepository(database)
