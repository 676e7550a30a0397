"""Stores of the Claude Agent SDK: `SessionStore`, with entries by project, session and subpath."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from typing import Any

from conversation_store_conformance.store import Item, Store

SEPARATOR = "\x1f"
IDS = uuid.UUID("6f1f8b7e-93c1-4f1c-9d5e-5f1d2f0a9c11")
OPTIONAL = {"names": "list_sessions", "delete": "delete", "child": "list_subkeys"}


class SessionStoreFrontend(Store):
    """A `SessionStore`; tenants are projects, and children subpaths."""

    def __init__(self, store: Any, *, persistent: bool, project: str = "project") -> None:
        self._store, self.persistent, self._project = store, persistent, project  # type: ignore[misc]
        self.lacks = frozenset(name for name, method in OPTIONAL.items() if not hasattr(store, method))

    async def append(self, name: str, items: Sequence[Item]) -> None:
        """Append entries without ids."""
        await self._store.append(self._key(name), list(items))

    async def append_identified(self, name: str, items: Sequence[tuple[str, Item]]) -> None:
        """Append entries with a `uuid`."""
        entries = [{**item, "uuid": str(uuid.uuid5(IDS, key))} for key, item in items]
        await self._store.append(self._key(name), entries)

    async def read(self, name: str) -> list[Item] | None:
        """Load the entries."""
        found = await self._store.load(self._key(name))
        if found is None:
            return None
        # The entries themselves, unless they have an id that this front end gave.
        return [{k: v for k, v in each.items() if k != "uuid"} if "uuid" in each else each for each in found]

    async def names(self) -> list[str]:
        """List the sessions of the project."""
        return [each["session_id"] for each in await self._store.list_sessions(self._project)]

    async def delete(self, name: str) -> None:
        """Delete a session or a subpath."""
        await self._store.delete(self._key(name))

    def child(self, name: str, part: str) -> str:
        """Return the name of a subpath."""
        return f"{name}{SEPARATOR}subagents/{part}"

    def tenant(self, tenant: str) -> Store:
        """Return another project."""
        return SessionStoreFrontend(self._store, persistent=self.persistent, project=tenant)

    def _key(self, name: str) -> dict[str, str]:
        session, _, subpath = name.partition(SEPARATOR)
        key = {"project_key": self._project, "session_id": session}
        return {**key, "subpath": subpath} if subpath else key
