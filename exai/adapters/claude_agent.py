"""The session store of the Claude Agent SDK: `ClaudeAgentOptions(session_store=ExaiSessionStore())`.

A transcript is a conversation, and that of a subagent another one. An entry is a message with the entry's `uuid` as its
key, and the readable text of the entry as its content.

Invariant: an entry with a `uuid` is stored once, and the entries of one key are in the order of the calls in a process.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final
from weakref import WeakValueDictionary

from claude_agent_sdk import fold_session_summary

from exai.adapters.histories import blocks_of, completed, list_all, moment_of, read_header, read_history, shown
from exai.adapters.names import conversation_name, name_prefix, storable_id
from exai.adapters.stores import StoreSource
from exai.adapters.transcripts import entry_text
from exai.client.connection import TokenSource
from exai.client.store import DEFAULT_URL
from exai.conversations.requests import AppendRequest
from exai.db.patches import MetadataPatch
from exai.errors import Conflict, NotFound
from exai.items import dump_item, load_item
from exai.models import LOCAL_OWNER, ContinuationId, Conversation, NewMessage, Owner
from exai.store import Conversations, Store

TOOL: Final = "claude_agent"
MAIN: Final = "claude"
SUBAGENTS: Final = "claude-subagents"
KEY: Final = "claude_key"
"""The field of a conversation's metadata with the SDK's key, as a JSON text."""

SUMMARY: Final = "claude_summary"
"""The field of a conversation's metadata with the SDK's summary of it, as a JSON text."""

MAX_ATTEMPTS: Final = 50
PAUSE_S: Final = 0.01
"""Between two attempts to fold a summary that another process has changed."""

TranscriptEntry = Mapping[str, Any]
Key = Mapping[str, Any]


class ExaiSessionStore:
    """A store of transcripts for the SDK, in EXAI.

    `store` is an open store, or the address of a daemon, which is connected to at the first call. All transcripts are
    those of `owner`.
    """

    def __init__(
        self, store: Store | str = DEFAULT_URL, *, owner: str = LOCAL_OWNER, token: TokenSource = None
    ) -> None:
        self._source, self._owner = StoreSource(store, token), Owner(owner)
        self._locks: WeakValueDictionary[tuple[int, ContinuationId], asyncio.Lock] = WeakValueDictionary()

    async def append(self, key: Key, entries: Sequence[TranscriptEntry]) -> None:
        """Store entries, except those whose `uuid` is known."""
        messages = [message_of(entry) for entry in entries]
        if messages:
            await completed(self._append(key, entries, messages))

    async def load(self, key: Key) -> list[Any] | None:
        """Return all entries in the order of storing, None if there are none."""
        history = await read_history(await self._conversations(), self._owner, _name_of(key))
        if history is None:
            return None
        # Messages of other clients have no item: they are not part of the transcript.
        return [load_item(message.item) for message in history.messages if message.item is not None] or None

    async def list_sessions(self, project_key: str) -> list[Any]:
        """Return ids and times of change of a project's sessions, in milliseconds since 1970."""
        return [
            {"session_id": _key_of(each)["session_id"], "mtime": _changed_ms(each)}
            async for each in self._list(name_prefix(MAIN, project_key))
        ]

    async def list_session_summaries(self, project_key: str) -> list[Any]:
        """Return the SDK's summaries of a project's sessions."""
        return [
            summary
            async for each in self._list(name_prefix(MAIN, project_key))
            if (summary := _summary_of(each)) is not None
        ]

    async def list_subkeys(self, key: Key) -> list[str]:
        """Return the paths of a session's subagents."""
        return [_key_of(each)["subpath"] async for each in self._list(_prefix_of_subkeys(key))]

    async def delete(self, key: Key) -> None:
        """Delete a transcript, with those of its subagents; it can be restored for 7 days, and made again at once."""
        await completed(self._delete(key))

    async def close(self) -> None:
        """Close the connections to a daemon; a store that was given stays open."""
        await self._source.close()

    async def _append(self, key: Key, entries: Sequence[TranscriptEntry], messages: Sequence[NewMessage]) -> None:
        conversations, name = await self._conversations(), _name_of(key)
        lock = self._locks.setdefault((id(asyncio.get_running_loop()), name), asyncio.Lock())
        async with lock:
            at = 0
            for block in blocks_of(messages):
                request = AppendRequest(
                    self._owner, block, name, create=True, tool=TOOL, metadata={KEY: dump_item(dict(key))}
                )
                if key.get("subpath"):
                    await conversations.append(request)
                else:
                    await self._fold(conversations, request, key, entries[at : at + len(block)])
                at += len(block)

    async def _fold(
        self, conversations: Conversations, request: AppendRequest, key: Key, entries: Sequence[TranscriptEntry]
    ) -> None:
        """Store messages together with the summary that includes them."""
        name = _name_of(key)
        for attempt in range(1, MAX_ATTEMPTS + 1):
            header = await read_header(conversations, self._owner, name)
            summary = fold_session_summary(_summary_of(header) if header else None, dict(key), list(entries))
            revision = header.revision if header else 0
            patch = MetadataPatch({SUMMARY: dump_item(summary["data"])})
            try:
                await conversations.append(replace(request, patch=patch, expected_revision=revision))
            except Conflict as conflict:
                if conflict.reason != "revision" or attempt == MAX_ATTEMPTS:
                    raise
                await asyncio.sleep(PAUSE_S * random.random())  # noqa: S311
            else:
                return

    async def _delete(self, key: Key) -> None:
        conversations = await self._conversations()
        names = [_name_of(key)]
        if not key.get("subpath"):
            # First those that cannot be found any more if this is interrupted.
            names[:0] = [each.continuation_id async for each in self._list(_prefix_of_subkeys(key))]
        for name in names:
            try:
                await conversations.delete(self._owner, name)
            except NotFound:
                continue

    async def _list(self, prefix: str) -> AsyncIterator[Conversation]:
        async for each in list_all(await self._conversations(), self._owner, prefix):
            if KEY in each.metadata:
                yield each

    async def _conversations(self) -> Conversations:
        return (await self._source.open()).conversations


def message_of(entry: TranscriptEntry) -> NewMessage:
    """Return an entry as a message."""
    role, kind, text = entry_text(entry)
    uuid, item = entry.get("uuid"), dump_item(entry)
    key = storable_id(uuid) if isinstance(uuid, str) and uuid else None
    return NewMessage(role, shown(text), kind, key=key, created_at=moment_of(entry.get("timestamp")), item=item)


def _name_of(key: Key) -> ContinuationId:
    subpath = key.get("subpath")
    ids = key["project_key"], key["session_id"]
    return conversation_name(SUBAGENTS, *ids, subpath) if subpath else conversation_name(MAIN, *ids)


def _prefix_of_subkeys(key: Key) -> str:
    return name_prefix(SUBAGENTS, key["project_key"], key["session_id"])


def _key_of(conversation: Conversation) -> Key:
    key: Key = load_item(conversation.metadata[KEY])
    return key


def _changed_ms(conversation: Conversation) -> int:
    return int(conversation.updated_at.timestamp() * 1000)


def _summary_of(conversation: Conversation) -> Any | None:
    if SUMMARY not in conversation.metadata:
        return None
    data, session_id = load_item(conversation.metadata[SUMMARY]), _key_of(conversation)["session_id"]
    return {"session_id": session_id, "mtime": _changed_ms(conversation), "data": data}
