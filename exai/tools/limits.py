"""Limits the size of answers, and divides longer ones so that the next call can continue.

Invariant: no state is kept between calls. An answer contains what the next call needs (a cursor, or the numbers of a
message and a character), a partial answer is marked as such, and every call returns at least one item or character.
Sizes are measured on the JSON of the answer, in UTF-16 units and in tokens, as clients measure them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeVar

import orjson

from exai.mcp.core.protocol import ClientInfo
from exai.token_estimate import utf8_tokens
from exai.validation import check_offset

Item = TypeVar("Item")
Row = TypeVar("Row")

ANSWER_CHARS: Final = 38_000
"""Maximum size of an answer together with its frame: clients that show their model only the beginning and the end of
longer ones do so above 40,000 characters or 10,000 tokens."""

ANSWER_TOKENS: Final = 9_500
"""Maximum number of tokens of an answer. Hexadecimal digits and base64 reach it before the number of characters."""

CLIENT_ANSWERS: Final[Mapping[str, tuple[int, int]]] = {
    "claude-code": (47_900, 23_750),
    "exai-page": (400_000, 480_000),
}
"""Larger limits of clients, in characters and tokens, by the beginning of the client's name. Claude Code shows its
model 49,900 characters and 25,000 tokens. The page has no model."""

BYTES_PER_TOKEN: Final = 4
"""Bytes that Codex counts as one token of any text."""

MAX_TOKENS_PER_BYTE: Final = 0.9
"""More than the estimate of any text."""

MAX_ANSWER_CHARS: Final = 400_000
"""Maximum size that a caller may request instead."""

MAX_ANSWER_BYTES: Final = 480_000
"""Maximum size of any answer, which is sent twice, as text and as structure, in a message of at most 1 MiB."""

LARGE_ANSWERS: Final[Mapping[str, Any]] = {"anthropic/maxResultSizeChars": 500_000}
"""The `_meta` of tools that accept a larger limit than `ANSWER_CHARS`: Claude Code then shows its model everything."""

ALWAYS_LOADED: Final[Mapping[str, Any]] = {"anthropic/alwaysLoad": True}
"""The `_meta` of tools whose schema Claude Code should load at its start instead of on demand."""


NO_CLIENT: Final = ClientInfo()


@dataclass(frozen=True, slots=True)
class Size:
    """The size of JSON in UTF-16 units, in UTF-8 bytes and in tokens."""

    chars: int
    size_bytes: int
    tokens: int

    def __add__(self, other: Size) -> Size:
        return Size(self.chars + other.chars, self.size_bytes + other.size_bytes, self.tokens + other.tokens)

    def __sub__(self, other: Size) -> Size:
        return Size(
            max(1, self.chars - other.chars),
            max(1, self.size_bytes - other.size_bytes),
            max(1, self.tokens - other.tokens),
        )

    def share(self, share: float) -> Size:
        """Return the limit of a part of an answer that may take this share of it."""
        return Size(int(self.chars * share), int(self.size_bytes * share), int(self.tokens * share))

    def excess(self, value: Size) -> float:
        """Return the ratio of `value` to this size; up to 1 it fits."""
        return max(value.chars / self.chars, value.size_bytes / self.size_bytes, value.tokens / self.tokens)


NOTHING: Final = Size(0, 0, 0)
COMMA: Final = Size(1, 1, 1)
"""Between two rows."""


def size_limit(chars: int) -> Size:
    """Return the maximum size of an answer of so many characters, however many tokens they are."""
    return Size(chars, MAX_ANSWER_BYTES, MAX_ANSWER_BYTES)


def answer_limit(client: ClientInfo = NO_CLIENT, chars: int | None = None) -> Size:
    """Return the maximum size of an answer to this client, or of `chars` characters if its caller asks for them.

    Who asks for fewer characters than the client shows still receives no more tokens than it shows.
    """
    name = client.name.strip().lower()
    shown = next((limit for known, limit in CLIENT_ANSWERS.items() if name.startswith(known)), None)
    shown_chars, tokens = shown or (ANSWER_CHARS, ANSWER_TOKENS)
    if chars is None or chars == shown_chars:
        return Size(shown_chars, MAX_ANSWER_BYTES, tokens)
    return size_limit(chars) if chars > shown_chars else Size(chars, MAX_ANSWER_BYTES, tokens)


def size_of(value: object) -> Size:
    """Return the size of a value as JSON; the value may hold dataclasses and pydantic models."""
    encoded = orjson.dumps(value, default=vars)
    tokens = max(utf8_tokens(encoded), len(encoded) // BYTES_PER_TOKEN) + 1
    return Size(len(encoded.decode().encode("utf-16-le")) // 2, len(encoded), tokens)


def surely_fits(value: object, limit: Size) -> bool:
    """Return whether a value certainly fits. Cheap, and true of nearly every answer: UTF-8 bytes >= UTF-16 units."""
    encoded = orjson.dumps(value, default=vars)
    size_bytes = len(encoded)
    if size_bytes > min(limit.chars, limit.size_bytes, limit.tokens * BYTES_PER_TOKEN):
        return False
    return size_bytes * MAX_TOKENS_PER_BYTE <= limit.tokens or utf8_tokens(encoded) <= limit.tokens


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
    used = NOTHING
    for each in rows:
        used += size_of(each) + COMMA
        if taken and limit.excess(used) > 1:
            break
        taken.append(each)
    return taken
