"""Session services of Google's ADK: EXAI's and `DatabaseSessionService` with asyncpg."""

from __future__ import annotations

import warnings
from contextlib import asynccontextmanager
from typing import Any

from google.adk.events.event import Event
from google.adk.sessions.database_session_service import DatabaseSessionService
from google.genai import types

from bench.frameworks.contestant import CONNECTIONS, Contest, Opened, Texts
from exai.adapters.adk import ExaiSessionService

WHERE = {"app_name": "bench", "user_id": "user"}


class Service:
    """A session service. A turn is two events, appended one by one to the session that was read last."""

    def __init__(self, service: Any) -> None:
        self._service = service
        self._read: dict[str, Any] = {}

    async def load(self, session: str) -> int:
        """Implement `Contestant`."""
        found = await self._service.get_session(**WHERE, session_id=session)
        self._read[session] = found
        return len(found.events)

    async def append(self, session: str, texts: Texts) -> None:
        """Implement `Contestant`."""
        await self._append(self._read[session], texts)

    async def create(self, session: str, texts: Texts) -> None:
        """Implement `Contestant`."""
        await self._append(await self._service.create_session(**WHERE, session_id=session), texts)

    async def _append(self, session: Any, texts: Texts) -> None:
        for author, role, text in (("user", "user", texts[0]), ("assistant", "model", texts[1])):
            content = types.Content(role=role, parts=[types.Part(text=text)])
            await self._service.append_event(session, Event(author=author, invocation_id="e", content=content))


@asynccontextmanager
async def open_contestants(contest: Contest) -> Opened:
    """Open them; the framework's own store without its probe of a connection before each use."""
    warnings.simplefilter("ignore")
    options = {"pool_size": CONNECTIONS, "max_overflow": 0, "pool_pre_ping": False}
    url = contest.servers.engine_url().render_as_string(hide_password=False)
    own = DatabaseSessionService(url, connect_args={"ssl": "disable"}, **options)
    try:
        yield {
            "own": Service(own),
            **contest.exai(lambda store: Service(ExaiSessionService(store, owner=contest.owner))),
        }
    finally:
        await own.close()
