"""Stores of Google's Agent Development Kit: `BaseSessionService`, with one event for each item."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from conversation_store_conformance.store import Item, Store

APP = "conformance"
ATTEMPTS = 100


class SessionServiceStore(Store):
    """A session service; an item is the `custom_metadata` of an event. Its interface has no batches.

    A writer that is refused because its session is stale reads it again, as an application does.
    """

    batches = False

    def __init__(self, service: Any, *, persistent: bool, user: str = "user") -> None:
        from google.adk.events.event import Event
        from google.adk.events.event_actions import EventActions
        from google.adk.sessions.base_session_service import GetSessionConfig

        self._event, self._actions, self._config = Event, EventActions, GetSessionConfig
        self._service, self.persistent, self._user = service, persistent, user  # type: ignore[misc]

    async def append(self, name: str, items: Sequence[Item]) -> None:
        """Append one event after the other."""
        await self._append(name, [self._made(item, {}) for item in items])

    async def read(self, name: str) -> list[Item] | None:
        """Get the session."""
        session = await self._get(name)
        return None if session is None else _items(session)

    async def newest(self, name: str, count: int) -> list[Item]:
        """Get the session with its recent events."""
        session = await self._get(name, config=self._config(num_recent_events=count))
        return [] if session is None else _items(session)

    async def names(self) -> list[str]:
        """List the sessions of the user."""
        found = await self._service.list_sessions(app_name=APP, user_id=self._user)
        return [each.id for each in found.sessions]

    async def delete(self, name: str) -> None:
        """Delete the session."""
        await self._service.delete_session(app_name=APP, user_id=self._user, session_id=name)

    async def revision(self, name: str) -> Any:
        """Return the session as it is now."""
        return await self._get(name)

    async def append_if(self, name: str, items: Sequence[Item], revision: Any) -> None:
        """Append to a session that was read before."""
        for item in items:
            if revision is None:
                raise LookupError(f"there was no session {name}")
            await self._service.append_event(revision.model_copy(deep=True), self._made(item, {}))

    async def state(self, name: str) -> Mapping[str, Any]:
        """Return the state of the session."""
        session = await self._get(name)
        return {} if session is None else dict(session.state)

    async def append_with_state(self, name: str, items: Sequence[Item], changes: Mapping[str, Any]) -> None:
        """Append an event with a state delta."""
        *earlier, last = items
        await self._append(name, [*(self._made(item, {}) for item in earlier), self._made(last, changes)])

    def tenant(self, tenant: str) -> Store:
        """Return another user."""
        return SessionServiceStore(self._service, persistent=self.persistent, user=tenant)

    async def _append(self, name: str, events: Sequence[Any]) -> None:
        waiting = list(events)
        session: Any = None
        attempts = 0
        while waiting:
            session = session or await self._got_or_made(name)
            try:
                await self._service.append_event(session, waiting[0])
            except Exception as error:
                attempts += 1
                if "stale" not in f"{type(error).__name__} {error}".lower() or attempts == ATTEMPTS:
                    raise
                session = None
            else:
                waiting.pop(0)

    async def _got_or_made(self, name: str) -> Any:
        session = await self._get(name)
        if session is None:
            try:
                return await self._service.create_session(app_name=APP, user_id=self._user, session_id=name)
            except Exception:
                session = await self._get(name)
                if session is None:
                    raise
        return session

    async def _get(self, name: str, **more: Any) -> Any:
        return await self._service.get_session(app_name=APP, user_id=self._user, session_id=name, **more)

    def _made(self, item: Item, changes: Mapping[str, Any]) -> Any:
        return self._event(
            author="user", custom_metadata={"item": item}, actions=self._actions(state_delta=dict(changes))
        )


def _items(session: Any) -> list[Item]:
    return [each.custom_metadata["item"] for each in session.events]
