"""Limits the size of answers, and divides longer ones so that the next call can continue.

Invariant: no state is kept between calls. An answer contains what the next call needs (a cursor, or the numbers of a
message and a character), a partial answer is marked as such, and every call returns at least one item or character.
Sizes are measured on the JSON of the answer in UTF-16 units, as clients measure them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeVar

import orjson

from exai.validation import check_offset

Item = TypeVar("Item")
Row = TypeVar("Row")

ANSWER_CHARS: Final = 38_000
"""Maximum size of an answer together with its frame: clients that show their model only the beginning and the end of
longer ones do so above 40,000 characters, 49,900 characters or 10,000 tokens."""

MAX_ANSWER_CHARS: Final = 400_000
"""Maximum size that a caller may request instead."""

MAX_ANSWER_BYTES: Final = 480_000
"""Maximum size of any answer, which is sent twice, as text and as structure, in a message of at most 1 MiB."""

LARGE_ANSWERS: Final[Mapping[str, Any]] = {"anthropic/maxResultSizeChars": 500_000}
"""The `_meta` of tools that accept a larger limit than `ANSWER_CHARS`: Claude Code then shows its model everything."""

ALWAYS_LOADED: Final[Mapping[str, Any]] = {"anthropic/alwaysLoad": True}
"""The `_meta` of tools whose schema Claude Code should load at its start instead of on demand."""


@dataclass(frozen=True, slots=True)
class Size:
    """The size of JSON in UTF-16 units and in UTF-8 bytes."""

    chars: int
    size_bytes: int

    def __add__(self, other: Size) -> Size:
        return Size(self.chars + other.chars, self.size_bytes + other.size_bytes)

    def __sub__(self, other: Size) -> Size:
        return Size(max(1, self.chars - other.chars), max(1, self.size_bytes - other.size_bytes))

    def excess(self, value: Size) -> float:
        """Return the ratio of `value` to this size; up to 1 it fits."""
        return max(value.chars / self.chars, value.size_bytes / self.size_bytes)


def size_limit(chars: int = ANSWER_CHARS) -> Size:
    """Return the maximum size of an answer of so many characters."""
    return Size(chars, MAX_ANSWER_BYTES)


def size_of(value: object) -> Size:
    """Return the size of a value as JSON; the value may hold dataclasses and pydantic models."""
    encoded = orjson.dumps(value, default=vars)
    return Size(len(encoded.decode().encode("utf-16-le")) // 2, len(encoded))


def surely_fits(value: object, limit: Size) -> bool:
    """Return whether a value certainly fits. Cheap, and true of nearly every answer: UTF-8 bytes >= UTF-16 units."""
    return len(orjson.dumps(value, default=vars)) <= min(limit.chars, limit.size_bytes)


def take_text(text: str, offset: int, limit: Size, field: str = "char_offset") -> tuple[str, int | None]:
    """Return the part of `text` from character `offset` on that fits, and the next offset, or None at the end.

    Raises `InvalidArgument` for the argument `field` if the offset exceeds the text.
    """
    check_offset(field, offset, len(text))
    take = min(len(text) - offset, limit.chars)
    while take > 1 and (excess := limit.excess(size_of(text[offset : offset + take]))) > 1:
        take = max(1, min(take - 1, int(take / excess)))
    end = offset + take
    return text[offset:end], end if end < len(text) else None


def take_rows(items: Sequence[Item], row: Callable[[Item], Row], limit: Size) -> list[Row]:
    """Return the rows of as many leading items as fit, and of at least one if there are any."""
    rows = [row(item) for item in items]
    if surely_fits(rows, limit):
        return rows
    taken: list[Row] = []
    used = Size(0, 0)
    for each in rows:
        used += size_of(each)
        if taken and limit.excess(used) > 1:
            break
        taken.append(each)
    return taken
