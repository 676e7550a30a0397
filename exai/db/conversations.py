"""Read, append to and list conversations; each method is one statement and one round trip.

`Database.fetch` retries a statement as its `repeat` header in `sql/conversations.sql` permits.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from typing import Any, Final, Literal

import orjson

from exai.db.batching.appends import AppendBatcher
from exai.db.batching.page_reads import PageReadBatcher
from exai.db.concurrency import PoolShare
from exai.db.cursors import FIRST_ASCENDING, FIRST_PAGE, Cursor, read_cursor, write_cursor
from exai.db.driver.pool import Database, Record
from exai.db.filters import ALL, ListFilter
from exai.db.patches import MetadataPatch, WholePatch
from exai.db.records import (
    AppendResult,
    AppendStart,
    Changes,
    ConversationChange,
    FoundMessage,
    StoredPage,
)
from exai.db.rows import (
    Columns,
    RowsByPart,
    columns_of,
    commit_of,
    conversation_of,
    files_of,
    identity_of,
    json_of,
    keys_of,
    pending_of,
    stored_header,
    stored_of,
    stored_title,
    times_of,
)
from exai.encryption.codec import Unseen, home_of
from exai.encryption.envelope import MARK_BYTES
from exai.errors import InvalidArgument, NotFound
from exai.models import (
    PAGE_BYTES,
    PAGE_MESSAGES,
    Commit,
    ContentPart,
    ContinuationId,
    Conversation,
    ConversationId,
    ConversationKey,
    Message,
    NewMessage,
    Owner,
    PendingTurn,
    TurnId,
)
from exai.pages import JOINT, decode_page
from exai.threads import thread_key

ListOrder = Literal["updated", "created"]

NEWEST: Final = (None, 0, PAGE_MESSAGES, PAGE_BYTES, 0)
"""Arguments of the newest page: `before_seq`, messages to skip, maximum messages, maximum bytes, `char_offset`."""

CHAR_BYTES: Final = 4
"""Largest size of a character, by which a number of bytes is a number of characters in any text."""

MAX_OFFSET: Final = 2**31 - 2
"""No text has more characters."""

LIST_BYTES: Final = 1_048_576
"""Of the headers in one page of a list, more than any answer has."""

SEALED_ATTEMPTS: Final = 8
"""How often metadata are read and patched until no change by another process comes between."""

SEALING_LOCKS: Final = 64
"""Locks by which the patches of one conversation's encrypted metadata follow each other in this process."""

MAX_FOUND: Final = 1_000
"""Messages of one look-up by keys, of which some may be in several conversations."""

CHANGES_LIMIT: Final = 5_000
"""Maximum number of changes that one query returns; with more the result is truncated."""


@dataclass(frozen=True, slots=True)
class ConversationPage:
    """A page of conversations, in the order that was asked for; `next_cursor` is None on the last one."""

    conversations: tuple[Conversation, ...]
    next_cursor: str | None
    order: ListOrder = "updated"
    ascending: bool = False

    def cursor_after(self, number: int) -> str | None:
        """Return the cursor after the first `number` conversations (at least 1), for a page that is cut to them."""
        if number >= len(self.conversations):
            return self.next_cursor
        return cursor_of(self.conversations[number - 1], self.order, ascending=self.ascending)


class ConversationRepository:
    """Conversations and their messages, in Postgres. Methods with an owner access only that owner's rows."""

    def __init__(self, database: Database) -> None:
        self._database, self._codec = database, database.codec
        share = PoolShare(database.usage()[2], database.network)
        self._sealing = [asyncio.Lock() for _ in range(SEALING_LOCKS)]
        self._appends = AppendBatcher(database, share, self._append_one)
        self._page_reads = PageReadBatcher(database, share)

    async def pending(self, conversation_id: ConversationId) -> tuple[PendingTurn, ...]:
        """Return the running turns of a conversation, oldest first. Raises `DatabaseError`."""
        rows = await self._database.fetch("pending_turns", conversation_id)
        return pending_of(orjson.loads(rows[0]["pending"] or "null"))

    async def read_page(
        self,
        key: ConversationKey,
        *,
        limit: int = PAGE_MESSAGES,
        before_seq: int | None = None,
        skip: int = 0,
        budget_bytes: int = PAGE_BYTES,
        char_offset: int = 0,
    ) -> StoredPage:
        """Return the newest `limit` messages (before `before_seq`, without the `skip` newest), oldest first.

        The page is cut to the byte budget, but has at least one message if there is one. A single message that exceeds
        the budget is returned in part, as is any message with `char_offset`. The newest page may share a statement with
        concurrent reads.

        Raises:
            NotFound: no such conversation, or it is deleted.
            DatabaseError: as `Database.fetch`.

        """
        rows: Sequence[Record]
        if (before_seq, skip, limit, budget_bytes, char_offset) == NEWEST:
            rows = await self._page_reads.read(key)
        else:
            where = (before_seq, skip, limit, budget_bytes, min(char_offset, MAX_OFFSET))
            rows = await self._database.fetch("read_page", *key, *where)
        if not rows:
            raise NotFound("conversation", key.continuation_id, "conversation_list lists them")
        head = orjson.loads(rows[0]["head"])
        conversation = conversation_of(head["conversation"], self._codec)
        page: bytes = rows[0]["messages"] or JOINT.join([row["messages"] for row in rows[:0:-1]])
        stored = decode_page(page)
        messages = self._codec.opened(home_of(conversation), stored) if MARK_BYTES in page else stored
        # Numbers start at 1 and have no gaps, so older messages exist exactly if the lowest number is above 1.
        has_older = bool(messages) and messages[0].seq > 1
        last = rows[-1]["head"] if len(rows) > 1 else None
        part = ContentPart(char_offset, orjson.loads(last)["chars"]) if last else None
        if part is not None and messages[0] is not stored[0]:
            messages, part = _cut(messages[0], char_offset, budget_bytes)
        return StoredPage(conversation, messages, has_older, head["server_epoch"], page, part=part)

    async def append(self, start: AppendStart) -> AppendResult:
        """Store messages as one block, once per request key; see `AppendResult` for the outcomes.

        Concurrent small appends may share a statement, except those that count steps, store files, note sources, may
        make a named conversation, or have keys or times; an append that the batch cannot store costs a second one.

        Raises:
            DatabaseError: `OutcomeUnknown` asks for the same call again.
            DeadlineExceeded: the request's time was over before anything was written.

        """
        if self._codec.is_on and (start.patch is not None or start.also):
            return await self._append_sealed(start)
        is_plain = start.header is None and not any(each.key or each.created_at for each in start.messages)
        if start.counts_steps or files_of(start, self._codec) is not None or not is_plain:
            return await self._append_one(start, columns_of(start.messages, start.owner, self._codec))
        return await self._appends.append(start)

    async def _append_sealed(self, start: AppendStart) -> AppendResult:
        """Append with patches of metadata that the database cannot read: they are read first, and tried again.

        Costs a round trip more, and two more whenever another process has made a change between.
        """
        names = {start.continuation_id, *(each.continuation_id for each in start.also)}
        async with AsyncExitStack() as stack:
            # In order, so that no two calls wait for each other.
            for place in sorted({hash((start.owner, name)) % len(self._sealing) for name in names}):
                await stack.enter_async_context(self._sealing[place])
            for _ in range(SEALED_ATTEMPTS):
                sealed = await self._sealed(start)
                result = await self._append_one(sealed, columns_of(start.messages, start.owner, self._codec))
                if result.status != "moved":
                    return result
        return replace(result, status="conflict_revision")

    async def _sealed(self, start: AppendStart) -> AppendStart:
        """Return an append whose patches hold the whole metadata, as they are stored.

        Its limit is one for them. It is 0 if one is too large as given, so that only a repeated append is not refused.
        """
        owner = start.owner
        names = [each for each in (start.continuation_id, *(each.continuation_id for each in start.also)) if each]
        rows = await self._database.fetch("read_headers", owner, names)
        read = (conversation_of(orjson.loads(row["header"]), self._codec) for row in rows)
        found = {each.continuation_id: each for each in read}
        sizes: list[int] = []

        def whole(name: ContinuationId, patch: MetadataPatch, made: Mapping[str, Any]) -> WholePatch:
            known = found.get(name)
            metadata = made if known is None else known.metadata
            if isinstance(metadata, Unseen):
                raise metadata.why
            given = patch.applied(metadata)
            sizes.append(len(json_of(given).encode()))
            return WholePatch(self._codec.document(owner, name, given), base=known.revision if known else 0)

        also = [replace(each, patch=whole(each.continuation_id, each.patch, {})) for each in start.also]
        patch = start.patch
        if patch is not None and start.continuation_id is not None:
            patch = whole(start.continuation_id, patch, start.made.get("metadata") or {})
        fits = max(sizes, default=0) <= start.metadata_bytes
        most = self._codec.stored_bytes(start.metadata_bytes) if fits else 0
        return replace(start, also=also, patch=patch, metadata_bytes=most)

    async def _append_one(self, start: AppendStart, columns: Columns) -> AppendResult:
        keys = keys_of(start.messages) if start.messages or start.creates else None
        facts = (keys, times_of(start.messages), stored_header(start, self._codec))
        rest = (*columns, list(start.file_ids), start.expected_revision, start.counts_steps, *facts)
        given = (*identity_of(start, self._codec), stored_title(start, self._codec), *rest)
        if (files := files_of(start, self._codec)) is not None:
            rows = await self._database.fetch("append_with_files", *given, *files)
        else:
            rows = await self._database.fetch("append", *given)
        answer = RowsByPart(rows, self._codec)
        head, status = answer.head, answer.head["status"]
        seqs = tuple(head["seqs"]) if head.get("seqs") else None
        stored: tuple[Message, ...] | None = tuple(answer.part("stored"))
        if status == "appended" and not stored:
            stored = just_stored(start.messages, seqs, answer, start.turn_id)
        elif keys is not None:
            # The rows of a repeated append have no keys.
            stored = None
        is_stored, is_repeated = status in {"appended", "duplicate"}, status == "duplicate"
        # A repeated request made the conversation if that has the id of the request's turn.
        is_made = bool(head.get("made")) or (is_stored and head["conversation"]["id"] == head["turn_id"])
        return AppendResult(
            status=status,
            commit=commit_of(head, self._codec, stored, is_listed=is_made, is_repeated=is_repeated)
            if is_stored
            else None,
            first_seq=head["first_seq"],
            last_seq=head["last_seq"],
            current_revision=head["revision"] or 0,
            missing=head.get("detail"),
            step=answer.step,
            seqs=seqs,
            made=is_made,
            records=tuple(self._records(head)),
        )

    def _records(self, head: Mapping[str, Any]) -> Iterator[Commit]:
        """Yield the commits of other conversations whose metadata a statement patched."""
        for each in head.get("records") or ():
            if each is not None:
                commit = commit_of({**each, "server_epoch": head["server_epoch"]}, self._codec, is_listed=True)
                if commit is not None:
                    yield commit

    async def find(
        self, owner: Owner, keys: Sequence[str], name: ContinuationId | None, *, budget_bytes: int
    ) -> tuple[FoundMessage, ...]:
        """Return the messages with these keys, in one conversation or (name None) in all of the owner.

        Raises:
            NotFound: no such conversation, or it is deleted.
            InvalidArgument: the messages exceed the byte budget.
            DatabaseError: as `Database.fetch`.

        """
        given = list(dict.fromkeys(keys))
        rows = await self._database.fetch("find_messages", owner, name, given, MAX_FOUND, budget_bytes)
        if name is not None and not rows:
            raise NotFound("conversation", name, "conversation_list lists them")
        found = [row for row in rows if row["place"]]
        if any(row["line"] is None for row in found):
            raise InvalidArgument("keys", f"name messages of more than {budget_bytes:,} bytes", "Ask for fewer at once")
        named = [(conversation_of(orjson.loads(row["head"] or rows[0]["head"]), self._codec), row) for row in found]
        return tuple(
            FoundMessage(conversation.continuation_id, message)
            for conversation, row in named
            for message in self._codec.opened(home_of(conversation), decode_page(row["line"]))
        )

    async def list_conversations(
        self,
        owner: Owner,
        *,
        limit: int = PAGE_MESSAGES,
        cursor: str | None = None,
        only: ListFilter = ALL,
        order: ListOrder = "updated",
        ascending: bool = False,
    ) -> ConversationPage:
        """Return an owner's conversations in an order: at most `limit`, fewer if their headers are large.

        Raises:
            InvalidArgument: the cursor is not one of a list.

        """
        first = FIRST_ASCENDING if ascending else FIRST_PAGE
        after = read_cursor(cursor, order_name(order, ascending=ascending)) if cursor else first
        place = (owner, limit + 1, after.updated_at, after.id)
        name = "list_conversations" if only.turns is None else "list_conversations_by_turns"
        given = (*place, *only.arguments(self._codec), LIST_BYTES)
        if only.prefix or ascending or order != "updated":
            name, given = "list_conversations_in_order", (*given, *only.names, order, ascending)
        else:
            given = (*given, only.has_messages)
        rows = await self._database.fetch(name, *given)
        found = tuple(
            replace(
                conversation_of(orjson.loads(row["header"]), self._codec),
                deleted_at=row["deleted_at"],
                newest_kind=row["newest_kind"],
            )
            for row in rows[:limit]
            if row["header"] is not None
        )
        more = len(rows) > len(found)
        next_cursor = cursor_of(found[-1], order, ascending=ascending) if more else None
        return ConversationPage(found, next_cursor, order, ascending)

    async def changes(self, since_xmin: str | None) -> Changes:
        """Return the current snapshot, and what was changed by transactions not visible to `since_xmin`'s."""
        rows = await self._database.fetch("changes", since_xmin, CHANGES_LIMIT + 1)
        changed = tuple(
            ConversationChange(*_key_of(row), row["revision"], row["listed"], is_thread=row["thread_id"] is not None)
            for row in rows[1:]
        )
        truncated = len(changed) > CHANGES_LIMIT
        return Changes(rows[0]["xmin"], rows[0]["server_epoch"], changed[:CHANGES_LIMIT], truncated)


def _key_of(row: Record) -> ConversationKey:
    owner = Owner(row["owner"])
    if row["thread_id"] is not None:
        return thread_key(owner, row["thread_id"])
    return ConversationKey(owner, ContinuationId(row["continuation_id"]))


def _cut(message: Message, char_offset: int, budget_bytes: int) -> tuple[tuple[Message, ...], ContentPart | None]:
    """Return a message with the part of its content that the database returns of one that is not encrypted."""
    chars, most = len(message.content), budget_bytes // CHAR_BYTES
    if char_offset == 0 and chars <= most:
        return (message,), None
    part = message.content[char_offset : char_offset + most]
    return (message._replace(content=part),), ContentPart(char_offset, chars)


def order_name(order: ListOrder, *, ascending: bool) -> str:
    """Return the name of an order in cursors; latest change first has none."""
    return "" if order == "updated" and not ascending else f"{order}-{'asc' if ascending else 'desc'}"


def cursor_of(last: Conversation, order: ListOrder, *, ascending: bool) -> str:
    """Return the cursor after a conversation of a list."""
    at = last.created_at if order == "created" else last.updated_at
    return write_cursor(Cursor(at, last.id, order_name(order, ascending=ascending)))


def just_stored(
    messages: Sequence[NewMessage], seqs: Sequence[int] | None, answer: RowsByPart, turn_id: TurnId
) -> tuple[Message, ...]:
    """Return the messages that a statement stored as given; empty if it stored none. `seqs` None: it stored all."""
    first_seq = answer.head["first_seq"]
    if first_seq is None or answer.at is None:
        return ()
    new = messages
    if seqs is not None:
        new = [message for message, seq in zip(messages, seqs, strict=True) if seq >= first_seq]
    return stored_of(new, first_seq, answer.at, turn_id)
