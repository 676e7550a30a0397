"""Sessions of the OpenAI Agents SDK: EXAI's and `SQLAlchemySession` with asyncpg."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import asynccontextmanager
from typing import Any

from agents.extensions.memory import SQLAlchemySession
from sqlalchemy.ext.asyncio import create_async_engine

from bench.frameworks.contestant import CONNECTIONS, Contest, Opened, Texts
from exai.adapters.openai_agents import ExaiSession


class Sessions:
    """Sessions by their names, each a new object for each operation, as in a web server."""

    def __init__(self, make: Callable[[str], Any]) -> None:
        self._make = make

    async def load(self, session: str) -> int:
        """Implement `Contestant`."""
        return len(await self._make(session).get_items())

    async def append(self, session: str, texts: Texts) -> None:
        """Implement `Contestant`."""
        await self._make(session).add_items(items_of(*texts))

    create = append


def items_of(question: str, answer: str) -> list[Any]:
    """Return a turn as the SDK stores it: what the user gave, and the output of the Responses API."""
    part = {"type": "output_text", "text": answer, "annotations": [], "logprobs": []}
    output = {"id": "msg_0123456789abcdef", "type": "message", "role": "assistant", "status": "completed"}
    return [{"role": "user", "content": question}, {**output, "content": [part]}]


@asynccontextmanager
async def open_contestants(contest: Contest) -> Opened:
    """Open them."""
    engine = create_async_engine(
        contest.servers.engine_url(), connect_args={"ssl": "disable"}, pool_size=CONNECTIONS, max_overflow=0
    )
    try:
        await SQLAlchemySession("0", engine=engine, create_tables=True).get_items(limit=1)
        exai = contest.exai(lambda store: Sessions(lambda name: ExaiSession(name, store, owner=contest.owner)))
        yield {"own": Sessions(lambda name: SQLAlchemySession(name, engine=engine)), **exai}
    finally:
        await engine.dispose()
