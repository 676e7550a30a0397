"""Loads the named statements of `sql/*.sql`; all SQL the service sends is there, and each name exists once.

A statement begins with `-- name: NAME` and `-- repeat: read | keyed | never`, which says what may be done when a reply
was lost: a read changes nothing, a keyed write finds its own earlier work by its key, the rest must not be sent again.
`-- described: at first use` is for statements that no request needs: a connection is open without their description,
and a role without rights on their objects can use all others.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from importlib.resources import files
from typing import Final, Literal, get_args

Repeat = Literal["read", "keyed", "never"]

_HEAD: Final = re.compile(r"^-- name: (\w+)\n-- repeat: (\w+)\n(-- described: at first use\n)?", re.MULTILINE)
_REPEATS: Final[tuple[Repeat, ...]] = get_args(Repeat)


@dataclass(frozen=True, slots=True)
class Statement:
    """One statement: the text as it is sent, without comments."""

    name: str
    repeat: Repeat
    text: str
    is_described_at_start: bool = True


def load_statements() -> dict[str, Statement]:
    """All statements by name; a defect in a file is an error here, at start, not at the first use."""
    statements: dict[str, Statement] = {}
    for entry in sorted(files("exai.db").joinpath("sql").iterdir(), key=lambda entry: entry.name):
        if entry.name.endswith(".sql"):
            for statement in parse_statements(entry.read_text("utf-8")):
                if statement.name in statements:
                    raise ValueError(f"two statements are called {statement.name}")
                statements[statement.name] = statement
    return statements


def parse_statements(source: str) -> list[Statement]:
    """The statements of one file."""
    heads = list(_HEAD.finditer(source))
    ends = [*(head.start() for head in heads[1:]), len(source)]
    return [_statement(head, source[head.end() : end]) for head, end in zip(heads, ends, strict=True)]


def _statement(head: re.Match[str], body: str) -> Statement:
    name, word, late = head.groups()
    repeat = next((repeat for repeat in _REPEATS if repeat == word), None)
    lines = [line for line in body.splitlines() if line.strip() and not line.lstrip().startswith("--")]
    text = "\n".join(lines).rstrip().removesuffix(";")
    if repeat is None or not text or ";" in text:
        raise ValueError(f"statement {name} is not one statement with a known repeat rule")
    return Statement(name, repeat, text, is_described_at_start=late is None)
