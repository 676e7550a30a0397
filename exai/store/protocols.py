"""The interface of a store of conversations: `App` has it in the process, `exai.client` over a running daemon.

The services of `exai.conversations`, `exai.files` and `exai.checkpoints` describe each method, its round trips and its
errors.

Invariant: every method is one request to a daemon (`exai.store.wire` derives the requests from these signatures), so
that parameters and results are values that JSON can hold.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from exai.conversations.requests import Appended, AppendRequest, ChatRequest, ChatResult, Rewound
from exai.conversations.turns.result import TurnOutcome
from exai.db.checkpoints.records import ChannelHistory, CheckpointPage, CheckpointRecord, TaskWrite, ThreadState
from exai.db.checkpoints.repository import MAX_CHECKPOINTS
from exai.db.conversations import ConversationPage, ListOrder
from exai.db.files import FileList
from exai.db.filters import ALL, ListFilter
from exai.db.lifecycle import ConversationUpdate
from exai.db.records import FoundMessage
from exai.db.search import SearchPage, SearchQuery
from exai.files.loading import FileContent
from exai.models import (
    PAGE_BYTES,
    PAGE_MESSAGES,
    ContinuationId,
    Conversation,
    FileId,
    OnDelta,
    Owner,
    Page,
    StoredFile,
)


class Conversations(Protocol):
    """Conversations and their messages; see `exai.conversations.store`."""

    async def append(self, request: AppendRequest) -> Appended:
        """Store messages as one block."""

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
        """Read a page of messages, oldest first."""

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

    async def search(self, query: SearchQuery, *, limit: int = PAGE_MESSAGES, cursor: str | None = None) -> SearchPage:
        """Find messages by their words."""

    async def find(
        self,
        owner: Owner,
        keys: Sequence[str],
        *,
        continuation_id: ContinuationId | None = None,
        whole: bool = False,
    ) -> tuple[FoundMessage, ...]:
        """Find messages by their keys."""

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
        """Cut the newest messages of a conversation off."""

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

    async def delete(
        self,
        owner: Owner,
        continuation_id: ContinuationId,
        *,
        expected_revision: int | None = None,
        idempotency_key: str | None = None,
    ) -> Conversation:
        """Mark a conversation as deleted."""

    async def restore(
        self,
        owner: Owner,
        continuation_id: ContinuationId,
        *,
        expected_revision: int | None = None,
        idempotency_key: str | None = None,
    ) -> Conversation:
        """Bring a deleted conversation back."""


class Files(Protocol):
    """Files and their links to conversations; see `exai.files.service`."""

    async def put(self, owner: Owner, contents: Sequence[FileContent]) -> tuple[StoredFile, ...]:
        """Store files; a content that is stored already is stored once."""

    async def get(self, owner: Owner, file_id: FileId) -> StoredFile:
        """Return a file without its bytes."""

    async def read(self, owner: Owner, file_id: FileId) -> tuple[StoredFile, bytes]:
        """Return a file and its bytes."""

    async def list(
        self,
        owner: Owner,
        *,
        continuation_id: ContinuationId | None = None,
        limit: int = PAGE_MESSAGES,
        cursor: str | None = None,
    ) -> FileList:
        """List files in pages, newest first."""

    async def link(self, owner: Owner, continuation_id: ContinuationId, file_ids: Sequence[FileId]) -> int:
        """Link files to a conversation, and return the number of new links."""

    async def delete(self, owner: Owner, file_id: FileId) -> None:
        """Delete a file and its links."""


class Chats(Protocol):
    """Turns of models; see `exai.conversations.chat`."""

    async def run(self, request: ChatRequest, on_delta: OnDelta | None = None) -> ChatResult:
        """Ask a model, and store question and answer."""

    async def result(self, owner: Owner, turn_id: str) -> TurnOutcome | None:
        """Return the state of a turn, and its result if it has ended."""

    async def cancel(self, owner: Owner, turn_id: str) -> bool:
        """Cancel a running turn."""


class Checkpoints(Protocol):
    """Checkpoints of agents; see `exai.checkpoints.service`."""

    async def put(self, owner: Owner, checkpoint: CheckpointRecord, *, ttl_s: float | None = None) -> ThreadState:
        """Store a checkpoint with the values of its channels' new versions."""

    async def put_writes(
        self,
        owner: Owner,
        thread_id: str,
        checkpoint_id: str,
        writes: Sequence[TaskWrite],
        *,
        namespace: str = "",
        replaces: bool = False,
        ttl_s: float | None = None,
    ) -> ThreadState | None:
        """Store what one task has written after a checkpoint."""

    async def get(
        self,
        owner: Owner,
        thread_id: str,
        *,
        namespace: str = "",
        checkpoint_id: str | None = None,
        extends: bool = False,
    ) -> CheckpointRecord | None:
        """Return a checkpoint, the newest without an id."""

    async def list(
        self,
        owner: Owner,
        *,
        thread_id: str | None = None,
        namespace: str | None = None,
        checkpoint_id: str | None = None,
        facts: Mapping[str, Any] | None = None,
        before: str | None = None,
        limit: int = MAX_CHECKPOINTS,
        cursor: str | None = None,
    ) -> CheckpointPage:
        """List checkpoints in pages, newest first."""

    async def ancestry(
        self, owner: Owner, thread_id: str, checkpoint_id: str, channels: Sequence[str], *, namespace: str = ""
    ) -> tuple[ChannelHistory, ...]:
        """Return what the ancestors of a checkpoint have written to channels, since the nearest value."""

    async def prune(
        self,
        owner: Owner,
        thread_ids: Sequence[str] = (),
        *,
        keeps_newest: bool = False,
        run_ids: Sequence[str] | None = None,
    ) -> int:
        """Remove checkpoints of threads or of runs."""

    async def copy(self, owner: Owner, source: str, target: str) -> ThreadState | None:
        """Copy all checkpoints of a thread into another one."""


class Store(Protocol):
    """A store of conversations and checkpoints."""

    @property
    def conversations(self) -> Conversations:
        """The conversations."""

    @property
    def files(self) -> Files:
        """The files."""

    @property
    def chat(self) -> Chats:
        """The models that can be asked."""

    @property
    def checkpoints(self) -> Checkpoints:
        """The checkpoints of agents."""
