"""Search an owner's messages, one statement per page, best match first, and maintain the index of their words.

Invariant: a search covers every message acknowledged before it, indexed or not, or reports how many messages it did not
cover. The index affects only the speed.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Final, Literal

from exai.db.cursors import SearchPlace, read_search_cursor, write_search_cursor
from exai.db.driver.pool import Database, Record
from exai.db.driver.translate import DEPENDENCY
from exai.db.excerpts import excerpt_of, mark
from exai.db.filters import labels_of
from exai.encryption.codec import PLAIN, Home, is_unreadable
from exai.encryption.envelope import ESCAPE, MARK
from exai.encryption.words import HashedQuery
from exai.errors import ContentUnreadable, DatabaseBusy, NotConfigured
from exai.fairness import Places
from exai.models import ContinuationId, Message, Owner, Role
from exai.settings.load import LimitSettings
from exai.validation import (
    MAX_CONTINUATION_CHARS,
    MAX_KIND_CHARS,
    MAX_MODEL_CHARS,
    ROLES,
    check_choice,
    check_json,
    check_name,
    check_not_blank,
    check_optional_name,
    check_owner,
    check_tags,
    check_time,
)

RANKED: Final = 500
"""Number of newest matches that are ranked. Without it a very common word would rank the owner's whole table."""

ENCRYPTED_BYTES: Final = 8 * 1_048_576
"""Maximum size of the encrypted messages that are read to be indexed by one statement."""

MOST_PORTIONS: Final = 20
OTHERS_S: Final = 0.05
"""Portions that a search waits to be indexed, and the pause while another daemon indexes."""

LONG: Final = "(a long encrypted message, read it for its text)"
NEVER: Final = datetime.fromtimestamp(0, UTC)

PORTION: Final = 500
"""Maximum number of messages indexed by one statement, small enough not to delay other statements noticeably."""

Matched = Literal["all", "some"]

MAX_QUERY_CHARS: Final = 1_000


@dataclass(frozen=True, slots=True)
class SearchQuery:
    """A web-style query: words, quoted phrases, `or`, and `-` before excluded terms.

    `exai.units_v1` defines words independent of the database's locale. Matching ignores case and compatibility forms,
    and ignores accents unless the query has them. Parts of identifiers, paths, addresses and hyphenated words are
    words; the whole matches as a phrase of its parts. In scripts without spaces any run of letters matches. `deploy*`
    matches by prefix.

    `tool` and `model` are those of the turn that stored the message. A conversation matches with all of `tags` and a
    `metadata` that contains the given one. `since` is inclusive, `until` exclusive.
    """

    owner: Owner
    text: str
    continuation_id: ContinuationId | None = None
    role: Role | None = None
    tool: str | None = None
    model: str | None = None
    since: datetime | None = None
    until: datetime | None = None
    tags: Sequence[str] = ()
    metadata: Mapping[str, Any] = field(default_factory=dict)

    def validate(self, limits: LimitSettings) -> None:
        """Raise `InvalidArgument` for a value that no search can have."""
        check_owner(self.owner)
        check_not_blank("query", self.text, "Give the words to search for")
        check_name("query", self.text, MAX_QUERY_CHARS)
        check_optional_name("continuation_id", self.continuation_id, MAX_CONTINUATION_CHARS)
        if self.role is not None:
            check_choice("role", self.role, ROLES)
        check_optional_name("tool", self.tool, MAX_KIND_CHARS)
        check_optional_name("model", self.model, MAX_MODEL_CHARS)
        check_time("since", self.since)
        check_time("until", self.until)
        check_tags(self.tags)
        check_json("metadata", self.metadata, limits.metadata_bytes)


@dataclass(frozen=True, slots=True)
class SearchHit:
    """One matching message; `snippet` shows the matching words between double asterisks.

    A match in a conversation's title has `seq` 0, `role` None and `kind` "title". On a page with `matched` "some",
    `missing` holds the terms that the message lacks.
    """

    continuation_id: ContinuationId
    title: str | None
    seq: int
    role: Role | None
    kind: str
    created_at: datetime
    tool: str | None
    model: str | None
    snippet: str
    rank: float
    missing: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class SearchPage:
    """Hits, best first; `next_cursor` is None on the last page. `places` holds the position after each hit.

    `matched` is "some" if no message has all terms; the hits are then the messages with most of them. `unread` is the
    number of messages not yet indexed that the search left out to stay within its bound of work, `rows_read` the number
    of rows that the server has read for it.
    """

    hits: tuple[SearchHit, ...]
    next_cursor: str | None
    places: tuple[SearchPlace, ...] = ()
    matched: Matched = "all"
    unread: int = 0
    rows_read: int = 0

    def cursor_after(self, number: int) -> str | None:
        """Return the cursor after the first `number` hits (at least 1), for a page that is cut to them."""
        return self.next_cursor if number >= len(self.hits) else write_search_cursor(self.places[number - 1])


@dataclass(frozen=True, slots=True)
class Indexed:
    """The number of messages indexed, and the number still queued.

    `left` is a lower bound. `indexed` 0 with `left` above 0 means that another daemon is indexing.
    """

    indexed: int
    left: int


class SearchRepository:
    """Searches, and the index behind them."""

    def __init__(self, database: Database) -> None:
        self._database, self._codec = database, database.codec
        # A search may run to its time limit, so searches never take the connections that appends and reads need.
        most = max(1, database.usage()[2] // 2)
        self._places = Places(most, reserve=most // 4)

    async def search(self, query: SearchQuery, *, limit: int, cursor: str | None = None) -> SearchPage:
        """Return the next `limit` hits; 1 round trip, and up to 3 more while encrypted messages wait to be indexed.

        Raises:
            InvalidArgument: the cursor is not one of a search.
            DatabaseError: `DatabaseBusy` if the statement timed out, which very common words can cause, or if no place
                for a search became free within the statement timeout.

        """
        try:
            async with self._places.hold(query.owner, self._database.statement_timeout_s, "a place for a search"):
                page = await self._page(query, limit, cursor)
                if page.unread and self._codec.is_on:
                    # The database cannot look through what is encrypted.
                    await self._index_all()
                    page = await self._page(query, limit, cursor)
                return page
        except TimeoutError as error:
            raise DatabaseBusy(DEPENDENCY, "too many searches at once", "Try again shortly") from error

    async def _page(self, query: SearchQuery, limit: int, cursor: str | None) -> SearchPage:
        after = read_search_cursor(cursor) if cursor else SearchPlace()
        hashed = self._hashed(query)
        rows = await self._database.fetch(
            "search_messages", query.owner, hashed.text if hashed else query.text,
            query.continuation_id, query.role, query.since, query.until,
            query.tool, query.model, *labels_of(query.tags, query.metadata), after.level, after.rank,
            after.conversation_id, after.seq, after.as_of, RANKED, limit + 1,
        )  # fmt: skip
        # The last row holds the sums; a query without a word, or of a missing conversation, has none.
        sums = rows.pop() if rows else {"unread": 0, "rows_read": 0}
        hits = tuple(
            SearchHit(
                continuation_id=ContinuationId(row["continuation_id"]),
                title=self._title(query.owner, row["title"]),
                seq=row["seq"],
                role=row["role"],
                kind=row["kind"],
                created_at=row["created_at"],
                tool=row["tool"],
                model=row["model"],
                snippet=self._snippet(query.owner, row, hashed),
                rank=float(row["rank"]),
                missing=tuple(hashed.labels.get(each, each) if hashed else each for each in row["missing"] or ()),
            )
            for row in rows[:limit]
        )
        places = tuple(
            SearchPlace(row["as_of"], row["level"], row["rank"], row["conversation_id"], row["seq"])
            for row in rows[:limit]
        )
        matched: Matched = "some" if any(hit.missing for hit in hits) else "all"
        cursor_after = write_search_cursor(places[-1]) if len(rows) > limit else None
        return SearchPage(hits, cursor_after, places, matched, sums["unread"], sums["rows_read"])

    async def index(self, limit: int = PORTION) -> Indexed:
        """Index the words of at most `limit` queued messages, unless another daemon is indexing; 1 round trip.

        Raises `DatabaseError`, after which the messages stay queued; on `DatabaseBusy` retry with a smaller limit.
        """
        codec = self._codec
        texts = await self._hashed_texts(limit) if codec.words is not None else []
        columns = [list(each) for each in zip(*texts, strict=True)] if texts else [[], [], []]
        is_without = codec is not PLAIN and codec.words is None
        row = (await self._database.fetch("index_messages", limit, *columns, is_without))[0]
        return Indexed(row["indexed"], row["left_over"])

    async def _hashed_texts(self, limit: int) -> list[tuple[str, int, str]]:
        """Return the words of waiting encrypted messages as hashes; one that cannot be read has none."""
        rows = await self._database.fetch("waiting_encrypted", limit, ENCRYPTED_BYTES)
        codec, texts = self._codec, []
        for row in rows:
            owner, seq = row["owner"], row["seq"]
            if seq:
                message = Message(seq, row["role"], row["content"], NEVER, row["kind"])
                [opened] = codec.opened(Home(owner, row["conversation_id"]), [message])
                text = "" if is_unreadable(opened) else opened.content
            else:
                text = self._title(owner, row["content"]) or ""
            texts.append((row["conversation_id"], seq, codec.words.text(owner, text) if codec.words else ""))
        return texts

    async def _index_all(self) -> None:
        """Index what waits, within limits."""
        for _ in range(MOST_PORTIONS):
            found = await self.index()
            if not found.left:
                return
            if not found.indexed:
                await asyncio.sleep(OTHERS_S)

    def _hashed(self, query: SearchQuery) -> HashedQuery | None:
        """Return the query as the database can answer it, None for the query as it is."""
        codec = self._codec
        codec.check_filter("metadata", is_given=bool(query.metadata))
        if not codec.is_on:
            return None
        if codec.words is None:
            raise NotConfigured("search", "Set EXAI_STORE__SEARCH=words, then run `exai rekey --index`")
        return codec.words.query(query.owner, query.text)

    def _title(self, owner: Owner, title: str | None) -> str | None:
        try:
            return self._codec.opened_title(owner, None, title)
        except ContentUnreadable as error:
            return f"[{error}]"

    def _snippet(self, owner: Owner, row: Record, hashed: HashedQuery | None) -> str:
        text, words = row["excerpt"], row["words"]
        if text is None:
            return LONG
        if not text.startswith(MARK):
            return mark(text.removeprefix(ESCAPE), words, cut_before=row["cut_before"], cut_after=row["cut_after"])
        if row["seq"]:
            message = Message(row["seq"], row["role"], text, NEVER, row["kind"])
            [opened] = self._codec.opened(Home(owner, row["conversation_id"], row["seq"]), [message])
            text = opened.content
        else:
            text = self._title(owner, text) or ""
        words = hashed.words if hashed else ()
        excerpt, cut_before, cut_after = excerpt_of(text, words)
        return mark(excerpt, words, cut_before=cut_before, cut_after=cut_after)

    def has_room(self) -> bool:
        """Return whether the pool keeps a free connection while one more statement runs."""
        used, _, size = self._database.usage()
        return used < max(size - 1, 1)
