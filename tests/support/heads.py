"""Reads the head and the rows of an answer's text, as a model that is shown nothing else does."""

from __future__ import annotations

import json
import re

PAIR = re.compile(r'(?P<name>[a-z_]+): (?P<value>"(?:[^"\\]|\\.)*"|[\[{][^|]*|[^|\n]*?)(?: \| |$)')


def head_of(text: str) -> dict[str, str]:
    """Return the fields of the first line."""
    first, _, _ = text.partition("\n")
    return _pairs(first)


def notes_of(text: str) -> list[str]:
    """Return the notes, which follow the head."""
    return [line.removeprefix("note: ") for line in lines(text.partition("\n\n")[0]) if line.startswith("note: ")]


def body_of(text: str) -> str:
    """Return what follows the head and the notes."""
    return text.partition("\n\n")[2]


def rows_of(body: str) -> list[dict[str, str]]:
    """Return the items of a list."""
    return [_pairs(line) for line in lines(body)]


def lines(text: str) -> list[str]:
    return text.split("\n")


def _pairs(line: str) -> dict[str, str]:
    return {found["name"]: _value(found["value"]) for found in PAIR.finditer(line)}


def _value(text: str) -> str:
    if not text.startswith('"'):
        return text
    value = json.loads(text)
    assert isinstance(value, str)
    return value
