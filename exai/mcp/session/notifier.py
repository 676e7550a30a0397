"""Collects changes of resources briefly, and notifies the subscribed sessions of their owners.

Invariant: an owner is notified of its own resources only, and a session is notified of each URI and of the list at
most once in `COLLECT_S`, however many changes there are.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable

from exai.mcp.session.session import Session
from exai.models import Owner

COLLECT_S = 0.5
MAX_COLLECTED = 10_000
"""Maximum number of collected URIs; further changes are reported as a change of the list, which clients read again."""


class Notifier:
    """The changes that the subscribed sessions have not been notified of yet."""

    def __init__(self, sessions: Callable[[], Iterable[Session]]) -> None:
        self._sessions = sessions
        self._uris: dict[Owner, set[str]] = {}
        self._lists: set[Owner] = set()
        self._collected = 0
        self._timer: asyncio.TimerHandle | None = None

    @property
    def has_subscribers(self) -> bool:
        """Return whether any session is subscribed to anything."""
        return any(session.connection.is_listening for session in self._sessions())

    def add_change(self, owner: Owner, uri: str, *, is_listed: bool) -> None:
        """Add the change of one resource; `is_listed` means that the list of resources has changed too."""
        if self._collected < MAX_COLLECTED:
            self._uris.setdefault(owner, set()).add(uri)
            self._collected += 1
        else:
            is_listed = True
        if is_listed:
            self._lists.add(owner)
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(COLLECT_S, self._notify)

    def stop(self) -> None:
        """Stop sending notifications."""
        if self._timer is not None:
            self._timer.cancel()

    def _notify(self) -> None:
        uris, lists = self._uris, self._lists
        # Reset before sending, so that a change noted meanwhile starts the next interval.
        self._uris, self._lists, self._collected, self._timer = {}, set(), 0, None
        for session in self._sessions():
            if session.owner in uris:
                for uri in session.connection.subscribed_among(uris[session.owner]):
                    session.notify(session.connection.resource_updated(uri))
            if session.owner in lists:
                session.notify(session.connection.list_changed("resources"))
