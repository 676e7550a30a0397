"""Parses the first line and the rows of a result's text, as a model that sees only the text does."""

from __future__ import annotations

import json
import re

NAME = re.compile(r"([a-z_]+): ")


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
    found: dict[str, str] = {}
    while match := NAME.match(line):
        rest = line[match.end() :]
        if rest.startswith(('"', "[", "{")):
            value, end = json.JSONDecoder().raw_decode(rest)
            found[match[1]] = value if isinstance(value, str) else rest[:end]
        else:
            end = rest.index(" | ") if " | " in rest else len(rest)
            found[match[1]] = rest[:end]
        line = rest[end:].removeprefix(" | ")
    return found
