"""EXAI's own exports: JSON Lines of any number of conversations, or one conversation in Markdown."""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from typing import Final

from exai.conversations.formats import ExportItem, read_lines, read_markdown
from exai.errors import InvalidArgument
from exai.importers.reading.documents import SourceDocument

KIND: Final = "exai"
MARKDOWN: Final = "<!-- exai conversation "
HEADER: Final = '{"format":"exai-conversation"'
MAX_MARKDOWN_CHARS: Final = 268_435_456


@dataclass(frozen=True, slots=True)
class ExportedConversation:
    """One conversation of an export: its items, which can be read once, and where it begins."""

    items: Iterator[ExportItem]
    where: str


def read_exports(document: SourceDocument) -> Iterator[ExportedConversation]:
    """Yield the conversations of a file in order; what was not read of one is passed. Raises `InvalidArgument`."""
    with document.open() as stream:
        # Only line feeds end lines: a carriage return may be content.
        lines = _Lines(io.TextIOWrapper(stream, encoding="utf-8", errors="replace", newline="\n"))
        while (first := lines.take()) is not None:
            where = document.place(f"line {lines.number}")
            if first.startswith(MARKDOWN):
                yield ExportedConversation(read_markdown(first + lines.text(MAX_MARKDOWN_CHARS)), where)
                return
            if first.strip():
                rest = lines.until_next()
                yield ExportedConversation(read_lines(chain([first], rest), lines.number), where)
                for _ in rest:
                    pass


class _Lines:
    """The lines of a text, with a look at the next one; `number` is that of the last one taken."""

    def __init__(self, source: io.TextIOWrapper) -> None:
        self._source, self._waiting, self.number = source, "", 0

    def take(self) -> str | None:
        """Return the next line, None at the end."""
        line = self._waiting or self._source.readline()
        self._waiting = ""
        self.number += 1
        return line or None

    def text(self, most_chars: int) -> str:
        """Return all that follows."""
        text = self._source.read(most_chars + 1)
        if len(text) > most_chars:
            raise InvalidArgument("FILE", "is too large for Markdown", "Export it as JSON Lines")
        return text

    def until_next(self) -> Iterator[str]:
        """Yield the lines before the next conversation."""
        while (line := self.take()) is not None:
            if line.startswith(HEADER):
                self._waiting = line
                self.number -= 1
                return
            yield line
