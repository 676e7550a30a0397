"""Stores of the OpenAI Agents SDK: `agents.memory.Session`, one object for each conversation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from conversation_store_conformance.store import Item, Store


class SessionStore(Store):
    """Sessions by their ids; `make_session` returns the session of an id."""

    def __init__(self, make_session: Callable[[str], Any], *, persistent: bool) -> None:
        self._make, self.persistent = make_session, persistent  # type: ignore[misc]
        self._sessions: dict[str, Any] = {}

    async def append(self, name: str, items: Sequence[Item]) -> None:
        """Call `add_items`."""
        await self._session(name).add_items(list(items))

    async def read(self, name: str) -> list[Item]:
        """Call `get_items`."""
        return list(await self._session(name).get_items())

    async def newest(self, name: str, count: int) -> list[Item]:
        """Call `get_items` with a limit."""
        return list(await self._session(name).get_items(limit=count))

    async def pop(self, name: str) -> Item | None:
        """Call `pop_item`."""
        return await self._session(name).pop_item()

    async def clear(self, name: str) -> None:
        """Call `clear_session`."""
        await self._session(name).clear_session()

    async def close(self) -> None:
        """Close the sessions that can be closed."""
        for session in self._sessions.values():
            close = getattr(session, "close", None)
            if close is not None and (waiting := close()) is not None:
                await waiting

    def _session(self, name: str) -> Any:
        if name not in self._sessions:
            self._sessions[name] = self._make(name)
        return self._sessions[name]
