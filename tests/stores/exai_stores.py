"""EXAI opened for the conformance suite, in the process and at a daemon; other processes open it by the same names.

The environment configures `open_app`; `EXAI_STORES_DAEMON` is the address of the daemon.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

from conversation_store_conformance import Item
from conversation_store_conformance import Store as ConformanceStore
from exai.app import open_app
from exai.client import connect
from exai.conversations import AppendRequest, MetadataPatch
from exai.errors import NotFound
from exai.fairness import RequestWork, request_work
from exai.items import dump_item, load_item, readable
from exai.models import LOCAL_OWNER, ContinuationId, Message, NewMessage, Owner
from exai.settings.load import load_settings
from exai.store import Store

DAEMON = "EXAI_STORES_DAEMON"
PAGE = 500
LIST = 200
SHOWN_CHARS = 100_000
"""Of the readable text of an item; the item itself is stored whole."""


@dataclass
class Hooks:
    """What the runner can do to the servers; None for what it cannot."""

    lose_cache: Callable[[], Awaitable[None]] | None = None
    lose_reply: Callable[[], Awaitable[None]] | None = None
    restart: Callable[[], Awaitable[None]] | None = None


HOOKS = Hooks()


class ExaiStore(ConformanceStore):
    """EXAI's own interface; an item is kept exactly beside its readable text. Tenants are owners."""

    persistent: ClassVar[bool] = True

    def __init__(self, store: Store, owner: Owner = LOCAL_OWNER, work: RequestWork | None = None) -> None:
        self._conversations, self._store, self._owner, self._work = store.conversations, store, owner, work
        hooks = {name for name in ("lose_cache", "lose_reply", "restart") if getattr(HOOKS, name) is None}
        self.lacks = frozenset(hooks | ({"cost"} if work is None else set()))

    async def append(self, name: str, items: Sequence[Item]) -> None:
        if items:
            await self._append(name, items)

    async def read(self, name: str) -> list[Item] | None:
        try:
            return await self._newest(name, None)
        except NotFound:
            return None

    async def newest(self, name: str, count: int) -> list[Item]:
        try:
            return await self._newest(name, count) if count else []
        except NotFound:
            return []

    async def page(self, name: str, cursor: Any, limit: int) -> tuple[list[Item], Any]:
        page = await self._conversations.read(self._owner, _named(name), limit=limit, before_seq=cursor, whole=True)
        return [_item(each) for each in page.messages], page.next_before_seq

    async def names(self) -> list[str]:
        found: list[str] = []
        cursor = None
        while True:
            page = await self._conversations.list(self._owner, limit=LIST, cursor=cursor)
            found += [each.continuation_id for each in page.conversations]
            if (cursor := page.next_cursor) is None:
                return found

    async def delete(self, name: str) -> None:
        try:
            await self._conversations.delete(self._owner, _named(name))
        except NotFound:
            return

    async def clear(self, name: str) -> None:
        try:
            await self._conversations.rewind(self._owner, _named(name), to_seq=0)
        except NotFound:
            return

    async def pop(self, name: str) -> Item | None:
        try:
            rewound = await self._conversations.rewind(self._owner, _named(name), drop=1)
        except NotFound:
            return None
        return _item(rewound.cut[-1]) if rewound.cut else None

    async def append_once(self, name: str, items: Sequence[Item], key: str) -> None:
        await self._append(name, items, idempotency_key=key)

    async def append_identified(self, name: str, items: Sequence[tuple[str, Item]]) -> None:
        messages = [_message(item, key) for key, item in items]
        await self._conversations.append(AppendRequest(self._owner, messages, _named(name), create=True))

    async def revision(self, name: str) -> Any:
        try:
            return (await self._conversations.read(self._owner, _named(name), limit=1)).conversation.revision
        except NotFound:
            return 0

    async def append_if(self, name: str, items: Sequence[Item], revision: Any) -> None:
        await self._append(name, items, expected_revision=revision)

    async def fork(self, name: str, length: int) -> str:
        return (await self._conversations.fork(self._owner, _named(name), at_seq=length)).continuation_id

    async def rewind(self, name: str, length: int) -> None:
        await self._conversations.rewind(self._owner, _named(name), to_seq=length)

    async def state(self, name: str) -> Mapping[str, Any]:
        return (await self._conversations.read(self._owner, _named(name), limit=1)).conversation.metadata

    async def append_with_state(self, name: str, items: Sequence[Item], changes: Mapping[str, Any]) -> None:
        await self._append(name, items, patch=MetadataPatch(dict(changes)))

    def tenant(self, tenant: str) -> ConformanceStore:
        return ExaiStore(self._store, Owner(tenant), self._work)

    def cost(self) -> Mapping[str, float]:
        return {} if self._work is None else {"round trips to Postgres": self._work.statements}

    async def restart(self) -> None:
        assert HOOKS.restart is not None
        await HOOKS.restart()

    async def lose_cache(self) -> None:
        assert HOOKS.lose_cache is not None
        await HOOKS.lose_cache()

    async def lose_reply(self) -> None:
        assert HOOKS.lose_reply is not None
        await HOOKS.lose_reply()

    async def _append(self, name: str, items: Sequence[Item], **more: Any) -> None:
        messages = [_message(item) for item in items]
        await self._conversations.append(AppendRequest(self._owner, messages, _named(name), create=True, **more))

    async def _newest(self, name: str, count: int | None) -> list[Item]:
        pages: list[list[Item]] = []
        before: int | None = None
        left = count
        while left is None or left > 0 or not pages:
            limit = PAGE if left is None else min(left, PAGE)
            page = await self._conversations.read(self._owner, _named(name), limit=limit, before_seq=before, whole=True)
            pages.append([_item(each) for each in page.messages])
            left = None if left is None else left - len(page.messages)
            before = page.next_before_seq
            if before is None:
                break
        return [item for page in reversed(pages) for item in page]


@asynccontextmanager
async def in_process(place: str) -> AsyncIterator[ConformanceStore]:
    """`open_app` with the settings of the environment."""
    work = RequestWork()
    request_work.set(work)
    async with open_app(load_settings()) as app:
        yield ExaiStore(app, work=work)


@asynccontextmanager
async def at_daemon(place: str) -> AsyncIterator[ConformanceStore]:
    """`exai.client` at a daemon."""

    async with connect(os.environ[DAEMON], token=token_of) as client:
        yield ExaiStore(client)


def token_of(owner: str) -> str:
    """Return the token of an owner at the runner's daemon."""
    return hashlib.sha256(owner.encode()).hexdigest()


def _named(name: str) -> ContinuationId:
    return ContinuationId(name)


def _message(item: Item, key: str | None = None) -> NewMessage:
    content = item.get("content") if isinstance(item, dict) else None
    text = readable(content[:SHOWN_CHARS]) if isinstance(content, str) else ""
    return NewMessage("user", text, item=dump_item(item), key=key)


def _item(message: Message) -> Item:
    assert message.item is not None
    return load_item(message.item)
