"""The text of a tool's answer: a head of one line, notes, and the content.

Half of the clients show their model only the text, and some truncate it. Therefore the arguments of the next call come
first. Invariant: the head holds every field of the structured answer that a next call can need, for every tool.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

import orjson

LEFT_OUT: Final = "left_out"
HEAD: Final = (
    "continuation_id",
    "next",
    "seq",
    "step",
    "verdict",
    "first_seq",
    "last_seq",
    "revision",
    "file_id",
    "task_id",
    "model",
    "finish_reason",
    "matched",
    "partial",
    LEFT_OUT,
    "unread_events",
    "duplicate",
    "deleted",
    "stale_s",
    "retry_after_s",
)
"""Fields of a structured answer that its head repeats, in this order; `next_...` fields are added automatically."""

DESCRIPTIVE: Final = ("title", "tags", "metadata")
"""Fields at the end of the head, because they may be long."""

OF_A_FILE: Final = ("name", "media_type", "size_bytes", "encoding")
"""Fields that are also in the head if the answer is about one file."""

_RANKS: Final[Mapping[str, int]] = {
    **{name: rank for rank, name in enumerate(HEAD)},
    **{name: rank for rank, name in enumerate((*OF_A_FILE, *DESCRIPTIVE), len(HEAD) + 1)},
}
"""Positions of fields in the head; all `next_...` fields share the position between."""

NEXT: Final = "next_"
UNDERSTOOD: Final = "understood"
"""The field of a structured answer that states which arguments were understood as what; one line of the text."""

NOTES: Final = "notes"
"""The field of a structured answer with sentences for the caller, each on a line after the head."""

USUAL: Final[Mapping[str, Any]] = {
    "finish_reason": "stop",
    "encoding": "text",
    "matched": "all",
    "newest_kind": "message",
}
"""Default values, which the head omits."""

MAX_VALUE_CHARS: Final = 1_000
_PLAIN = re.compile(r"[^\s\"'{}\[\]|:][^\"|\x00-\x1f\x7f-\x9f\u2028\u2029]*(?<!\s)")


def headed(facts: Mapping[str, Any] | None, body: str, beside: Mapping[str, Any] | None = None) -> str:
    """Return `body` after the head and the notes of a structured answer.

    `beside` holds further fields for the head from deeper levels, such as those of a page's only message.
    """
    known = {**beside, **(facts or {})} if beside else facts or {}
    names = _names(known)
    head = one_line([(name, known[name]) for name in names]) if names else ""
    if not head and NOTES not in known and UNDERSTOOD not in known:
        return body
    taken = [f"understood: {'; '.join(known[UNDERSTOOD])}"] if known.get(UNDERSTOOD) else []
    notes = [f"note: {' '.join(str(note).split())}" for note in (*taken, *(known.get(NOTES) or ()))]
    first = "\n".join([head, *notes] if head else notes)
    return "\n\n".join(part for part in (first, body) if part)


def headed_facts(facts: Mapping[str, Any]) -> dict[str, Any]:
    """Return a structured answer with the head's fields first, for clients that show its JSON truncated."""
    names = _names(facts)
    return {**{name: facts[name] for name in names}, **facts} if names else {**facts}


def one_line(pairs: Iterable[tuple[str, object]]) -> str:
    """Return names and values on one line, without values that are null, false, 0, empty or usual."""
    return " | ".join(f"{name}: {_value(value)}" for name, value in pairs if value and USUAL.get(name) != value)


def items(facts: Iterable[Mapping[str, Any]], names: Sequence[str]) -> str:
    """Return the items of a list, one per line, with the fields in `names`."""
    return "\n".join(one_line((name, each.get(name)) for name in names) for each in facts)


def _names(facts: Mapping[str, Any]) -> list[str]:
    """Return the names in `facts` that belong in the head: arguments of a next call first, descriptive ones last."""
    names = [name for name in facts if name in _RANKS or name.startswith(NEXT)]
    if isinstance(facts.get(LEFT_OUT), list):
        # The names of files are in the content; a number of messages is not.
        names.remove(LEFT_OUT)
    if names and "file_id" not in facts:
        names = [name for name in names if name not in OF_A_FILE]
    if len(names) > 1:
        names.sort(key=_rank)
    return names


def _rank(name: str) -> int:
    return _RANKS.get(name, len(HEAD))


def _value(value: object) -> str:
    """Return a value so that it can be read back: literally if it is unambiguous, else as JSON."""
    if isinstance(value, str):
        # A text of digits is quoted, so that an id of digits is copied as text.
        if len(value) > MAX_VALUE_CHARS:
            value = value[:MAX_VALUE_CHARS] + "..."
        if _PLAIN.fullmatch(value):
            return value
    return orjson.dumps(value, default=str).decode()
