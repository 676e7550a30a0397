"""Messages as the bytes in which the database hands over a page and the cache holds it.

The invariant is that what is decoded equals what was encoded, types included; a value that cannot make the journey is
refused. A page is JSON arrays, one per message, joined by a comma and a line feed: JSON that is not spread over lines
never holds a bare line feed, so messages can be added and cut without reading them, and a reader parses the page in
one go.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from typing import Any, Final

import orjson

from exai.models import Message

JOINT: Final = b",\n"

_make_message = tuple.__new__
"""The named tuple's own constructor is a Python function and takes three times as long."""


class Unencodable(Exception):
    """A value that a page cannot hold, such as text with half a surrogate pair."""


class Undecodable(Exception):
    """Bytes that this release did not write."""


def encode_page(messages: Iterable[Message]) -> bytes:
    """Messages in the order given, each an array of its fields. Raises Unencodable."""
    return JOINT.join([encode_json((*message[:6], dict(message.metadata))) for message in messages])


def decode_page(page: bytes, tail: bytes = b"") -> tuple[Message, ...]:
    """The messages of a page and of what was added to it, as they were encoded. Raises Undecodable."""
    joint = b"," if page and tail else b""
    try:
        rows: list[list[Any]] = orjson.loads(b"[%b%b%b]" % (page, joint, tail))
        parse = datetime.fromisoformat
        for row in rows:
            seq, role, content, at, kind, turn_id, metadata = row
            # Whoever else can write to Redis must not make a caller's answer fail.
            if not (
                type(seq) is int
                and type(role) is type(content) is type(kind) is str
                and (turn_id is None or type(turn_id) is str)
                and type(metadata) is dict
            ):
                raise Undecodable("page")
            row[3] = at = parse(at)
            if at.tzinfo is None:
                raise Undecodable("page")
        return tuple([_make_message(Message, row) for row in rows])
    except (ValueError, TypeError, LookupError) as error:
        raise Undecodable("page") from error


def encode_json(value: object) -> bytes:
    """A value as JSON in one line. Raises Unencodable."""
    try:
        return orjson.dumps(value)
    except TypeError as error:
        raise Unencodable(type(error).__name__) from error
