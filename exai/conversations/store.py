"""Stored conversations, for the MCP tools, the command line and programs that import EXAI.

Invariant: every method takes an owner, accesses only that owner's rows, and costs at most the round trips that its
docstring states.
"""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final, get_args

from exai.cache.conversations import ConversationCache
from exai.cache.records import Loaded
from exai.conversations.appends import Appends
from exai.conversations.deduplication import once
from exai.conversations.indexing import Indexing
from exai.conversations.large import LargeContent
from exai.conversations.paging import newest_of, page_of, with_pending
from exai.conversations.publishing import Publisher
from exai.conversations.refusals import refusal
from exai.conversations.requests import Appended, AppendRequest, Rewound
from exai.db.conversations import ConversationPage, ConversationRepository, ListOrder
from exai.db.filters import ALL, ListFilter
from exai.db.lifecycle import Changed, ConversationUpdate, CurationRepository
from exai.db.records import FoundMessage
from exai.db.search import SearchPage, SearchQuery, SearchRepository
from exai.errors import DatabaseUnavailable, InvalidArgument
from exai.models import (
    MAX_PAGE_MESSAGES,
    PAGE_BYTES,
    PAGE_MESSAGES,
    ContinuationId,
    Conversation,
    ConversationId,
    ConversationKey,
    Owner,
    Page,
    Recorder,
)
from exai.settings.load import LimitSettings
from exai.validation import (
    MAX_CONTINUATION_CHARS,
    MAX_KEY_CHARS,
    MAX_TITLE_CHARS,
    check_change,
    check_choice,
    check_conversation,
    check_flag,
    check_keys,
    check_number,
    check_optional_name,
    check_optional_number,
    check_owner,
    check_page,
)

WHOLE_BYTES: Final = 16 * 1_048_576
"""Of the stored messages of a page whose large content is put back; no message is larger."""


@dataclass(frozen=True, slots=True)
class Repositories:
    """The repositories behind the store, on one pool."""

    conversations: ConversationRepository
    search: SearchRepository
    curation: CurationRepository


class ConversationStore:
    """Appends, reads, lists, searches, forks, changes, deletes and restores conversations.

    Built by `exai.app.open_app`; safe for any number of tasks of one event loop.
    """

    def __init__(
        self,
        repositories: Repositories,
        cache: ConversationCache,
        publisher: Publisher,
        indexing: Indexing,
        large: LargeContent,
        *,
        limits: LimitSettings,
        recorder: Recorder,
    ) -> None:
        self._repository, self._search = repositories.conversations, repositories.search
        self._curation = repositories.curation
        self._cache, self._publisher, self._indexing, self._large = cache, publisher, indexing, large
        self._limits, self._recorder = limits, recorder
        self._appends = Appends(self._repository, publisher, large, limits)
        recorder.count("stale_reads_total", 0)

    async def append(self, request: AppendRequest) -> Appended:
        """Store messages as one block, numbered without holes: 1 database round trip for any number of them.

        With `create` the conversation is made under its name if there is none. A message whose key the conversation has
        is skipped. A repeated `idempotency_key` with the same content answers as the first time, with `duplicate` set.
        Raises `InvalidArgument`, `NotFound`, `Conflict` or a `DatabaseError`.
        """
        return await self._appends.append(request)

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
        """Read the newest `limit` messages, or the newest before `before_seq`, oldest first.

        Fewer messages are returned if they exceed the bytes of a page or `budget_bytes`. A single message that exceeds
        the budget is returned in part, as is any message with `char_offset`. `offset` skips that many of the newest
        messages, for clients that count pages; unlike an offset, a cursor neither repeats nor misses messages that are
        appended meanwhile. With `whole` large content is put back, which costs further round trips and needs a
        `char_offset` of 0; otherwise references stand in its place. The newest page, and a conversation that is no
        longer, costs no database round trip if it is cached and had no running turn when it was cached, any other
        page 1. Raises `NotFound`, `InvalidArgument` or a `DatabaseError`.
        """
        check_conversation(owner, continuation_id)
        check_number("limit", limit, 1, MAX_PAGE_MESSAGES)
        check_optional_number("before_seq", before_seq, least=1)
        check_number("offset", offset)
        check_number("char_offset", char_offset)
        check_number("budget_bytes", budget_bytes, least=1)
        if offset and before_seq is not None:
            raise InvalidArgument("offset", "comes with before_seq", "Use one of the two")
        if whole:
            check_number("char_offset", char_offset, most=0)
            page = await self.read(
                owner, continuation_id, limit=limit, before_seq=before_seq, offset=offset, budget_bytes=WHOLE_BYTES
            )
            messages = await self._large.whole(owner, page.messages, WHOLE_BYTES)
            is_cut = len(messages) < len(page.messages)
            return replace(page, messages=messages, next_before_seq=messages[0].seq if is_cut else page.next_before_seq)
        if before_seq is None and not offset and not char_offset:
            newest = await self._newest(owner, continuation_id, limit, budget_bytes)
            if newest is not None and (newest.part is None or budget_bytes <= PAGE_BYTES):
                return newest
        stored = await self._repository.read_page(
            ConversationKey(owner, continuation_id),
            limit=limit,
            before_seq=before_seq,
            skip=offset,
            budget_bytes=budget_bytes,
            char_offset=char_offset,
        )
        page = page_of(stored.conversation, stored.messages, "database", has_older=stored.has_older)
        return replace(page, part=stored.part)

    async def _newest(self, owner: Owner, continuation_id: ContinuationId, limit: int, budget: int) -> Page | None:
        """Answer from the cached page, None if it is shorter. A miss loads all of it if the caller wants less."""
        key, is_short = ConversationKey(owner, continuation_id), limit <= PAGE_MESSAGES
        is_own = False

        async def load() -> Loaded:
            nonlocal is_own
            is_own = True
            read = self._repository.read_page
            stored = await (read(key) if is_short else read(key, limit=limit, budget_bytes=budget))
            complete = not stored.has_older
            return Loaded(stored.conversation, stored.messages, complete, stored.server_epoch, stored.page, stored.part)

        try:
            found, source = await self._cache.read_through(key, load, is_long=not is_short)
        except DatabaseUnavailable:
            stale = await self._cache.read_uncovered(key) if is_short else None
            if stale is None:
                raise
            self._recorder.count("stale_reads_total")
            return newest_of(stale, limit, "cache", stale_s=stale.age_s)
        if not (is_short or found.complete or is_own):
            return None
        page = newest_of(found, limit, source)
        if page.conversation.pending and source == "cache":
            current = await with_pending(self._repository, page)
            found = found if current else await load()
            page = current or newest_of(found, limit, "database")
        return replace(page, part=found.part) if isinstance(found, Loaded) and found.part else page

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
        """List conversations, by default latest change first: 1 database round trip per page, with any filter.

        A cursor belongs to the order and the filters of its page. An order other than the default cannot be combined
        with `tool`, `model` or `has_messages`. Raises `InvalidArgument` or a `DatabaseError`.
        """
        check_owner(owner)
        check_page(limit, cursor)
        check_choice("order", order, get_args(ListOrder))
        check_flag("ascending", ascending)
        only.validate(self._limits)
        if (only.turns is not None or only.has_messages) and (ascending or order != "updated"):
            raise InvalidArgument("order", "comes with tool, model or has_messages", "Use one of them")
        return await self._repository.list_conversations(
            owner, limit=limit, cursor=cursor, only=only, order=order, ascending=ascending
        )

    async def search(self, query: SearchQuery, *, limit: int = PAGE_MESSAGES, cursor: str | None = None) -> SearchPage:
        """Find messages by their words, best match first: 1 database round trip a page.

        Messages acknowledged before are found whether or not their words are indexed.

        Raises `InvalidArgument`, or `DatabaseBusy` if the statement timed out, which very common words can cause.
        """
        query.validate(self._limits)
        check_page(limit, cursor)
        self._indexing.request()
        page = await self._search.search(query, limit=limit, cursor=cursor)
        self._recorder.observe("search_scan_rows", page.rows_read)
        return page

    async def find(
        self,
        owner: Owner,
        keys: Sequence[str],
        *,
        continuation_id: ContinuationId | None = None,
        whole: bool = False,
    ) -> tuple[FoundMessage, ...]:
        """Find messages by their keys, in the order of the keys: 1 database round trip.

        In one conversation, or in all that are not deleted: of a key in several of them, the latest changed first, at
        most 1,000 together. With `whole` large content is put back, which costs further round trips. Raises
        `NotFound`, `InvalidArgument`, also if the messages are too large together, or a `DatabaseError`.
        """
        check_owner(owner)
        check_optional_name("continuation_id", continuation_id, MAX_CONTINUATION_CHARS)
        check_keys(keys)
        found = await self._repository.find(owner, keys, continuation_id, budget_bytes=WHOLE_BYTES)
        messages = await self._large.whole(owner, [each.message for each in found]) if whole else None
        if messages is None:
            return found
        return tuple(each._replace(message=message) for each, message in zip(found, messages, strict=True))

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
        """Make a conversation that begins as this one was after message `at_seq`: 1 database round trip.

        The messages up to there are shared, not copied. A repeated `idempotency_key` gives the same fork again, and so
        does a `name` that belongs to the same fork already. Raises `NotFound`, `Conflict` or `InvalidArgument`.
        """
        check_conversation(owner, continuation_id)
        check_optional_name("name", name, MAX_CONTINUATION_CHARS)
        check_optional_name("idempotency_key", idempotency_key, MAX_KEY_CHARS)
        check_optional_name("title", title, MAX_TITLE_CHARS)
        check_optional_number("at_seq", at_seq, least=1)
        forked = await self._curation.fork(
            ConversationKey(owner, continuation_id),
            once(idempotency_key, "conversation_fork", continuation_id, at_seq, title, *([name] if name else [])),
            new_conversation_id=ConversationId(str(uuid.uuid4())),
            at_seq=at_seq,
            title=title,
            name=name,
        )
        if forked.status == "out_of_range":
            raise InvalidArgument("at_seq", f"is {at_seq}", f"Use 1 to {forked.last_seq}")
        if forked.status == "too_deep":
            raise InvalidArgument("continuation_id", "is a fork of too many forks", "Export it and import it anew")
        if forked.commit is None:
            raise refusal(forked.status, name if forked.status == "exists" else continuation_id, 0, None)
        if name is None:
            self._publisher.announce(forked.commit)
        else:
            await self._publisher.publish(forked.commit)
        return forked.commit.conversation

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
        """Make a conversation what it was after message `to_seq`, or without its `drop` newest ones: 1 round trip.

        The cut messages are returned, and those of concurrent calls with `drop` differ. They move to a deleted
        conversation, which `restore` brings back until it is purged; consecutive rewinds share one. A repeated
        `idempotency_key` cuts nothing more. Raises `NotFound`, `Conflict` or `InvalidArgument`.
        """
        check_change(owner, continuation_id, expected_revision, idempotency_key)
        check_optional_number("to_seq", to_seq)
        check_optional_number("drop", drop, least=1)
        if (to_seq is None) == (drop is None):
            raise InvalidArgument("to_seq", "and drop are both given or both left out", "Give one of the two")
        rewound = await self._curation.rewind(
            ConversationKey(owner, continuation_id),
            once(idempotency_key, "conversation_rewind", continuation_id, to_seq, drop),
            cut_id=ConversationId(str(uuid.uuid4())),
            to_seq=to_seq,
            drop=drop,
            expected_revision=expected_revision,
        )
        if rewound.status == "out_of_range":
            raise InvalidArgument("to_seq", f"is {to_seq}", f"Use 0 to {rewound.last_seq}")
        if rewound.status == "too_deep":
            raise InvalidArgument("continuation_id", "has forks of too many forks", "Export it and import it anew")
        if rewound.commit is None:
            raise refusal(rewound.status, continuation_id, rewound.current_revision, None)
        await self._publisher.publish(rewound.commit)
        cut = await self._large.whole(owner, rewound.cut)
        is_repeated = rewound.status == "duplicate"
        return Rewound(rewound.commit.conversation, cut, rewound.cut_count, rewound.cut_id, is_repeated)

    async def change(
        self,
        owner: Owner,
        continuation_id: ContinuationId,
        change: ConversationUpdate,
        *,
        expected_revision: int | None = None,
        idempotency_key: str | None = None,
    ) -> Conversation:
        """Change title, metadata, tags or the time of its deletion: 1 database round trip.

        A repeated `idempotency_key` changes nothing and returns the first result, also after later changes.
        Raises `NotFound`, `Conflict` or `InvalidArgument`.
        """
        check_change(owner, continuation_id, expected_revision, idempotency_key)
        metadata = change.validate(self._limits)
        identity = (
            change.title,
            change.tags,
            metadata,
            *([change.expires_at] if change.expires_at is not None else []),
        )
        request = once(idempotency_key, "conversation_update", continuation_id, *identity)
        changed = await self._curation.change(
            ConversationKey(owner, continuation_id), request, change, expected_revision=expected_revision
        )
        return await self._publish_change(continuation_id, changed)

    async def delete(
        self,
        owner: Owner,
        continuation_id: ContinuationId,
        *,
        expected_revision: int | None = None,
        idempotency_key: str | None = None,
    ) -> Conversation:
        """Mark as deleted, which hides the conversation until `restore` or the purge. Raises as `change`."""
        return await self._mark(owner, continuation_id, True, expected_revision, idempotency_key)

    async def restore(
        self,
        owner: Owner,
        continuation_id: ContinuationId,
        *,
        expected_revision: int | None = None,
        idempotency_key: str | None = None,
    ) -> Conversation:
        """Bring a deleted conversation back, as long as it has not been purged. Raises as `change`."""
        return await self._mark(owner, continuation_id, False, expected_revision, idempotency_key)

    async def _mark(
        self, owner: Owner, continuation_id: ContinuationId, deleted: bool, expected: int | None, key: str | None
    ) -> Conversation:
        check_change(owner, continuation_id, expected, key)
        request = once(key, "conversation_delete", continuation_id, deleted)
        marked = await self._curation.mark_deleted(
            ConversationKey(owner, continuation_id), request, deleted=deleted, expected_revision=expected
        )
        return await self._publish_change(continuation_id, marked)

    async def _publish_change(self, continuation_id: ContinuationId, changed: Changed) -> Conversation:
        """Publish a change other than an append, or raise the reason why it was not made.

        Published even if nothing changed: a first attempt whose reply was lost may have made the change.
        """
        if changed.commit is None:
            raise refusal(changed.status, continuation_id, changed.current_revision, changed.present_name)
        await self._publisher.publish(changed.commit)
        return changed.commit.conversation
