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

from exai.errors import InvalidArgument
from exai.models import ContentPart, Message, Page

T = TypeVar("T")

ANSWER_CHARS: Final = 38_000
"""Maximum size of an answer together with its frame: clients that show their model only the beginning and the end of
longer ones do so above 40,000 characters, 49,900 characters or 10,000 tokens."""

MAX_ANSWER_CHARS: Final = 400_000
"""Maximum size that a caller may request instead."""

MAX_ANSWER_BYTES: Final = 480_000
"""Maximum size of any answer, which is sent twice, as text and as structure, in a message of at most 1 MiB."""

SHOW_WHOLE: Final[Mapping[str, Any]] = {"anthropic/maxResultSizeChars": 500_000}
"""The `_meta` of tools that accept a larger limit than `ANSWER_CHARS`: Claude Code then shows its model everything."""


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


def room(chars: int = ANSWER_CHARS) -> Size:
    """Return the maximum size of an answer of so many characters."""
    return Size(chars, MAX_ANSWER_BYTES)


def size_of(value: object) -> Size:
    """Return the size of a JSON value."""
    encoded = orjson.dumps(value)
    return Size(len(encoded.decode().encode("utf-16-le")) // 2, len(encoded))


def cut(text: str, offset: int, within: Size, field: str = "char_offset") -> tuple[str, int | None]:
    """Return the part of `text` from character `offset` on that fits, and the next offset, or None at the end.

    Raises `InvalidArgument` for the argument `field` if the offset exceeds the text.
    """
    check_offset(offset, len(text), field)
    take = min(len(text) - offset, within.chars)
    while take > 1 and (excess := within.excess(size_of(text[offset : offset + take]))) > 1:
        take = max(1, min(take - 1, int(take / excess)))
    end = offset + take
    return text[offset:end], end if end < len(text) else None


def fitting(items: Sequence[T], facts: Callable[[T], Mapping[str, Any]], within: Size) -> list[Mapping[str, Any]]:
    """Return the facts of as many leading items as fit, and of at least one if there are any."""
    all_facts = [facts(item) for item in items]
    if _fits_surely(all_facts, within):
        return all_facts
    shown: list[Mapping[str, Any]] = []
    used = Size(0, 0)
    for described in all_facts:
        used += size_of(described)
        if shown and within.excess(used) > 1:
            break
        shown.append(described)
    return shown


def _fits_surely(value: object, within: Size) -> bool:
    """Return whether a value certainly fits. Cheap, and true of nearly every answer: UTF-8 bytes >= UTF-16 units."""
    return len(orjson.dumps(value)) <= min(within.chars, within.size_bytes)


def message_facts(message: Message) -> dict[str, Any]:
    """Return the fields of one whole message in answers of tools."""
    return {
        "seq": message.seq,
        "role": message.role,
        "content": message.content,
        "next_offset": None,
        "created_at": message.created_at.isoformat(),
        "kind": message.kind,
        "turn_id": message.turn_id,
        "metadata": message.metadata,
    }


def page_facts(page: Page, within: Size, offset: int = 0) -> tuple[list[dict[str, Any]], int | None]:
    """Return the newest messages that fit, oldest first, and the cursor of the older ones.

    If the newest message does not fit, or `offset` is given, return a part of that message.
    """
    if page.part is not None:
        return [part_facts(message, offset, within, page.part) for message in page.messages], page.next_before_seq
    if not offset and _fits_surely(whole := [message_facts(message) for message in page.messages], within):
        return whole, page.next_before_seq
    shown: list[dict[str, Any]] = []
    used = Size(0, 0)
    for message in reversed(page.messages):
        facts = message_facts(message) if not offset else part_facts(message, offset, within)
        used += size_of(facts)
        if within.excess(used) > 1:
            if shown:
                return shown[::-1], int(shown[-1]["seq"])
            facts = part_facts(message, offset, within)
        shown.append(facts)
    return shown[::-1], page.next_before_seq


def part_facts(message: Message, offset: int, within: Size, part: ContentPart | None = None) -> dict[str, Any]:
    """Return a message with the part of its content that fits; metadata is omitted if it takes too much room.

    `part` describes the part of the content that `message` holds; None means all of it.
    """
    facts = message_facts(message._replace(content=""))
    if within.excess(size_of(message.metadata)) > 0.5:
        facts["metadata"] = None
    start, chars = (part.offset, part.chars) if part else (0, len(message.content))
    check_offset(offset, chars, "char_offset")
    facts["content"], _ = cut(message.content, offset - start, within - size_of(facts))
    end = offset + len(facts["content"])
    facts["next_offset"] = end if end < chars else None
    return facts


def check_offset(offset: int, chars: int, field: str) -> None:
    """Raise `InvalidArgument` for the argument `field` if the offset exceeds a text of `chars` characters."""
    if offset > chars or (offset == chars and offset > 0):
        raise InvalidArgument(field, f"is {offset}, the text has {chars} characters", "Use the one that was given")
