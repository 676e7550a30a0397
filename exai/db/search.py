"""Full-text search over an owner's messages: one statement a page, best match first; and the index of their words.

The invariant is that a search finds what was acknowledged before it, indexed or not, or says how many messages it did
not look through: the index only makes it quick.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from math import isfinite
from typing import Any, Final, Literal
from uuid import UUID

from exai.db.excerpts import mark
from exai.db.filters import labels_of
from exai.db.pool import Database
from exai.db.rows import check_text, check_time
from exai.db.translate import DEPENDENCY
from exai.errors import DatabaseBusy, InvalidArgument
from exai.fairness import Places
from exai.models import ContinuationId, Owner, Role

RANKED: Final = 500
"""Matches that are ranked, the newest of them; a word that is everywhere would otherwise cost the whole table."""

PORTION: Final = 500
"""Messages that are indexed in one statement, at most; few enough that nobody notices."""

Matched = Literal["all", "some"]

MAX_QUERY_CHARS: Final = 1_000
MAX_SEQ: Final = 2**63 - 1


@dataclass(frozen=True, slots=True)
class SearchQuery:
    """Words as a person types them into a search box: quoted phrases, `or`, and `-` before what must not be there.

    A word is what `exai.units_v1` says, in every database: case and compatibility forms do not count, marks (accents)
    only if they are typed. Parts of identifiers, paths, addresses and hyphenated words are words, and the whole is
    found as its parts one after the other. In scripts without spaces any run of letters is found. `deploy*` finds what
    begins so.

    `tool` and `model` are of the turn that stored the message; `tags` (all of them) and `metadata` (what it holds) of
    the conversation. `since` is included, `until` is not.
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


@dataclass(frozen=True, slots=True)
class SearchHit:
    """One matching message; `snippet` shows the matching words between double asterisks.

    Where the words are in a conversation's title and not in its messages, `seq` is 0, `role` None and `kind` "title".
    `missing` are the terms that are not there, of a page that matched "some".
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
class SearchPlace:
    """All pages of one search rank the same matches: those that were there at `as_of`, by the server's clock.

    `level` is how many terms each of them has.
    """

    as_of: datetime | None = None
    level: int | None = None
    rank: str | None = None
    conversation_id: str | None = None
    seq: int | None = None


@dataclass(frozen=True, slots=True)
class SearchPage:
    """Hits, best first; `next_cursor` is None on the last page. `places` are where pages after each hit begin.

    `matched` is "some" when nothing has all the terms: the hits are then those with most of them. `unread` messages
    that wait to be indexed were not looked through, because that would have taken too long.
    """

    hits: tuple[SearchHit, ...]
    next_cursor: str | None
    places: tuple[SearchPlace, ...] = ()
    matched: Matched = "all"
    unread: int = 0

    def cursor_after(self, number: int) -> str | None:
        """Return the cursor of a page that holds only so many of these, one at least."""
        return self.next_cursor if number >= len(self.hits) else _write(self.places[number - 1])


@dataclass(frozen=True, slots=True)
class Indexed:
    """How many messages were indexed, and how many wait still, at least; none and some: another daemon is at it."""

    indexed: int
    left: int


class SearchRepository:
    """Searches, and the index behind them."""

    def __init__(self, database: Database) -> None:
        self._database = database
        # A search may run to its time limit, so searches never take the connections that appends and reads need.
        most = max(1, database.usage()[2] // 2)
        self._places = Places(most, reserve=most // 4)

    async def search(self, query: SearchQuery, *, limit: int, cursor: str | None = None) -> SearchPage:
        """The next `limit` hits.

        Raises:
            InvalidArgument: the words or the cursor cannot be used.
            DatabaseError: `DatabaseBusy` if the words are so common that finding them took too long, or if other
                searches held all the places for searches for as long as a statement may take.

        """
        _check(query)
        try:
            async with self._places.hold(query.owner, self._database.statement_timeout_s, "a place for a search"):
                return await self._page(query, limit, cursor)
        except TimeoutError as error:
            raise DatabaseBusy(DEPENDENCY, "too many searches at once", "Try again shortly") from error

    async def _page(self, query: SearchQuery, limit: int, cursor: str | None) -> SearchPage:
        after = _read(cursor) if cursor else SearchPlace()
        rows = await self._database.fetch(
            "search_messages", query.owner, query.text, query.continuation_id, query.role, query.since, query.until,
            query.tool, query.model, *labels_of(query.tags, query.metadata), after.level, after.rank,
            after.conversation_id, after.seq, after.as_of, RANKED, limit + 1,
        )  # fmt: skip
        unread = rows[0]["unread"] if rows else 0
        rows = [row for row in rows if row["conversation_id"] is not None]
        hits = tuple(
            SearchHit(
                continuation_id=ContinuationId(row["continuation_id"]),
                title=row["title"],
                seq=row["seq"],
                role=row["role"],
                kind=row["kind"],
                created_at=row["created_at"],
                tool=row["tool"],
                model=row["model"],
                snippet=mark(row["excerpt"], row["words"], cut_before=row["cut_before"], cut_after=row["cut_after"]),
                rank=float(row["rank"]),
                missing=tuple(row["missing"] or ()),
            )
            for row in rows[:limit]
        )
        places = tuple(
            SearchPlace(row["as_of"], row["level"], row["rank"], row["conversation_id"], row["seq"])
            for row in rows[:limit]
        )
        matched: Matched = "some" if any(hit.missing for hit in hits) else "all"
        return SearchPage(hits, _write(places[-1]) if len(rows) > limit else None, places, matched, unread)

    async def index(self, limit: int = PORTION) -> Indexed:
        """Index the words of at most `limit` of the messages that wait for it, unless another daemon does so now.

        Raises a `DatabaseError`; nothing is lost then, and `DatabaseBusy` asks for a smaller limit.
        """
        row = (await self._database.fetch("index_messages", limit))[0]
        return Indexed(row["indexed"], row["left_over"])

    def has_room(self) -> bool:
        """Whether a statement of ours would leave a connection for somebody else."""
        used, _, size = self._database.usage()
        return used < max(size - 1, 1)


def _check(query: SearchQuery) -> None:
    for name, value in (
        ("query", query.text),
        ("continuation_id", query.continuation_id),
        ("tool", query.tool),
        ("model", query.model),
    ):
        check_text(name, value)
    if len(query.text) > MAX_QUERY_CHARS:
        raise InvalidArgument("query", f"is {len(query.text)} characters long", f"Use at most {MAX_QUERY_CHARS}")
    check_time("since", query.since)
    check_time("until", query.until)


def _write(cursor: SearchPlace) -> str:
    as_of = cursor.as_of
    text = f"{as_of and as_of.isoformat()} {cursor.level} {cursor.rank} {cursor.conversation_id} {cursor.seq}"
    return base64.urlsafe_b64encode(text.encode()).decode()


def _read(text: str) -> SearchPlace:
    try:
        as_of, level, rank, conversation_id, seq = base64.urlsafe_b64decode(text.encode()).decode().split(" ")
        at, terms, score, number = datetime.fromisoformat(as_of), int(level), float(rank), int(seq)
        check_time("cursor", at)
        if not isfinite(score) or not 0 <= number <= MAX_SEQ or not 1 <= terms <= MAX_QUERY_CHARS:
            raise ValueError(text)
        return SearchPlace(at, terms, f"{score:.6f}", str(UUID(conversation_id)), number)
    except (ValueError, binascii.Error):
        raise InvalidArgument("cursor", "is not one this search gave", "Use next_cursor of the page before") from None
