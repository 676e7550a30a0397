"""Finds the id of a request that is refused before it is parsed, so that its client receives the refusal.

Invariant: only a member `id` of the outermost object is found, never one inside a string or a nested value, even
if the text has other errors; time and memory are linear in its length.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass

MAX_TOKENS = 2_000_000
"""Strings and brackets examined from the start of the text; after that only its end is examined."""

TAIL_BYTES = 65_536

_STRING = rb'"(?:[^"\\]++|\\.)*+"'
_SCALAR = rb"(?:" + _STRING + rb"|-?[0-9][0-9.eE+-]*+|null|true|false)"
# An unmatched quote matches alone: strings cannot be recognised after it.
_TOKEN = re.compile(_STRING + rb'|[{}\[\]"]', re.DOTALL)
_VALUE = re.compile(rb"\s*+:\s*+(" + _SCALAR + rb")", re.DOTALL)
_LAST_MEMBERS = re.compile(
    rb',\s*+"(?:id|jsonrpc|method)"\s*+:\s*+' + _SCALAR + rb'(?:\s*+,\s*+"(?:id|jsonrpc|method)"\s*+:\s*+' + _SCALAR
    # The end of the object follows, so these members belong to it: no string can contain an unescaped quote.
    + rb")*+\s*+\}\s*+\Z",
    re.DOTALL,
)  # fmt: skip
_ID_MEMBER = re.compile(rb'"id"\s*+:\s*+(' + _SCALAR + rb")", re.DOTALL)


@dataclass(frozen=True, slots=True)
class FoundId:
    """An id as written, and its position; `value` is None for an id that JSON-RPC does not allow."""

    raw: bytes
    value: str | float | None
    start: int
    end: int

    @property
    def as_integer(self) -> int | None:
        """Return the id as a 64-bit integer, or None if it is none. JSON does not distinguish 7.0 from 7."""
        if isinstance(self.value, str) or self.value is None or not -(2**63) <= self.value < 2**63:
            return None
        return int(self.value) if self.value == int(self.value) else None


def find_id(text: bytes, tail: bytes = b"", *, max_tokens: int = MAX_TOKENS) -> FoundId | None:
    """Return the id in `text`, or in `tail`, the end of a message of which `text` is the beginning."""
    return _found_from_start(text, max_tokens) or _found_at_end(text, tail)


def _found_from_start(text: bytes, max_tokens: int) -> FoundId | None:
    depth = 0
    for count, token in enumerate(_TOKEN.finditer(text)):
        found = token[0]
        if count > max_tokens:
            return None
        if found in (b"{", b"["):
            depth += 1
        elif found in (b"}", b"]"):
            depth -= 1
        elif found == b'"':
            return None
        elif depth == 1 and found == b'"id"' and (value := _VALUE.match(text, token.end())):
            return _read(value[1], value.start(1))
    return None


def _found_at_end(text: bytes, tail: bytes) -> FoundId | None:
    end = tail or text[-TAIL_BYTES:]
    members = _LAST_MEMBERS.search(end)
    found = _ID_MEMBER.search(end, members.start()) if members else None
    return _read(found[1], len(text) - len(end) + found.start(1)) if found else None


def _read(raw: bytes, start: int) -> FoundId | None:
    try:
        value = json.loads(raw)
    except (ValueError, RecursionError):
        return None
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        value = None
    return FoundId(raw, value, start, start + len(raw))
