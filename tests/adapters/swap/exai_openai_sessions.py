"""A plugin of pytest that puts `ExaiSession` in the place of the sessions of the OpenAI Agents SDK, for its own tests.

The daemon is at EXAI_ADAPTER_ADDRESS. Sessions of one file or engine share their conversations, as in a database.
"""

from __future__ import annotations

import os
import uuid
from typing import Any

import agents
import agents.memory
from agents.extensions.memory import sqlalchemy_session
from agents.memory import SessionSettings
from sqlalchemy.ext.asyncio import create_async_engine

from exai.adapters.names import session_name
from exai.adapters.openai_agents import ExaiSession

MEMORY = ":memory:"


class _Scoped(ExaiSession):
    def __init__(self, session_id: str, scope: str, settings: Any) -> None:
        if isinstance(settings, dict):
            settings = SessionSettings().resolve(settings)
        address = os.environ["EXAI_ADAPTER_ADDRESS"]
        super().__init__(session_id, address, session_settings=settings or SessionSettings())
        self._name = session_name(f"{uuid.uuid4() if MEMORY in scope else scope}/{session_id}")

    def close(self) -> None:
        """That of SQLite is no coroutine."""


class InPlaceOfSQLite(_Scoped):
    def __init__(self, session_id: str, db_path: Any = MEMORY, *tables: str, session_settings: Any = None) -> None:
        super().__init__(session_id, str(db_path), session_settings)


class InPlaceOfSQLAlchemy(_Scoped):
    def __init__(self, session_id: str, *, engine: Any, session_settings: Any = None, **options: Any) -> None:
        super().__init__(session_id, str(engine.url), session_settings)
        self.engine = engine  # Tests dispose of it.

    @classmethod
    def from_url(cls, session_id: str, *, url: str, **options: Any) -> InPlaceOfSQLAlchemy:
        return cls(session_id, engine=create_async_engine(url), **options)


agents.SQLiteSession = agents.memory.SQLiteSession = InPlaceOfSQLite
sqlalchemy_session.SQLAlchemySession = InPlaceOfSQLAlchemy
