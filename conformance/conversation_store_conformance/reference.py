"""A store in a file that keeps every rule: what the rules mean, and the base of the wrong stores."""

from __future__ import annotations

import copy
import json
import sqlite3
import uuid
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

from conversation_store_conformance.store import Item, Store

MAX_BYTES = 7_000_000
TABLES = """
pragma journal_mode = wal;
pragma synchronous = off;
create table if not exists conversations (tenant text, name text, document text, primary key (tenant, name));
create table if not exists requests (tenant text, key text, content text, primary key (tenant, key));
"""


class Refused(Exception):
    """The store does not carry out a call."""


class ReferenceStore(Store):
    """Conversations as JSON documents in SQLite, one transaction for each call.

    A document is `{"items": [[id, item], ...], "state": {}, "revision": n}`.
    """

    persistent = True

    def __init__(self, place: str, tenant: str = "") -> None:
        self.place, self.own_tenant = place, tenant
        self.statements = 0
        self.database = sqlite3.connect(Path(place) / "reference.db", timeout=30, isolation_level=None)
        self.database.executescript(TABLES)
        self.loses_reply = False

    def close(self) -> None:
        """Close the file."""
        self.database.close()

    # Required.

    async def append(self, name: str, items: Sequence[Item]) -> None:
        """Append items."""
        self.write(name, self.checked(items))

    async def read(self, name: str) -> list[Item] | None:
        """Return all items."""
        document = self.document(name)
        return None if document is None else [item for _, item in document["items"]]

    # Capabilities.

    async def newest(self, name: str, count: int) -> list[Item]:
        """Return the newest items."""
        if count < 0:
            raise Refused("count: is negative")
        items = await self.read(name) or []
        return items[max(0, len(items) - count) :]

    async def page(self, name: str, cursor: Any, limit: int) -> tuple[list[Item], Any]:
        """Return a page, from the oldest item on."""
        items = await self.read(name) or []
        start = cursor or 0
        end = start + limit
        return items[start:end], end if end < len(items) else None

    async def names(self) -> list[str]:
        """Return the names."""
        rows = self.execute("select name from conversations where tenant = ?", self.own_tenant)
        return [row[0] for row in rows]

    async def delete(self, name: str) -> None:
        """Delete a conversation and its children."""
        with self.transaction():
            found = [each for each in await self.names() if each == name or each.startswith(f"{name}/child/")]
            for each in found:
                self.execute("delete from conversations where tenant = ? and name = ?", self.own_tenant, each)

    async def clear(self, name: str) -> None:
        """Remove all items."""
        await self.rewind(name, 0)

    async def pop(self, name: str) -> Item | None:
        """Remove the newest item."""
        with self.transaction():
            document = self.document(name)
            if document is None or not document["items"]:
                return None
            _, item = document["items"].pop()
            self.save(name, document)
            return item

    async def append_once(self, name: str, items: Sequence[Item], key: str) -> None:
        """Append items once for each key."""
        content = json.dumps([name, items])
        with self.transaction():
            known = self.execute("select content from requests where tenant = ? and key = ?", self.own_tenant, key)
            if known and known[0][0] != content:
                raise Refused("the key was used for other content")
            if not known:
                self.execute("insert into requests values (?, ?, ?)", self.own_tenant, key, content)
                self.write(name, self.checked(items))
        self.reply()

    async def append_identified(self, name: str, items: Sequence[tuple[str, Item]]) -> None:
        """Append those items whose id is new."""
        self.checked([item for _, item in items])
        with self.transaction():
            document = self.document(name) or empty()
            known = {key for key, _ in document["items"]}
            for key, item in items:
                if key not in known:
                    document["items"].append([key, item])
                    known.add(key)
            self.save(name, document)

    async def revision(self, name: str) -> Any:
        """Return the number of writes."""
        return (self.document(name) or empty())["revision"]

    async def append_if(self, name: str, items: Sequence[Item], revision: Any) -> None:
        """Append items to a conversation of this revision."""
        with self.transaction():
            if await self.revision(name) != revision:
                raise Refused("the conversation has another revision")
            self.write(name, self.checked(items))

    async def fork(self, name: str, length: int) -> str:
        """Copy the first items."""
        other = f"{name}-fork-{uuid.uuid4().hex}"
        with self.transaction():
            document = self.document(name) or empty()
            self.save(other, {**document, "items": document["items"][:length]})
        return other

    async def rewind(self, name: str, length: int) -> None:
        """Remove later items."""
        with self.transaction():
            document = self.document(name)
            if document is not None:
                del document["items"][length:]
                self.save(name, document)

    async def state(self, name: str) -> Mapping[str, Any]:
        """Return the state."""
        state: Mapping[str, Any] = (self.document(name) or empty())["state"]
        return state

    async def append_with_state(self, name: str, items: Sequence[Item], changes: Mapping[str, Any]) -> None:
        """Append items and merge the changes."""
        self.checked([*items, dict(changes)])
        with self.transaction():
            document = self.document(name) or empty()
            document["items"] += [[uuid.uuid4().hex, item] for item in items]
            document["state"] |= changes
            self.save(name, document)

    def child(self, name: str, part: str) -> str:
        """Return a name below another one."""
        return f"{name}/child/{part}"

    def tenant(self, tenant: str) -> Store:
        """Return the store of another tenant."""
        other = copy.copy(self)
        other.own_tenant = tenant
        return other

    def cost(self) -> Mapping[str, float]:
        """Return the number of statements."""
        return {"statements": self.statements}

    async def restart(self) -> None:
        """Open the file again."""
        self.database.close()
        self.database = sqlite3.connect(Path(self.place) / "reference.db", timeout=30, isolation_level=None)

    async def lose_cache(self) -> None:
        """Do nothing: there is no cache."""

    async def lose_reply(self) -> None:
        """Let the next `append_once` raise after its commit."""
        self.loses_reply = True

    # Below all of them.

    def reply(self) -> None:
        """Raise if the reply is to be lost."""
        if self.loses_reply:
            self.loses_reply = False
            raise ConnectionError("the reply was lost")

    def checked(self, items: Sequence[Item]) -> list[Item]:
        """Return the items, or refuse what is not JSON or too large."""
        if len(json.dumps(list(items))) > MAX_BYTES:
            raise Refused(f"a batch has at most {MAX_BYTES} bytes")
        return list(items)

    def write(self, name: str, items: Sequence[Item]) -> None:
        """Append items within a transaction."""
        if not items:
            return
        with self.transaction():
            document = self.document(name) or empty()
            document["items"] += [[uuid.uuid4().hex, item] for item in items]
            self.save(name, document)

    def document(self, name: str) -> dict[str, Any] | None:
        """Return a conversation."""
        rows = self.execute("select document from conversations where tenant = ? and name = ?", self.own_tenant, name)
        return json.loads(rows[0][0]) if rows else None

    def save(self, name: str, document: Mapping[str, Any]) -> None:
        """Store a conversation."""
        text = json.dumps({**document, "revision": document["revision"] + 1})
        self.execute("insert or replace into conversations values (?, ?, ?)", self.own_tenant, name, text)

    def execute(self, statement: str, *values: Any) -> list[Any]:
        """Execute one statement."""
        self.statements += 1
        return self.database.execute(statement, values).fetchall()

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Make the statements of the block one transaction; within another one they belong to that."""
        if self.database.in_transaction:
            yield
            return
        self.execute("begin immediate")
        try:
            yield
        except BaseException:
            self.execute("rollback")
            raise
        self.execute("commit")


def empty() -> dict[str, Any]:
    """Return a conversation without items."""
    return {"items": [], "state": {}, "revision": 0}


@asynccontextmanager
async def open_reference(place: str) -> AsyncIterator[Store]:
    """Open the reference store."""
    store = ReferenceStore(place)
    try:
        yield store
    finally:
        store.close()
