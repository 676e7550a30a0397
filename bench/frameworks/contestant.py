"""What a store of a framework is asked to do, by EXAI's adapter and by the framework's own store alike."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Any, Protocol

from bench.places import Servers
from exai.store import Store

CONNECTIONS = 16
"""Of a framework's own store to the database; as many as there are callers."""

Texts = tuple[str, str]
"""A question and its answer."""


class Contestant(Protocol):
    """A store behind a framework's interface. Sessions are named by texts."""

    async def load(self, session: str) -> int:
        """Read a whole session, as the framework does before a turn; return the number of its items."""

    async def append(self, session: str, texts: Texts) -> None:
        """Add a turn to a session that the caller has loaded before."""

    async def create(self, session: str, texts: Texts) -> None:
        """Add a turn to a new session."""


@dataclass(frozen=True)
class Contest:
    """The same EXAI in the process and at a daemon, and the servers for the framework's own store."""

    process: Store
    daemon: Store
    owner: str
    servers: Servers

    def exai(self, make: Callable[[Any], Contestant]) -> dict[str, Contestant]:
        """Return EXAI's two contestants; `make` takes a store."""
        return {"process": make(self.process), "daemon": make(self.daemon)}


OpenContestants = Callable[[Contest], AbstractAsyncContextManager[dict[str, Contestant]]]
Opened = AsyncIterator[dict[str, Contestant]]
