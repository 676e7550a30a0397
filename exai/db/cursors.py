"""Cursors of lists and searches: positions as opaque text for clients.

Invariant: a text that is not a cursor of its list is an `InvalidArgument`, never an error of the database.
"""

from __future__ import annotations

import base64
import binascii
from dataclasses import dataclass
from datetime import UTC, datetime
from math import isfinite
from typing import Final
from uuid import UUID

from exai.errors import InvalidArgument
from exai.validation import MAX_NUMBER, check_time

CURE: Final = "Use next_cursor of the page before"
MAX_LEVEL: Final = 1_000
"""Terms of a search; a query has at most as many characters."""


@dataclass(frozen=True, slots=True)
class Cursor:
    """The position after a row of a list whose order is by a time, latest first, then by id.

    `order` names another order, whose cursors are not those of this one.
    """

    updated_at: datetime
    id: str
    order: str = ""


FIRST_PAGE: Final = Cursor(datetime.max.replace(tzinfo=UTC), "ffffffff-ffff-ffff-ffff-ffffffffffff")
"""Before every row that a list, latest first, can have."""

FIRST_ASCENDING: Final = Cursor(datetime.min.replace(tzinfo=UTC), "00000000-0000-0000-0000-000000000000")
"""Before every row that a list, oldest first, can have."""


@dataclass(frozen=True, slots=True)
class SearchPlace:
    """The position after a hit, encoded in a cursor.

    All pages of one search rank the same matches, those stored at `as_of` by the server's clock. `level` is the number
    of terms in each of them.
    """

    as_of: datetime | None = None
    level: int | None = None
    rank: str | None = None
    conversation_id: str | None = None
    seq: int | None = None


def write_cursor(cursor: Cursor) -> str:
    """Return the text of a position in a list."""
    return _encode(f"{cursor.updated_at.isoformat()} {cursor.id} {cursor.order}".rstrip())


def read_cursor(text: str, order: str = "") -> Cursor:
    """Return the position in a list in this order; the inverse of `write_cursor`. Raises `InvalidArgument`."""
    try:
        at, last_id, *rest = _decode(text).split(" ")
        cursor = Cursor(datetime.fromisoformat(at), str(UUID(last_id)), order)
        if rest != ([order] if order else []):
            raise ValueError(text)
        check_time("cursor", cursor.updated_at)
    except (ValueError, binascii.Error):
        raise InvalidArgument("cursor", "is not one this list gave", CURE) from None
    return cursor


def write_search_cursor(place: SearchPlace) -> str:
    """Return the text of a position among the hits of a search."""
    at = place.as_of
    return _encode(f"{at and at.isoformat()} {place.level} {place.rank} {place.conversation_id} {place.seq}")


def read_search_cursor(text: str) -> SearchPlace:
    """Return the position; the inverse of `write_search_cursor`. Raises `InvalidArgument`."""
    try:
        as_of, level, rank, conversation_id, seq = _decode(text).split(" ")
        at, terms, score, number = datetime.fromisoformat(as_of), int(level), float(rank), int(seq)
        check_time("cursor", at)
        if not isfinite(score) or not 0 <= number <= MAX_NUMBER or not 1 <= terms <= MAX_LEVEL:
            raise ValueError(text)
        return SearchPlace(at, terms, f"{score:.6f}", str(UUID(conversation_id)), number)
    except (ValueError, binascii.Error):
        raise InvalidArgument("cursor", "is not one this search gave", CURE) from None


def _encode(text: str) -> str:
    return base64.urlsafe_b64encode(text.encode()).decode()


def _decode(text: str) -> str:
    return base64.urlsafe_b64decode(text.encode()).decode()
