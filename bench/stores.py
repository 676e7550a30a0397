"""The other stores, each through its own public interface in the cheapest form its documentation shows.

Runs in the environment of `requirements/peers.lock`, started by `bench/peers.py`: one JSON line in, one out. What is
timed, and how, is `exai.bench.batch`, the same lines that time EXAI. Nothing else of EXAI is used here.
"""

from __future__ import annotations

import asyncio
import json
import sys
import uuid
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import asdict
from typing import Any, Protocol

import redis
import redis.asyncio
import uvloop
from agents.extensions.memory import RedisSession, SQLAlchemySession
from langchain_core.messages import AIMessage, HumanMessage
from langchain_postgres import PostgresChatMessageHistory
from langgraph.checkpoint.base import empty_checkpoint
from langgraph.checkpoint.postgres.aio import AsyncPostgresSaver
from llama_index.core.llms import ChatMessage
from llama_index.storage.chat_store.redis import RedisChatStore
from psycopg.rows import dict_row
from psycopg_pool import AsyncConnectionPool
from sqlalchemy.ext.asyncio import create_async_engine

from bench.lines import serve
from bench.places import Servers
from exai.bench.batch import Run, run_batch
from exai.bench.plan import Texts

PAGE = 50
CONNECTIONS = 16
TABLE = "langchain_messages"
PLAIN = {"ssl": "disable"}


class Store(Protocol):
    """A store of conversations; `n` numbers a conversation, texts are a question and its answer."""

    async def load(self, n: int) -> int:
        """Read the newest messages and return how many came."""

    async def append(self, n: int, texts: list[str]) -> None:
        """Add texts, spoken in turn by user and model."""


class OpenAI:
    """Sessions of the OpenAI Agents SDK; the table of sessions is made with the first."""

    def __init__(self, sessions: list[Any]) -> None:
        self._sessions = sessions

    async def load(self, n: int) -> int:
        """Implement `Store`."""
        return len(await self._sessions[n].get_items(limit=PAGE))

    async def append(self, n: int, texts: list[str]) -> None:
        """Implement `Store`."""
        await self._sessions[n].add_items(
            [{"role": "user" if i % 2 == 0 else "assistant", "content": text} for i, text in enumerate(texts)]
        )


class LangChain:
    """Histories on a pool's connections; there is no way to ask for less than all."""

    def __init__(self, pool: AsyncConnectionPool[Any], ids: list[str]) -> None:
        self._pool, self._ids = pool, ids

    async def load(self, n: int) -> int:
        """Implement `Store`."""
        async with self._pool.connection() as connection:
            history = PostgresChatMessageHistory(TABLE, self._ids[n], async_connection=connection)
            return len((await history.aget_messages())[-PAGE:])

    async def append(self, n: int, texts: list[str]) -> None:
        """Implement `Store`."""
        async with self._pool.connection() as connection:
            history = PostgresChatMessageHistory(TABLE, self._ids[n], async_connection=connection)
            await history.aadd_messages(spoken(texts))


class LangGraph:
    """Checkpoints with one channel of messages; what was written last is at hand for the next, as in a graph."""

    def __init__(self, saver: AsyncPostgresSaver, ids: list[str]) -> None:
        self._saver, self._ids = saver, ids
        self._checkpoints: dict[int, Any] = {}

    async def load(self, n: int) -> int:
        """Implement `Store`."""
        found = await self._saver.aget_tuple(self._config(n))
        if found is None:
            return 0
        self._checkpoints[n] = found.checkpoint
        return len(found.checkpoint["channel_values"]["messages"][-PAGE:])

    async def append(self, n: int, texts: list[str]) -> None:
        """Implement `Store`."""
        if n not in self._checkpoints and await self.load(n) == 0:
            self._checkpoints[n] = empty_checkpoint()
        last, fresh = self._checkpoints[n], empty_checkpoint()
        version = self._saver.get_next_version(last["channel_versions"].get("messages"), None)
        fresh["channel_values"] = {"messages": [*last["channel_values"].get("messages", ()), *spoken(texts)]}
        fresh["channel_versions"] = {"messages": version}
        self._checkpoints[n] = fresh
        await self._saver.aput(self._config(n), fresh, {"source": "loop", "step": 1}, {"messages": version})

    def _config(self, n: int) -> Any:
        return {"configurable": {"thread_id": self._ids[n], "checkpoint_ns": ""}}


class LlamaIndex:
    """A list in Redis for each conversation; there is no way to ask for less than all."""

    def __init__(self, store: RedisChatStore, ids: list[str]) -> None:
        self._store, self._ids = store, ids

    async def load(self, n: int) -> int:
        """Implement `Store`."""
        return len((await self._store.aget_messages(self._ids[n]))[-PAGE:])

    async def append(self, n: int, texts: list[str]) -> None:
        """Implement `Store`."""
        for i, text in enumerate(texts):
            message = ChatMessage(role="user" if i % 2 == 0 else "assistant", content=text)
            await self._store.async_add_message(self._ids[n], message)


def spoken(texts: list[str]) -> list[Any]:
    """Texts as messages of user and model in turn."""
    return [(HumanMessage if i % 2 == 0 else AIMessage)(content=text) for i, text in enumerate(texts)]


@asynccontextmanager
async def open_stores(servers: Servers, conversations: int) -> AsyncIterator[dict[str, Store]]:
    """All stores by name. Conversations have the same names each time, so that a second opening finds them."""
    ids = [str(uuid.UUID(int=number + 1)) for number in range(conversations)]
    async with AsyncExitStack() as stack:
        stores: dict[str, Store] = {}
        engines = {
            "OpenAI Agents SQLAlchemySession": create_async_engine(servers.engine_url(), connect_args=PLAIN),
            "OpenAI Agents SQLAlchemySession, tuned": create_async_engine(
                servers.engine_url(), connect_args=PLAIN, pool_size=CONNECTIONS, max_overflow=0
            ),
        }
        for number, (name, engine) in enumerate(engines.items()):
            stack.push_async_callback(engine.dispose)
            sessions = [
                SQLAlchemySession(f"{number}-{each}", engine=engine, create_tables=each == ids[0]) for each in ids
            ]
            await sessions[0].get_items(limit=1)
            stores[name] = OpenAI(sessions)
        pool: AsyncConnectionPool[Any] = AsyncConnectionPool(
            servers.conninfo(), min_size=CONNECTIONS, max_size=CONNECTIONS, open=False
        )
        await stack.enter_async_context(pool)
        async with pool.connection() as connection:
            await PostgresChatMessageHistory.acreate_tables(connection, TABLE)
        stores["LangChain Postgres history"] = LangChain(pool, ids)
        graph_pool: AsyncConnectionPool[Any] = AsyncConnectionPool(
            servers.conninfo(),
            min_size=CONNECTIONS,
            max_size=CONNECTIONS,
            open=False,
            kwargs={"autocommit": True, "prepare_threshold": 0, "row_factory": dict_row},
        )
        await stack.enter_async_context(graph_pool)
        saver = AsyncPostgresSaver(graph_pool)
        await saver.setup()
        stores["LangGraph AsyncPostgresSaver"] = LangGraph(saver, ids)
        client = await stack.enter_async_context(redis.asyncio.Redis.from_url(servers.redis_url))
        stores["OpenAI Agents RedisSession"] = OpenAI([RedisSession(each, redis_client=client) for each in ids])
        plain = stack.enter_context(redis.Redis.from_url(servers.redis_url))
        stores["LlamaIndex Redis"] = LlamaIndex(RedisChatStore(redis_client=plain, aredis_client=client), ids)
        yield stores


class Worker:
    """Does what the lines on standard input ask for."""

    def __init__(self, stores: dict[str, Store], conversations: int, message_bytes: int) -> None:
        self._stores, self._conversations = stores, conversations
        self._texts = Texts(message_bytes)
        self._exchanges = [[message.content for message in self._texts.exchange()] for _ in range(512)]

    async def seed(self, store: str, messages: int) -> dict[str, Any]:
        """Make the conversations."""
        for n in range(self._conversations):
            texts = [message.content for _ in range(messages // 2) for message in self._texts.exchange()]
            await self._stores[store].append(n, texts)
        return {}

    async def once(self, store: str, operation: str) -> dict[str, Any]:
        """Do an operation once, to be counted from outside."""
        return {"as_named": await self._run(store, operation)(1)}

    async def batch(self, store: str, operation: str, callers: int, number: int) -> dict[str, Any]:
        """Time an operation."""
        return asdict(await run_batch(self._run(store, operation), callers, number))

    def _run(self, name: str, operation: str) -> Run:
        store = self._stores[name]

        async def load(number: int) -> bool:
            return await store.load(number % self._conversations) == PAGE

        async def append(number: int) -> bool:
            await store.append(number % self._conversations, self._exchanges[number % len(self._exchanges)])
            return True

        async def full(number: int) -> bool:
            return await load(number) and await append(number)

        return {"load": load, "append": append, "full": full}[operation]


async def main() -> None:
    """Open everything, say the stores' names, and work until the input ends."""
    plan = json.loads(sys.argv[1])
    async with open_stores(Servers(**plan["servers"]), plan["conversations"]) as stores:
        await serve(Worker(stores, plan["conversations"], plan["message_bytes"]), list(stores))


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main())
