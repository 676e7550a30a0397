"""Checkpointers of LangGraph: EXAI's and `AsyncPostgresSaver` with a pool."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import Any

from langchain_core.messages import AIMessage, HumanMessage
from langgraph.checkpoint.base import empty_checkpoint
from langgraph.checkpoint.postgres.aio import AsyncPostgresSaver
from psycopg.rows import dict_row
from psycopg_pool import AsyncConnectionPool

from bench.frameworks.contestant import CONNECTIONS, Contest, Opened, Texts
from exai.adapters.langgraph import ExaiSaver


class Threads:
    """Threads with one channel of messages, whose last state is at hand for the next, as in a graph of one step.

    A turn is the write of a task and the checkpoint after it.
    """

    def __init__(self, saver: Any) -> None:
        self._saver = saver
        self._last: dict[str, Any] = {}

    async def load(self, session: str) -> int:
        """Implement `Contestant`."""
        found = await self._saver.aget_tuple({"configurable": {"thread_id": session, "checkpoint_ns": ""}})
        self._last[session] = found.config, found.checkpoint
        return len(found.checkpoint["channel_values"]["messages"])

    async def append(self, session: str, texts: Texts) -> None:
        """Implement `Contestant`."""
        config, last = self._last[session]
        new, checkpoint = [HumanMessage(texts[0]), AIMessage(texts[1])], empty_checkpoint()
        version = self._saver.get_next_version(last["channel_versions"].get("messages"), None)
        checkpoint["channel_values"] = {"messages": [*last["channel_values"].get("messages", ()), *new]}
        checkpoint["channel_versions"] = {"messages": version}
        if "checkpoint_id" in config["configurable"]:
            await self._saver.aput_writes(config, [("messages", new)], "task")
        config = await self._saver.aput(config, checkpoint, {"source": "loop", "step": 1}, {"messages": version})
        self._last[session] = config, checkpoint

    async def create(self, session: str, texts: Texts) -> None:
        """Implement `Contestant`."""
        self._last[session] = {"configurable": {"thread_id": session, "checkpoint_ns": ""}}, empty_checkpoint()
        await self.append(session, texts)


@asynccontextmanager
async def open_contestants(contest: Contest) -> Opened:
    """Open them; the framework's own saver with a pool as its documentation asks for."""
    options = {"autocommit": True, "prepare_threshold": 0, "row_factory": dict_row}
    pool: AsyncConnectionPool[Any] = AsyncConnectionPool(
        contest.servers.conninfo(), min_size=CONNECTIONS, max_size=CONNECTIONS, open=False, kwargs=options
    )
    async with pool:
        own = AsyncPostgresSaver(pool)
        await own.setup()
        yield {"own": Threads(own), **contest.exai(lambda store: Threads(ExaiSaver(store, owner=contest.owner)))}
