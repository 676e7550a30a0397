"""Encodes messages as the bytes in which the database returns a page and the cache stores it.

Invariant: decoding returns the encoded values, types included; a value for which that is impossible is
refused. A page consists of JSON arrays, one per message, joined by a comma and a line feed. JSON on one line
never holds a bare line feed, so messages can be added and cut without parsing them, and a reader parses the page in
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
    """A value that a page cannot hold, such as text with a lone surrogate."""


class Undecodable(Exception):
    """Bytes that this release did not write."""


def encode_page(messages: Iterable[Message]) -> bytes:
    """Return messages in the given order, each as an array of its fields. Raises Unencodable."""
    return JOINT.join([encode_json((*message[:6], dict(message.metadata), message.key)) for message in messages])


def decode_page(page: bytes, tail: bytes = b"") -> tuple[Message, ...]:
    """Return the messages of a page and of its later additions, as they were encoded. Raises Undecodable."""
    joint = b"," if page and tail else b""
    try:
        rows: list[list[Any]] = orjson.loads(b"[%b%b%b]" % (page, joint, tail))
        parse = datetime.fromisoformat
        for row in rows:
            seq, role, content, at, kind, turn_id, metadata, key = row
            # Other programs can write to Redis: a foreign value must raise Undecodable here, which is a cache miss.
            if not (
                type(seq) is int
                and type(role) is type(content) is type(kind) is str
                and (turn_id is None or type(turn_id) is str)
                and (key is None or type(key) is str)
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
    """Return a value as JSON on one line. Raises Unencodable."""
    try:
        return orjson.dumps(value)
    except TypeError as error:
        raise Unencodable(type(error).__name__) from error
