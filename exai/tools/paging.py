"""How much one answer holds, and how a longer one is cut so that the next call can go on.

The invariant is that nothing is kept between calls: what the next call needs is in the answer (a cursor, or a message's
number and a character's), an answer that is not all says so, and every call brings at least one item or one character.
Sizes are those of the answer as JSON in UTF-16 units, which is how clients count what they show.
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
"""What fits into an answer together with its frame: clients that show their model only the beginning and the end of a
longer one do so above 40,000 characters, 49,900 characters or 10,000 tokens."""

MAX_ANSWER_CHARS: Final = 400_000
"""What a caller may ask for instead."""

MAX_ANSWER_BYTES: Final = 480_000
"""Of any answer, which comes twice, as text and as structure, in a message of at most 1 MiB."""

SHOW_WHOLE: Final[Mapping[str, Any]] = {"anthropic/maxResultSizeChars": 500_000}
"""The `_meta` of tools whose callers may ask for more than `ANSWER_CHARS`: Claude Code then shows its model all."""


@dataclass(frozen=True, slots=True)
class Size:
    """Of JSON: UTF-16 units and UTF-8 bytes."""

    chars: int
    size_bytes: int

    def __add__(self, other: Size) -> Size:
        return Size(self.chars + other.chars, self.size_bytes + other.size_bytes)

    def __sub__(self, other: Size) -> Size:
        return Size(max(1, self.chars - other.chars), max(1, self.size_bytes - other.size_bytes))

    def excess(self, value: Size) -> float:
        """Return how many times larger than this `value` is; up to 1 it fits."""
        return max(value.chars / self.chars, value.size_bytes / self.size_bytes)


def room(chars: int = ANSWER_CHARS) -> Size:
    """Return the room of an answer of so many characters."""
    return Size(chars, MAX_ANSWER_BYTES)


def size_of(value: object) -> Size:
    """Return the size of a JSON value."""
    encoded = orjson.dumps(value)
    return Size(len(encoded.decode().encode("utf-16-le")) // 2, len(encoded))


def cut(text: str, offset: int, within: Size, field: str = "char_offset") -> tuple[str, int | None]:
    """Return what of `text` fits, from character `offset` on, and where the rest begins, None when there is none.

    Raises `InvalidArgument` for an offset beyond the text, under the argument's name `field`.
    """
    check_offset(offset, len(text), field)
    take = min(len(text) - offset, within.chars)
    while take > 1 and (excess := within.excess(size_of(text[offset : offset + take]))) > 1:
        take = max(1, min(take - 1, int(take / excess)))
    end = offset + take
    return text[offset:end], end if end < len(text) else None


def fitting(items: Sequence[T], facts: Callable[[T], Mapping[str, Any]], within: Size) -> list[Mapping[str, Any]]:
    """Return the facts of as many of the first items as fit, of one at least if there is any."""
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
    """Tell what nearly every answer is, and cheaply: bytes of UTF-8 are never fewer than UTF-16 units."""
    return len(orjson.dumps(value)) <= min(within.chars, within.size_bytes)


def message_facts(message: Message) -> dict[str, Any]:
    """Return what tools tell about one message that fits."""
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
    """Return the newest messages that fit, oldest first, and the cursor of what is older.

    Of a newest one that does not fit by itself, or that is asked for from `offset` on, a part.
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
    """Return a message with the part of its content that fits; without metadata when that is what makes it long.

    `part` says which part of the content `message` holds, None that it is all.
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
    """Refuse a position beyond a text of so many characters, under the argument's name `field`."""
    if offset > chars or (offset == chars and offset > 0):
        raise InvalidArgument(field, f"is {offset}, the text has {chars} characters", "Use the one that was given")
