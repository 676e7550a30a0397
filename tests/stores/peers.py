"""Stores of other frameworks, opened for the conformance suite; run in the environment of `requirements/stores.lock`.

`EXAI_STORES_URL` is a Postgres for those that need one, as SQLAlchemy writes it, `EXAI_STORES_REDIS` a Redis.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from conversation_store_conformance import Store
from conversation_store_conformance.frontends.adk import SessionServiceStore
from conversation_store_conformance.frontends.claude_agent import SessionStoreFrontend
from conversation_store_conformance.frontends.openai_agents import SessionStore
from conversation_store_conformance.frontends.pydantic_ai import ConversationStoreFrontend


@asynccontextmanager
async def openai_sqlite(place: str) -> AsyncIterator[Store]:
    """`agents.SQLiteSession`, on a file."""
    from agents import SQLiteSession

    store = SessionStore(lambda name: SQLiteSession(name, Path(place) / "sessions.db"), persistent=True)
    try:
        yield store
    finally:
        await store.close()


@asynccontextmanager
async def openai_sqlalchemy(place: str) -> AsyncIterator[Store]:
    """`SQLAlchemySession` of the OpenAI Agents SDK, on Postgres."""
    from agents.extensions.memory import SQLAlchemySession
    from sqlalchemy.ext.asyncio import create_async_engine

    url = os.environ.get("EXAI_STORES_URL", f"sqlite+aiosqlite:///{place}/sessions.db")
    engine = create_async_engine(url)
    try:
        yield SessionStore(lambda name: SQLAlchemySession(name, engine=engine, create_tables=True), persistent=True)
    finally:
        await engine.dispose()


@asynccontextmanager
async def openai_redis(place: str) -> AsyncIterator[Store]:
    """`RedisSession` of the OpenAI Agents SDK."""
    from agents.extensions.memory import RedisSession
    from redis.asyncio import Redis

    client = Redis.from_url(os.environ["EXAI_STORES_REDIS"])
    try:
        yield SessionStore(lambda name: RedisSession(name, redis_client=client), persistent=True)
    finally:
        await client.aclose()


@asynccontextmanager
async def claude_memory(place: str) -> AsyncIterator[Store]:
    """`InMemorySessionStore` of the Claude Agent SDK."""
    from claude_agent_sdk import InMemorySessionStore

    yield SessionStoreFrontend(InMemorySessionStore(), persistent=False)


@asynccontextmanager
async def adk_memory(place: str) -> AsyncIterator[Store]:
    """`InMemorySessionService` of ADK."""
    from google.adk.sessions import InMemorySessionService

    yield SessionServiceStore(InMemorySessionService(), persistent=False)


@asynccontextmanager
async def adk_database(place: str) -> AsyncIterator[Store]:
    """`DatabaseSessionService` of ADK, on Postgres."""
    from google.adk.sessions import DatabaseSessionService

    url = os.environ.get("EXAI_STORES_URL", f"sqlite+aiosqlite:///{place}/sessions.db")
    service = DatabaseSessionService(url)
    try:
        yield SessionServiceStore(service, persistent=True)
    finally:
        await service.close()


@asynccontextmanager
async def pydantic_memory(place: str) -> AsyncIterator[Store]:
    """`InMemoryConversationStore` of Pydantic AI."""
    from pydantic_ai.conversation_store import InMemoryConversationStore

    yield ConversationStoreFrontend(InMemoryConversationStore(), persistent=False)
