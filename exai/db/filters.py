"""Filters for lists of conversations and files, and for searches.

Invariant: letters that differ in case only are equal, independent of the database's locale.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final

from exai.db.rows import json_of
from exai.encryption.codec import Codec
from exai.encryption.envelope import MARK
from exai.errors import InvalidArgument
from exai.settings.load import LimitSettings
from exai.validation import (
    MAX_CONTINUATION_CHARS,
    MAX_KIND_CHARS,
    MAX_MODEL_CHARS,
    check_flag,
    check_json,
    check_optional_name,
    check_tags,
    check_text,
    check_time,
)

UNREAD: Final = re.escape(MARK)

MAX_PART_CHARS: Final = 200
LAST_CHAR: Final = "\U0010ffff"


@dataclass(frozen=True, slots=True)
class ListFilter:
    """Conversations that are `deleted` or not, have all of `tags`, and whose metadata holds `metadata`.

    `part` is the beginning of a conversation's name, or a part of its title. `tool` and `model` are those of one of its
    turns. `since` (inclusive) and `until` (exclusive) bound the time of its last change. `prefix` is the exact
    beginning of its name. With `has_messages`, those without any are left out, such as those with states of adapters.
    """

    deleted: bool = False
    tags: Sequence[str] = ()
    metadata: Mapping[str, Any] = field(default_factory=dict)
    part: str = ""
    tool: str | None = None
    model: str | None = None
    since: datetime | None = None
    until: datetime | None = None
    prefix: str = ""
    has_messages: bool = False

    def validate(self, limits: LimitSettings) -> None:
        """Raise `InvalidArgument` for a value that Postgres cannot compare with stored ones."""
        check_flag("deleted", self.deleted)
        check_tags(self.tags)
        check_json("metadata", self.metadata, limits.metadata_bytes)
        check_text("part", self.part, limits.message_bytes)
        check_optional_name("tool", self.tool, MAX_KIND_CHARS)
        check_optional_name("model", self.model, MAX_MODEL_CHARS)
        check_time("since", self.since)
        check_time("until", self.until)
        check_text("prefix", self.prefix, limits.message_bytes)
        check_flag("has_messages", self.has_messages)
        if self.prefix and (self.turns is not None or self.has_messages):
            raise InvalidArgument("prefix", "comes with tool, model or has_messages", "Use one of them")

    @property
    def names(self) -> tuple[str, str] | tuple[None, None]:
        """Return the first and the last name with the prefix, None if names are not filtered by it."""
        return (self.prefix, self.prefix + LAST_CHAR * MAX_CONTINUATION_CHARS) if self.prefix else (None, None)

    @property
    def turns(self) -> tuple[str | None, str | None] | None:
        """Return tool and model of the wanted turns, None if conversations are not filtered by their turns."""
        return None if self.tool is None and self.model is None else (self.tool, self.model)

    def arguments(self, codec: Codec) -> tuple[Any, ...]:
        """Return the statement's arguments, None for each unused filter; those of `turns` only if they are used.

        Raises `InvalidArgument` for a filter by what is encrypted. Titles that are encrypted have no `part`.
        """
        codec.check_filter("metadata", is_given=bool(self.metadata))
        labels, part = labels_of(self.tags, self.metadata), stored_part_of(self.part, codec)
        return (self.deleted, *labels, *part, *(self.turns or ()), self.since, self.until)


ALL: Final = ListFilter()
WITH_MESSAGES: Final = ListFilter(has_messages=True)
"""Conversations for people and models."""


def labels_of(tags: Sequence[str], metadata: Mapping[str, Any]) -> tuple[list[str] | None, str | None]:
    """Return tags and metadata as statement arguments, None for an unused filter."""
    return list(tags) or None, json_of(metadata) if metadata else None


def stored_part_of(part: str, codec: Codec) -> tuple[str, str] | tuple[None, None]:
    """Return as `part_of`, with a pattern that no encrypted text matches."""
    start, pattern = part_of(part)
    if start is None or not codec.is_on:
        return part_of(part)
    return start, f"^(?!{UNREAD}).*({pattern})"


def part_of(part: str) -> tuple[str, str] | tuple[None, None]:
    """Return how an id begins, and the pattern of a name or title."""
    part = part.strip()
    return (part[:MAX_PART_CHARS], pattern_of(part[:MAX_PART_CHARS])) if part else (None, None)


def pattern_of(part: str) -> str:
    """Return a regular expression of Postgres for a text in any case and either normal form.

    Cases are those of Unicode as Python knows them; a database with the locale C knows those of ASCII only.
    """
    forms = dict.fromkeys(unicodedata.normalize(form, part) for form in ("NFC", "NFD"))
    return "|".join("".join(map(_letter, form)) for form in forms)


def _letter(letter: str) -> str:
    cases = dict.fromkeys(case for case in (letter, letter.lower(), letter.upper(), letter.title()) if len(case) == 1)
    escaped = [case if case.isalnum() else re.sub(r"(\W)", r"\\\1", case) for case in cases]
    return escaped[0] if len(escaped) == 1 else f"[{''.join(escaped)}]"
