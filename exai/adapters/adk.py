"""The session service of Google's ADK: `Runner(..., session_service=ExaiSessionService())`.

A session is a conversation, an event a message with the event's id as its key, and the state of a session metadata of
its conversation. The states of a user and of an app are the metadata of conversations without messages.

Invariant: an event and all the state that it changes are committed together, and never on a session that has changed
since the caller read it.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
import uuid
from collections.abc import Mapping, Sequence
from typing import Any, Final
from weakref import WeakValueDictionary

from google.adk.errors.already_exists_error import AlreadyExistsError
from google.adk.errors.session_not_found_error import SessionNotFoundError
from google.adk.events.event import Event
from google.adk.sessions.base_session_service import BaseSessionService, GetSessionConfig, ListSessionsResponse
from google.adk.sessions.session import Session
from google.adk.sessions.state import State
from pydantic import ValidationError
from pydantic_core import to_jsonable_python

from exai.adapters.events import event_text
from exai.adapters.histories import completed, list_all, moment_of, read_header, read_history
from exai.adapters.names import conversation_name, name_prefix, storable_id
from exai.adapters.stores import StoreSource
from exai.client.connection import TokenSource
from exai.client.store import DEFAULT_URL
from exai.conversations.requests import AppendRequest
from exai.db.patches import MetadataPatch, RecordPatch
from exai.errors import Conflict, NotFound
from exai.items import dump_item, load_item
from exai.models import (
    LOCAL_OWNER,
    ContinuationId,
    Conversation,
    Message,
    NewMessage,
    Owner,
)
from exai.store import Conversations, Store

try:
    from google.adk.errors._stale_session_error import StaleSessionError
except ImportError:  # Older releases raise its base class.
    StaleSessionError = ValueError

TOOL: Final = "adk"
SESSIONS: Final = "adk"
USERS: Final = "adk-users"
APPS: Final = "adk-apps"

KEY: Final = "adk_key"
"""The field of a conversation's metadata with the ids of a session or a user, as a JSON text."""

UPDATED: Final = "adk_updated"
"""The field of a session's metadata with the time of its last event, in seconds since 1970."""

STATE: Final = "state:"
"""Begins the names of fields of metadata that have a value of a state each, as a JSON text."""

DIGEST_CHARS: Final = 16


class ExaiSessionService(BaseSessionService):
    """Sessions of the ADK, in EXAI.

    `store` is an open store, or the address of a daemon, which is connected to at the first call. The sessions of all
    users belong to `owner`.
    """

    def __init__(
        self, store: Store | str = DEFAULT_URL, *, owner: str = LOCAL_OWNER, token: TokenSource = None
    ) -> None:
        self._source, self._owner = StoreSource(store, token), Owner(owner)
        self._locks: WeakValueDictionary[tuple[int, ContinuationId], asyncio.Lock] = WeakValueDictionary()

    async def create_session(
        self, *, app_name: str, user_id: str, state: Mapping[str, Any] | None = None, session_id: str | None = None
    ) -> Session:
        """Make a session, and store its state. Raises `AlreadyExistsError`."""
        session_id = (session_id or "").strip() or str(uuid.uuid4())
        name, conversations = _name_of(app_name, user_id, session_id), await self._conversations()
        deltas, now = _deltas_of(state or {}), time.time()
        request = AppendRequest(
            self._owner,
            (),
            name,
            create=True,
            tool=TOOL,
            title=storable_id(session_id),
            metadata={KEY: dump_item([app_name, user_id, session_id]), UPDATED: now, **deltas[SESSIONS]},
            also=_records(app_name, user_id, deltas),
            expected_revision=0,
        )
        app, user = _name_of_app(app_name), _name_of_user(app_name, user_id)
        patched = {each.continuation_id for each in request.also}
        found = await asyncio.gather(
            *(
                self._record(conversations, name, ids)
                for name, ids in ((app, [app_name]), (user, [app_name, user_id]))
                if name not in patched
            )
        )
        try:
            appended = await completed(conversations.append(request))
        except Conflict as conflict:
            if conflict.reason != "revision":
                raise
            raise AlreadyExistsError(f"Session with id {session_id} already exists.") from None
        records = {each.continuation_id: each for each in (*found, *appended.records) if each is not None}
        merged = {
            **_state_in(deltas[SESSIONS], ""),
            **_state_of(records.get(app), State.APP_PREFIX),
            **_state_of(records.get(user), State.USER_PREFIX),
        }
        session = Session(app_name=app_name, user_id=user_id, id=session_id, state=merged, last_update_time=now)
        session._storage_update_marker = str(appended.revision)
        return session

    async def get_session(
        self, *, app_name: str, user_id: str, session_id: str, config: GetSessionConfig | None = None
    ) -> Session | None:
        """Read a session with its events, or those that `config` asks for; None if there is none."""
        conversations, session_id = await self._conversations(), session_id.strip()
        count = None if config is None else config.num_recent_events
        after = None if config is None else config.after_timestamp
        history, merged = await asyncio.gather(
            read_history(conversations, self._owner, _name_of(app_name, user_id, session_id), count),
            self._states(conversations, app_name, user_id),
        )
        if history is None:
            return None
        session = _session_of(history.conversation, merged)
        events = map(_event_of, history.messages)
        session.events = [each for each in events if each and (after is None or each.timestamp >= after)]
        return session

    async def list_sessions(self, *, app_name: str, user_id: str | None = None) -> ListSessionsResponse:
        """List the sessions of a user, or of all users, without events; the one that changed last is the last."""
        conversations = await self._conversations()
        ids = (app_name,) if user_id is None else (app_name, user_id)
        app = _state_of(await read_header(conversations, self._owner, _name_of_app(app_name)), State.APP_PREFIX)
        states = await self._states_of_users(conversations, app_name, user_id)
        sessions = [
            _session_of(each, {**app, **states.get(load_item(each.metadata[KEY])[1], {})})
            async for each in list_all(conversations, self._owner, name_prefix(SESSIONS, *ids))
            if KEY in each.metadata
        ]
        sessions.sort(key=lambda each: (each.last_update_time, each.user_id, each.id))
        return ListSessionsResponse(sessions=sessions)

    async def delete_session(self, *, app_name: str, user_id: str, session_id: str) -> None:
        """Delete a session; it can be restored for 7 days, and its id used again at once."""
        conversations = await self._conversations()
        try:
            await completed(conversations.delete(self._owner, _name_of(app_name, user_id, session_id.strip())))
        except NotFound:
            return

    async def get_user_state(self, *, app_name: str, user_id: str) -> dict[str, Any]:
        """Return the state of a user, without the prefix of its keys."""
        conversations = await self._conversations()
        return _state_of(await read_header(conversations, self._owner, _name_of_user(app_name, user_id)), "")

    async def append_event(self, session: Session, event: Event) -> Event:
        """Store an event with the state that it changes. Raises `SessionNotFoundError` or `StaleSessionError`."""
        if event.partial:
            return event
        name = _name_of(session.app_name, session.user_id, session.id)
        lock = self._locks.setdefault((id(asyncio.get_running_loop()), name), asyncio.Lock())
        async with lock:
            if await completed(self._store(name, session, event)):
                return await super().append_event(session, event)
        return event

    async def close(self) -> None:
        """Close the connections to a daemon; a store that was given stays open."""
        await self._source.close()

    async def _store(self, name: ContinuationId, session: Session, event: Event) -> bool:
        """Store an event and the state that it changes; False if it was stored before."""
        conversations = await self._conversations()
        message, deltas = _message_of(event), _deltas_of(event.actions.state_delta if event.actions else {})
        revision = await self._revision(conversations, name, session)
        request = AppendRequest(
            self._owner,
            [message],
            name,
            tool=TOOL,
            patch=MetadataPatch({**deltas[SESSIONS], UPDATED: event.timestamp}),
            also=_records(session.app_name, session.user_id, deltas),
            expected_revision=revision,
        )
        try:
            appended = await conversations.append(request)
        except NotFound:
            raise SessionNotFoundError(f"Session {session.id} not found.") from None
        except Conflict as conflict:
            if conflict.reason != "revision":
                raise
            if await conversations.find(self._owner, [str(message.key)], continuation_id=name):
                return False
            raise StaleSessionError(
                "The session has been changed since it was read. Read it again with get_session."
            ) from None
        session._storage_update_marker = str(appended.revision)
        session.last_update_time = event.timestamp
        return not appended.skipped

    async def _revision(self, conversations: Conversations, name: ContinuationId, session: Session) -> int:
        """Return the revision of the session that the caller has."""
        marker = session._storage_update_marker
        if marker is not None:
            return int(marker)
        # The caller made the object itself: it is that of the newest event, or the session has none.
        history = await read_history(conversations, self._owner, name, 1)
        if history is None:
            raise SessionNotFoundError(f"Session {session.id} not found.")
        newest = _message_of(session.events[-1]).key if session.events else None
        if newest != (history.messages[-1].key if history.messages else None):
            raise StaleSessionError("The session has other events than those stored. Read it again with get_session.")
        return history.conversation.revision

    async def _record(
        self, conversations: Conversations, name: ContinuationId, ids: Sequence[str]
    ) -> Conversation | None:
        """Return the conversation with the state of an app or user. A missing one is made, so that it can be cached."""
        found = await read_header(conversations, self._owner, name)
        if found is None:
            made = {KEY: dump_item(ids)}
            request = AppendRequest(self._owner, (), name, create=True, metadata=made, expected_revision=0)
            try:
                await completed(conversations.append(request))
            except Conflict as conflict:
                if conflict.reason != "revision":
                    raise
                # Another process has made it, perhaps with a state.
                found = await read_header(conversations, self._owner, name)
        return found

    async def _states(self, conversations: Conversations, app_name: str, user_id: str) -> dict[str, Any]:
        """Return the states of app and user, with their prefixes."""
        app, user = await asyncio.gather(
            read_header(conversations, self._owner, _name_of_app(app_name)),
            read_header(conversations, self._owner, _name_of_user(app_name, user_id)),
        )
        return {**_state_of(app, State.APP_PREFIX), **_state_of(user, State.USER_PREFIX)}

    async def _states_of_users(
        self, conversations: Conversations, app_name: str, user_id: str | None
    ) -> dict[str, dict[str, Any]]:
        if user_id is not None:
            header = await read_header(conversations, self._owner, _name_of_user(app_name, user_id))
            return {user_id: _state_of(header, State.USER_PREFIX)}
        return {
            load_item(each.metadata[KEY])[1]: _state_of(each, State.USER_PREFIX)
            async for each in list_all(conversations, self._owner, name_prefix(USERS, app_name))
            if KEY in each.metadata
        }

    async def _conversations(self) -> Conversations:
        return (await self._source.open()).conversations


def _name_of(app_name: str, user_id: str, session_id: str) -> ContinuationId:
    return conversation_name(SESSIONS, app_name, user_id, session_id)


def _name_of_user(app_name: str, user_id: str) -> ContinuationId:
    return conversation_name(USERS, app_name, user_id)


def _name_of_app(app_name: str) -> ContinuationId:
    return conversation_name(APPS, app_name)


def _deltas_of(state: Mapping[str, Any]) -> dict[str, dict[str, str]]:
    """Return a state as fields of metadata, separate for session, user and app; what is temporary is left out."""
    deltas: dict[str, dict[str, str]] = {SESSIONS: {}, USERS: {}, APPS: {}}
    for key, value in state.items():
        if key.startswith(State.TEMP_PREFIX):
            continue
        scope, name = SESSIONS, key
        for prefix, found in ((State.APP_PREFIX, APPS), (State.USER_PREFIX, USERS)):
            if key.startswith(prefix):
                scope, name = found, key.removeprefix(prefix)
        # The name is in the value too, because not every text can be the name of a field.
        deltas[scope][STATE + storable_id(name)] = dump_item([name, _json_of(value)])
    return deltas


def _json_of(value: Any) -> Any:
    # As the ADK's own services do: what is no JSON becomes its text.
    return to_jsonable_python(value, serialize_unknown=True)


def _records(app_name: str, user_id: str, deltas: Mapping[str, Mapping[str, str]]) -> list[RecordPatch]:
    records = []
    if deltas[APPS]:
        patch = MetadataPatch({KEY: dump_item([app_name]), **deltas[APPS]})
        records.append(RecordPatch(_name_of_app(app_name), patch))
    if deltas[USERS]:
        patch = MetadataPatch({KEY: dump_item([app_name, user_id]), **deltas[USERS]})
        records.append(RecordPatch(_name_of_user(app_name, user_id), patch))
    return records


def _state_of(conversation: Conversation | None, prefix: str) -> dict[str, Any]:
    return _state_in({} if conversation is None else conversation.metadata, prefix)


def _state_in(metadata: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    values = [load_item(value) for name, value in metadata.items() if name.startswith(STATE)]
    return {prefix + name: value for name, value in values}


def _session_of(conversation: Conversation, merged: Mapping[str, Any]) -> Session:
    app_name, user_id, session_id = load_item(conversation.metadata[KEY])
    session = Session(
        app_name=app_name,
        user_id=user_id,
        id=session_id,
        state={**_state_of(conversation, ""), **merged},
        last_update_time=float(conversation.metadata[UPDATED]),
    )
    session._storage_update_marker = str(conversation.revision)
    return session


def _message_of(event: Event) -> NewMessage:
    fields = event.model_dump(mode="json", exclude_none=True)
    if delta := fields.get("actions", {}).get("state_delta"):
        fields["actions"]["state_delta"] = {
            key: value for key, value in delta.items() if not key.startswith(State.TEMP_PREFIX)
        }
    item = dump_item(fields)
    # Another event may have the same id; the same one again has the same key.
    digest = hashlib.sha256(item.encode()).hexdigest()[:DIGEST_CHARS]
    role, kind, text = event_text(fields)
    created_at = moment_of(event.timestamp)
    return NewMessage(role, text, kind, key=storable_id(f"{event.id} {digest}"), created_at=created_at, item=item)


def _event_of(message: Message) -> Event | None:
    """Return the event of a message, None for a message of another client."""
    if message.item is None:
        return None
    try:
        return Event.model_validate_json(message.item)
    except ValidationError:  # It holds half of a surrogate pair, which that parser refuses.
        return Event.model_validate(load_item(message.item))
