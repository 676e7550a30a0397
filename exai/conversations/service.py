"""The public face of conversations: what the tools, the command line and programs that import EXAI call.

Every method takes its owner, sees nothing of other owners, and costs at most the round trips its docstring states.
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from exai.cache.conversations import ConversationCache, Hit, Loaded
from exai.config import LimitSettings
from exai.conversations.attachments import Attachments
from exai.conversations.requests import (
    AppendRequest,
    ChatRequest,
    ChatResult,
    ConversationPage,
    chat_messages,
    check_files,
    check_messages,
    check_names,
    content_hash,
    refusal,
    request_key,
    with_files,
)
from exai.conversations.turn import ChatTurns
from exai.db.conversations import AppendStart, ConversationRepository
from exai.errors import DatabaseUnavailable, InvalidArgument
from exai.models import (
    MAX_PAGE_MESSAGES,
    PAGE_MESSAGES,
    Appended,
    ContinuationId,
    Conversation,
    ConversationId,
    Message,
    OnDelta,
    Owner,
    Page,
    Recorder,
    Source,
    TurnId,
)
from exai.providers.registry import Providers

MAX_LIST = 200


class ConversationService:
    """Chat turns, appends, reads and lists.

    Built by `exai.app.open_app`; safe for any number of tasks of one event loop.
    """

    def __init__(
        self,
        repository: ConversationRepository,
        cache: ConversationCache,
        providers: Providers,
        attachments: Attachments,
        *,
        limits: LimitSettings,
        recorder: Recorder,
    ) -> None:
        self._repository, self._cache, self._limits = repository, cache, limits
        self._turns = ChatTurns(repository, cache, providers, attachments)
        self._recorder = recorder

    async def chat(self, request: ChatRequest, on_delta: OnDelta | None = None) -> ChatResult:
        """Ask a model and store question and answer: 2 database round trips, whatever the length.

        Afterwards the answer is committed. When the model fails, the question stays, the failure is recorded with the
        turn, and the conversation can go on; the same `idempotency_key` then runs the same turn again. `on_delta`
        receives the answer as it streams.

        Raises `InvalidArgument`, `NotFound`, `Conflict`, `NotConfigured`, a `ProviderError`, a `DatabaseError` or
        `DeadlineExceeded`.
        """
        check_names(request.continuation_id, request.idempotency_key, request.title)
        if not request.prompt.strip():
            raise InvalidArgument("prompt", "is empty", "Say what the model is to answer")
        check_files(request.files, self._limits)
        check_messages(chat_messages(request), self._limits)
        return await self._turns.run(request, on_delta)

    async def append(self, request: AppendRequest) -> Appended:
        """Store messages as one block, numbered without holes: 1 database round trip for any number of them.

        A repeated `idempotency_key` with the same content answers as the first time, with `duplicate` set.
        Raises `InvalidArgument`, `NotFound`, `Conflict` or a `DatabaseError`.
        """
        check_names(request.continuation_id, request.idempotency_key, request.title)
        check_files(request.files, self._limits)
        check_messages(request.messages, self._limits)
        *earlier, last = request.messages
        messages = (*earlier, with_files(last, request.files))
        result = await self._repository.append(
            AppendStart(
                owner=request.owner,
                continuation_id=request.continuation_id,
                new_conversation_id=ConversationId(str(uuid.uuid4())),
                turn_id=TurnId(str(uuid.uuid4())),
                request_key=request_key(request.idempotency_key),
                request_hash=content_hash(
                    request.tool,
                    request.continuation_id,
                    request.title,
                    [(message.role, message.kind, message.content, dict(message.metadata)) for message in messages],
                ),
                tool=request.tool,
                title=request.title,
                messages=messages,
                file_ids=request.files,
                expected_revision=request.expected_revision,
            )
        )
        conversation = result.conversation
        if result.status not in ("appended", "duplicate") or conversation is None:
            raise refusal(result.status, request.continuation_id, result.revision, result.missing)
        await self._cache.apply(
            request.owner,
            conversation.continuation_id,
            base_revision=result.base_revision,
            revision=result.revision,
            inc=result.inc,
            delta=result.stored,
            conversation=conversation,
        )
        return Appended(
            continuation_id=conversation.continuation_id,
            first_seq=result.first_seq or 0,
            last_seq=result.last_seq or 0,
            revision=result.revision,
            duplicate=result.status == "duplicate",
        )

    async def read(
        self,
        owner: Owner,
        continuation_id: ContinuationId,
        *,
        limit: int = PAGE_MESSAGES,
        before_seq: int | None = None,
    ) -> Page:
        """Read the newest `limit` messages, or the newest before `before_seq`, oldest first.

        The newest page costs no database round trip when it is cached, any other page 1. Raises `NotFound`,
        `InvalidArgument` or a `DatabaseError`.
        """
        check_names(continuation_id, None, None)
        if not 1 <= limit <= MAX_PAGE_MESSAGES:
            raise InvalidArgument("limit", f"is {limit}", f"Use 1 to {MAX_PAGE_MESSAGES}")
        if before_seq is not None and before_seq < 1:
            raise InvalidArgument("before_seq", f"is {before_seq}", "Use the next_before_seq of an earlier page")
        if before_seq is None and limit <= PAGE_MESSAGES:
            return await self._newest(owner, continuation_id, limit)
        stored = await self._repository.read_page(owner, continuation_id, limit=limit, before_seq=before_seq)
        return page_of(stored.conversation, stored.messages, "database", has_older=stored.has_older)

    async def _newest(self, owner: Owner, continuation_id: ContinuationId, limit: int) -> Page:
        """Answer from the cached page, which is loaded whole whatever part of it was asked for."""

        async def load() -> Loaded:
            stored = await self._repository.read_page(owner, continuation_id, limit=PAGE_MESSAGES)
            return Loaded(stored.conversation, stored.messages, complete=not stored.has_older, inc=stored.inc)

        try:
            found, source = await self._cache.read_through(owner, continuation_id, load)
        except DatabaseUnavailable:
            stale = await self._cache.read_uncovered(owner, continuation_id)
            if stale is None:
                raise
            self._recorder.count("stale_reads_total")
            return newest_of(stale, limit, "cache", stale_s=stale.age_s)
        return newest_of(found, limit, source)

    async def list(self, owner: Owner, *, limit: int = PAGE_MESSAGES, cursor: str | None = None) -> ConversationPage:
        """List conversations by latest change first: 1 database round trip a page."""
        if not 1 <= limit <= MAX_LIST:
            raise InvalidArgument("limit", f"is {limit}", f"Use 1 to {MAX_LIST}")
        found = await self._repository.list_conversations(owner, limit=limit, cursor=cursor)
        return ConversationPage(found.conversations, found.next_cursor)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Keep turns' leases meanwhile; on leaving, every outcome in flight is written first."""
        leases = asyncio.create_task(self._turns.keep_leases(), name="turn-leases")
        try:
            yield
        finally:
            await self._turns.drain()
            leases.cancel()
            await asyncio.wait({leases})


def newest_of(found: Hit | Loaded, limit: int, source: Source, *, stale_s: float | None = None) -> Page:
    """Cut the newest `limit` messages out of the newest page."""
    has_older = not found.complete or len(found.messages) > limit
    return page_of(found.conversation, found.messages[-limit:], source, has_older=has_older, stale_s=stale_s)


def page_of(
    conversation: Conversation,
    messages: tuple[Message, ...],
    source: Source,
    *,
    has_older: bool,
    stale_s: float | None = None,
) -> Page:
    """Make a page of consecutive messages, with the cursor of the next older one."""
    next_before_seq = messages[0].seq if messages and has_older else None
    return Page(conversation, messages, next_before_seq, source, stale_s)
