"""The services of a store at a daemon, with the methods of those in the process.

Invariant: a write has a request key, that of its caller or one of its own, so that it can be repeated.
"""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from typing import Any, Final

from exai.client.connection import DaemonCall, StoreConnection
from exai.client.failures import DAEMON
from exai.conversations.requests import Appended, AppendRequest, ChatRequest, ChatResult, Rewound
from exai.conversations.turns.result import TurnOutcome
from exai.db.conversations import ConversationPage, ListOrder
from exai.db.files import FileList
from exai.db.filters import ALL, ListFilter
from exai.db.lifecycle import ConversationUpdate
from exai.db.records import FoundMessage
from exai.db.search import SearchPage, SearchQuery
from exai.errors import BlobError, InvalidArgument, NotFound
from exai.files.loading import FileContent
from exai.models import (
    PAGE_BYTES,
    PAGE_MESSAGES,
    ContinuationId,
    Conversation,
    Delta,
    FileId,
    OnDelta,
    Owner,
    Page,
    StoredFile,
)
from exai.settings.load import LimitSettings
from exai.validation import MAX_NUMBER, check_keys

RANGE_BYTES: Final = 4 * 1_048_576
OF_A_PROCESS: Final = frozenset({"guidance", "prepare", "taken", "sources", "reread", "named"})
"""Fields of a question that only a caller in the daemon's process can give."""

LIMITS: Final = LimitSettings(
    message_bytes=MAX_NUMBER,
    append_bytes=MAX_NUMBER,
    append_messages=MAX_NUMBER,
    append_files=MAX_NUMBER,
    metadata_bytes=MAX_NUMBER,
)
"""Sizes are limited by the daemon's settings. What JSON would change, such as NaN, is refused before it is sent."""


class ConversationsClient:
    """Conversations at a daemon; see `exai.store.protocols.Conversations`."""

    def __init__(self, connection: StoreConnection) -> None:
        self._connection = connection

    async def append(self, request: AppendRequest) -> Appended:
        """Store messages as one block, once even if the connection is lost and the request is repeated."""
        request.validate(LIMITS)
        key = request.idempotency_key or str(uuid.uuid4())
        sent = replace(request, idempotency_key=key)
        appended: Appended = await self._write("append", request.owner, key, {"request": sent})
        # A repetition of this call is no repetition by its caller.
        return replace(appended, duplicate=False) if request.idempotency_key is None else appended

    async def read(
        self,
        owner: Owner,
        continuation_id: ContinuationId,
        *,
        limit: int = PAGE_MESSAGES,
        before_seq: int | None = None,
        offset: int = 0,
        char_offset: int = 0,
        budget_bytes: int = PAGE_BYTES,
        whole: bool = False,
    ) -> Page:
        """Read a page of messages, oldest first; it may have fewer messages than in the process."""
        page: Page = await self._ask(
            "read",
            owner,
            continuation_id=continuation_id,
            limit=limit,
            before_seq=before_seq,
            offset=offset,
            char_offset=char_offset,
            budget_bytes=budget_bytes,
            whole=whole,
        )
        return page

    async def list(
        self,
        owner: Owner,
        *,
        limit: int = PAGE_MESSAGES,
        cursor: str | None = None,
        only: ListFilter = ALL,
        order: ListOrder = "updated",
        ascending: bool = False,
    ) -> ConversationPage:
        """List conversations in pages."""
        only.validate(LIMITS)
        page: ConversationPage = await self._ask(
            "list", owner, limit=limit, cursor=cursor, only=only, order=order, ascending=ascending
        )
        return page

    async def search(self, query: SearchQuery, *, limit: int = PAGE_MESSAGES, cursor: str | None = None) -> SearchPage:
        """Find messages by their words."""
        query.validate(LIMITS)
        page: SearchPage = await self._ask("search", query.owner, query=query, limit=limit, cursor=cursor, owned=False)
        return page

    async def find(
        self,
        owner: Owner,
        keys: Sequence[str],
        *,
        continuation_id: ContinuationId | None = None,
        whole: bool = False,
    ) -> tuple[FoundMessage, ...]:
        """Find messages by their keys."""
        check_keys(keys)
        found: tuple[FoundMessage, ...] = await self._ask(
            "find", owner, keys=list(keys), continuation_id=continuation_id, whole=whole
        )
        return found

    async def fork(
        self,
        owner: Owner,
        continuation_id: ContinuationId,
        *,
        at_seq: int | None = None,
        title: str | None = None,
        idempotency_key: str | None = None,
        name: ContinuationId | None = None,
    ) -> Conversation:
        """Make a conversation that begins as this one."""
        key = idempotency_key or str(uuid.uuid4())
        given = {"owner": owner, "continuation_id": continuation_id, "at_seq": at_seq, "title": title, "name": name}
        forked: Conversation = await self._write("fork", owner, key, {**given, "idempotency_key": key})
        return forked

    async def rewind(
        self,
        owner: Owner,
        continuation_id: ContinuationId,
        *,
        to_seq: int | None = None,
        drop: int | None = None,
        expected_revision: int | None = None,
        idempotency_key: str | None = None,
    ) -> Rewound:
        """Cut the newest messages of a conversation off, once even if the request is repeated."""
        key = idempotency_key or str(uuid.uuid4())
        given = {"owner": owner, "continuation_id": continuation_id, "to_seq": to_seq, "drop": drop}
        more = {"expected_revision": expected_revision, "idempotency_key": key}
        rewound: Rewound = await self._write("rewind", owner, key, {**given, **more})
        return replace(rewound, duplicate=False) if idempotency_key is None else rewound

    async def change(
        self,
        owner: Owner,
        continuation_id: ContinuationId,
        change: ConversationUpdate,
        *,
        expected_revision: int | None = None,
        idempotency_key: str | None = None,
    ) -> Conversation:
        """Change title, metadata, tags or the time of deletion."""
        change.validate(LIMITS)
        return await self._change("change", owner, continuation_id, expected_revision, idempotency_key, change=change)

    async def delete(
        self,
        owner: Owner,
        continuation_id: ContinuationId,
        *,
        expected_revision: int | None = None,
        idempotency_key: str | None = None,
    ) -> Conversation:
        """Mark a conversation as deleted."""
        return await self._change("delete", owner, continuation_id, expected_revision, idempotency_key)

    async def restore(
        self,
        owner: Owner,
        continuation_id: ContinuationId,
        *,
        expected_revision: int | None = None,
        idempotency_key: str | None = None,
    ) -> Conversation:
        """Bring a deleted conversation back."""
        return await self._change("restore", owner, continuation_id, expected_revision, idempotency_key)

    async def _change(
        self,
        method: str,
        owner: Owner,
        continuation_id: ContinuationId,
        expected_revision: int | None,
        idempotency_key: str | None,
        **more: Any,
    ) -> Conversation:
        key = idempotency_key or str(uuid.uuid4())
        given = {"owner": owner, "continuation_id": continuation_id, "expected_revision": expected_revision}
        changed: Conversation = await self._write(method, owner, key, {**given, **more, "idempotency_key": key})
        return changed

    async def _ask(self, method: str, owner: Owner, *, owned: bool = True, **parameters: Any) -> Any:
        given = {"owner": owner, **parameters} if owned else parameters
        return await self._connection.send(DaemonCall(f"conversations.{method}", owner, given))

    async def _write(self, method: str, owner: Owner, key: str, parameters: Mapping[str, Any]) -> Any:
        call = DaemonCall(f"conversations.{method}", owner, parameters, is_write=True, key=key)
        return await self._connection.send(call)


class FilesClient:
    """Files at a daemon; see `exai.store.protocols.Files`. A file that is stored has to fit into one request."""

    def __init__(self, connection: StoreConnection) -> None:
        self._connection = connection

    async def put(self, owner: Owner, contents: Sequence[FileContent]) -> tuple[StoredFile, ...]:
        """Store files; a content that is stored already is stored once."""
        files: tuple[StoredFile, ...] = await self._write("put", owner, contents=contents)
        return files

    async def get(self, owner: Owner, file_id: FileId) -> StoredFile:
        """Return a file without its bytes."""
        file: StoredFile = await self._ask("get", owner, file_id=file_id)
        return file

    async def read(self, owner: Owner, file_id: FileId) -> tuple[StoredFile, bytes]:
        """Return a file and its bytes, verified against their digest."""
        data = bytearray()
        while True:
            file, part = await self._ask("read_range", owner, file_id=file_id, offset=len(data), size_bytes=RANGE_BYTES)
            data += part
            if len(data) >= file.size_bytes or not part:
                break
        if hashlib.sha256(data).hexdigest() != file.sha256:
            raise BlobError(DAEMON, f"the bytes of file {file_id} do not have their digest", "Read the file again")
        return file, bytes(data)

    async def list(
        self,
        owner: Owner,
        *,
        continuation_id: ContinuationId | None = None,
        limit: int = PAGE_MESSAGES,
        cursor: str | None = None,
    ) -> FileList:
        """List files in pages, newest first."""
        files: FileList = await self._ask("list", owner, continuation_id=continuation_id, limit=limit, cursor=cursor)
        return files

    async def link(self, owner: Owner, continuation_id: ContinuationId, file_ids: Sequence[FileId]) -> int:
        """Link files to a conversation, and return the number of new links."""
        linked: int = await self._write("link", owner, continuation_id=continuation_id, file_ids=file_ids)
        return linked

    async def delete(self, owner: Owner, file_id: FileId) -> None:
        """Delete a file and its links."""
        call = DaemonCall("files.delete", owner, {"owner": owner, "file_id": file_id}, is_write=True)
        try:
            await self._connection.send(call)
        except NotFound:
            # An earlier attempt, whose answer was lost, may have deleted it.
            if not call.was_sent:
                raise

    async def _ask(self, method: str, owner: Owner, **parameters: Any) -> Any:
        return await self._connection.send(DaemonCall(f"files.{method}", owner, {"owner": owner, **parameters}))

    async def _write(self, method: str, owner: Owner, **parameters: Any) -> Any:
        given = {"owner": owner, **parameters}
        return await self._connection.send(DaemonCall(f"files.{method}", owner, given, is_write=True))


class ChatsClient:
    """Turns of models at a daemon; see `exai.store.protocols.Chats`. They end at the end of their connection."""

    def __init__(self, connection: StoreConnection, timeout_s: float) -> None:
        self._connection, self._timeout_s = connection, timeout_s

    async def run(self, request: ChatRequest, on_delta: OnDelta | None = None) -> ChatResult:
        """Ask a model, and store question and answer; a turn whose connection was lost is run again under its key."""
        key = request.idempotency_key or str(uuid.uuid4())
        sent = {each.name: getattr(request, each.name) for each in fields(request) if each.name not in OF_A_PROCESS}

        async def part(given: Mapping[str, Any]) -> None:
            if on_delta is not None:
                await on_delta(Delta(given.get("content", ""), given.get("reasoning", "")))

        call = DaemonCall("chat.run", request.owner, {"request": {**sent, "idempotency_key": key}}, is_write=True)
        call.key, call.timeout_s, call.on_part = key, self._timeout_s, part
        if any(getattr(request, name) for name in OF_A_PROCESS):
            raise InvalidArgument(", ".join(sorted(OF_A_PROCESS)), "cannot be sent to a daemon", "Leave them out")
        result: ChatResult = await self._connection.send(call)
        return replace(result, duplicate=False) if request.idempotency_key is None else result

    async def result(self, owner: Owner, turn_id: str) -> TurnOutcome | None:
        """Return the state of a turn, and its result if it has ended."""
        call = DaemonCall("chat.result", owner, {"owner": owner, "turn_id": turn_id})
        outcome: TurnOutcome | None = await self._connection.send(call)
        return outcome

    async def cancel(self, owner: Owner, turn_id: str) -> bool:
        """Cancel a running turn."""
        call = DaemonCall("chat.cancel", owner, {"owner": owner, "turn_id": turn_id}, is_write=True)
        is_known: bool = await self._connection.send(call)
        return is_known
