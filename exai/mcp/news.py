"""Changes of one owner's resources, gathered for a moment and told to those of its sessions that asked.

The invariant is that an owner hears of its own resources only, and that however much changes, a session is told about
each address and about the list at most once in `GATHER_S`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable

from exai.mcp.session import Session
from exai.models import Owner

GATHER_S = 0.5
MAX_GATHERED = 10_000
"""Addresses gathered at a time; what changes beyond is told with the list, which a client reads again anyway."""


class News:
    """What has changed and has not been told yet."""

    def __init__(self, sessions: Callable[[], Iterable[Session]]) -> None:
        self._sessions = sessions
        self._uris: dict[Owner, set[str]] = {}
        self._lists: set[Owner] = set()
        self._gathered = 0
        self._timer: asyncio.TimerHandle | None = None

    @property
    def is_wanted(self) -> bool:
        """Whether any session would be told of anything."""
        return any(session.connection.is_listening for session in self._sessions())

    def add(self, owner: Owner, uri: str, *, is_listed: bool) -> None:
        """One resource changed; with `is_listed` the list of resources reads differently, too."""
        if self._gathered < MAX_GATHERED:
            self._uris.setdefault(owner, set()).add(uri)
            self._gathered += 1
        else:
            is_listed = True
        if is_listed:
            self._lists.add(owner)
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(GATHER_S, self._tell)

    def stop(self) -> None:
        """Tell nothing more."""
        if self._timer is not None:
            self._timer.cancel()

    def _tell(self) -> None:
        uris, lists = self._uris, self._lists
        self._uris, self._lists, self._gathered, self._timer = {}, set(), 0, None
        for session in self._sessions():
            if session.owner in uris:
                for uri in session.connection.subscribed(uris[session.owner]):
                    session.tell(session.connection.updated(uri))
            if session.owner in lists:
                session.tell(session.connection.changed("resources"))
