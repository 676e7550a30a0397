"""Fills the token budget with files, in the order in which they are added, and lists the files read and left out.

Invariant: a file is either in `read` or in `left_out` with the reason. In the text for a model, every tenth line begins
with its number, so that the model can refer to lines.
"""

from __future__ import annotations

import mimetypes
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from typing import Final

from exai.blobs.decoding import BINARY, decode, encoding_of
from exai.errors import InvalidArgument
from exai.files.extraction import SCAN
from exai.files.images import ImageFacts, image_of
from exai.files.loading import FileContent
from exai.files.names import MAX_NAME_CHARS, shown_name
from exai.files.origins import source_of
from exai.files.paths import Roots, is_directory
from exai.files.sources.bounds import MAX_FILES, Bounds
from exai.files.sources.documents import MAX_DOCUMENT_BYTES, kind_of, text_of
from exai.files.sources.entries import LineRange
from exai.files.sources.skipping import DOCUMENTS, IMAGES, MAX_FILE_BYTES, reason_by_content, reason_by_name, size_shown
from exai.models import FileSource

NUMBERED_EVERY: Final = 10
WRAPPING_TOKENS: Final = 40
"""Of the lines around a file in a prompt."""

BYTES_PER_TOKEN: Final = 4
LEAST_CUT_TOKENS: Final = 200
"""A smaller beginning of a file is not worth its place."""

IMAGE_TOKENS: Final = 1_500
"""Approximate cost of a large image in any model."""

MAX_IMAGE_BYTES: Final = 8 * 1_048_576
RANGE_FILE_BYTES: Final = 32 * 1_048_576
"""Maximum size of a file of which some lines are read."""

MOST_BYTES_PER_TOKEN: Final = 32
"""A file with more bytes for each token that is left is not read."""

SCAN_CURE: Final = "chat with a Kimi model reads it, and its file_id then names its text here"
SCAN_TOKENS: Final = 4_000
"""About what the text of a scan costs; it is counted again once it has been read."""

PDF: Final = "application/pdf"
MAX_SAID: Final = 60
TEXT: Final = "text/plain"

Estimate = Callable[[str], int]


@dataclass(frozen=True, slots=True)
class SourceFile:
    """A file to add. One that the caller named is read regardless of its name and content, and cut if it is too long.

    `data` is its content if that is not the one on the disk.
    """

    path: Path
    shown: str
    field: str = "files"
    lines: LineRange | None = None
    is_named: bool = False
    data: bytes | None = None


@dataclass(slots=True)
class LeftOut:
    """Files that were not read, with the reasons: the first by name, the others by their number."""

    said: list[str] = field(default_factory=list)
    _more: Counter[str] = field(default_factory=Counter)

    def add(self, shown: str, reason: str) -> None:
        """Add one file or directory."""
        if len(self.said) < MAX_SAID:
            self.said.append(f"{shown} ({reason})")
        else:
            self._more[reason.partition(":")[0]] += 1

    def add_said(self, sentences: Iterable[str]) -> None:
        """Add what names its reason already."""
        for each in sentences:
            name, _, reason = each.rpartition(" (")
            self.add(name, reason.removesuffix(")"))

    def sentences(self) -> tuple[str, ...]:
        """Return everything, with a limited number of lines."""
        return (*self.said, *(f"{number:,} more ({reason})" for reason, number in self._more.items()))


class Filling:
    """The files of one reading so far; blocks."""

    def __init__(
        self,
        roots: Roots,
        bounds: Bounds,
        estimate: Estimate,
        budget_tokens: int,
        limit_bytes: int = RANGE_FILE_BYTES,
        *,
        scan_cure: str | None = SCAN_CURE,
    ) -> None:
        self._roots, self._bounds, self._estimate, self._scan_cure = roots, bounds, estimate, scan_cure
        self.left_tokens, self._limit_bytes = budget_tokens, limit_bytes
        self.contents: list[FileContent] = []
        self.read: list[str] = []
        self.left_out = LeftOut()
        self._seen: set[tuple[Path, LineRange | None]] = set()
        self._seen_paths: set[Path] = set()

    @property
    def is_full(self) -> bool:
        """Return whether no further file can be added."""
        return len(self.read) >= MAX_FILES or self.left_tokens < WRAPPING_TOKENS or self._bounds.is_spent

    def add(self, file: SourceFile) -> None:
        """Add a file unless it was added before. Raises `InvalidArgument` for a named one that cannot be read."""
        if self.is_full:
            self.left_out.add(file.shown, self._why_full())
            return
        try:
            self._bounds.touch(file.field, str(file.path))
            target, _ = self._roots.find(file.field, str(file.path))
            if self._is_known(file, target):
                return
            if reason := self._reason_before(file, target):
                self.left_out.add(file.shown, reason)
                return
            data, source = self._data(file)
        except FileNotFoundError:
            if file.is_named:
                self.left_out.add(file.shown, "a link to nothing, or gone since")
            return
        except OSError as error:
            self.left_out.add(file.shown, f"cannot be read: {error.strerror}")
            return
        except InvalidArgument as error:
            if file.is_named:
                raise
            self.left_out.add(file.shown, _without_path(error))
            return
        self._bounds.bytes -= len(data)
        self._seen.add((target, file.lines))
        self._seen_paths.add(target)
        self._add_data(file, data, source)

    def add_text(
        self,
        shown: str,
        name: str,
        text: str,
        *,
        media_type: str = TEXT,
        tokens: int | None = None,
        source: FileSource | None = None,
    ) -> None:
        """Add a text that fits the budget; `shown` names the part that is read, `source` its file on a disk."""
        used = self.tokens(text) if tokens is None else tokens
        self._store(FileContent(_stored_name(name), text.encode(errors="replace"), media_type, source), shown, used)

    def _store(self, content: FileContent, shown: str, tokens: int) -> None:
        """Add a file to be stored, unless it is larger than any file may be."""
        if len(content.data) > self._limit_bytes:
            self.left_out.add(shown.partition(" (")[0], f"over the limit of {size_shown(self._limit_bytes)} for files")
            return
        self.left_tokens -= tokens
        self.contents.append(content)
        self.read.append(shown)

    def tokens(self, text: str) -> int:
        """Estimate the tokens of a text with the lines around it."""
        # Where a prompt is made, the size of a stored file stands for its text, which is more for much blank space.
        return max(self._estimate(text), len(text.encode(errors="replace")) // BYTES_PER_TOKEN) + WRAPPING_TOKENS

    def _is_known(self, file: SourceFile, target: Path) -> bool:
        """Return whether the file was added; a scan does not repeat a file of which lines were named either."""
        if file.is_named:
            return not self._seen.isdisjoint({(target, file.lines), (target, None)})
        return target in self._seen_paths

    def _reason_before(self, file: SourceFile, target: Path) -> str | None:
        """Return why a file is left out, as far as its name and size say it. Raises `FileNotFoundError`."""
        size_bytes = len(file.data) if file.data is not None else _size(target)
        if not file.is_named:
            if file.data is None and is_directory(target):
                return "link to a directory"
            if reason := reason_by_name(file.shown):
                return reason
            if size_bytes > self.left_tokens * MOST_BYTES_PER_TOKEN:
                return f"outside the token budget: {size_shown(size_bytes)}"
        most_bytes = _most_bytes(file)
        if size_bytes > most_bytes:
            is_text = file.is_named and most_bytes == MAX_FILE_BYTES
            cure = f"; name a range of its lines, such as {file.shown}:1-500" if is_text else ""
            return f"{size_shown(size_bytes)}, over the limit of {size_shown(most_bytes)}{cure}"
        return None

    def _data(self, file: SourceFile) -> tuple[bytes, FileSource | None]:
        if file.data is not None:
            return file.data, None
        read = self._roots.read(file.field, str(file.path), _most_bytes(file))
        return read.data, source_of(read, str(file.lines) if file.lines else None)

    def _add_data(self, file: SourceFile, data: bytes, source: FileSource | None) -> None:
        if (image := image_of(data)) is not None:
            self._add_image(file, data, image, source)
            return
        if (kind := kind_of(file.shown, data)) is not None:
            found = text_of(kind, data, self._bounds)
            if found.text is None and SCAN in found.note:
                self._add_scan(file, data, found.note)
            elif found.text is None:
                self.left_out.add(file.shown, found.note)
            else:
                self._add_lines(file, found.text, f"; {found.note}", source)
            return
        encoding = encoding_of(data)
        decoded = None if encoding == BINARY else decode(data, encoding)
        if decoded is None:
            self.left_out.add(file.shown, f"binary, {size_shown(len(data))}")
            return
        if not file.is_named and (reason := reason_by_content(file.shown, data)):
            self.left_out.add(file.shown, reason)
            return
        note = f"; {decoded.note}" if decoded.note else ""
        self._add_lines(file, decoded.text, note, source)

    def _add_image(self, file: SourceFile, data: bytes, image: ImageFacts, source: FileSource | None) -> None:
        if not file.is_named:
            self.left_out.add(file.shown, "image")
        elif self.left_tokens < IMAGE_TOKENS:
            self.left_out.add(file.shown, f"outside the token budget: about {IMAGE_TOKENS:,} tokens")
        else:
            shown = f"{file.shown} ({image.media_type}, {image.width} x {image.height} pixels)"
            self._store(FileContent(_stored_name(file.shown), data, image.media_type, source), shown, IMAGE_TOKENS)

    def _add_scan(self, file: SourceFile, data: bytes, note: str) -> None:
        if self._scan_cure is not None:
            self.left_out.add(file.shown, f"{note}; {self._scan_cure}")
        elif self.left_tokens < SCAN_TOKENS:
            self.left_out.add(file.shown, f"outside the token budget: about {SCAN_TOKENS:,} tokens")
        else:
            shown = f"{file.shown} ({note}, which the model's provider reads)"
            self._store(FileContent(_stored_name(file.shown), data, PDF), shown, SCAN_TOKENS)

    def _add_lines(self, file: SourceFile, text: str, note: str, source: FileSource | None) -> None:
        lines = lines_of(text)
        first, last = 1, len(lines)
        if file.lines is not None:
            first, last = file.lines.first, min(file.lines.last, last)
            if first > last:
                self.left_out.add(f"{file.shown}:{file.lines}", f"has only {_count(len(lines))}")
                return
        if not lines:
            self.read.append(f"{file.shown} (empty)")
            return
        numbered = number(lines[first - 1 : last], first)
        tokens = self.tokens("".join(numbered))
        why = ""
        if tokens > self.left_tokens:
            kept = self._fitting(numbered) if file.is_named else 0
            if kept == 0:
                self.left_out.add(file.shown, f"outside the token budget: about {tokens:,} tokens")
                return
            numbered, last = numbered[:kept], first + kept - 1
            tokens, why = self.tokens("".join(numbered)), ", the rest is outside the token budget"
        is_part = (first, last) != (1, len(lines))
        part = f"line {first:,}" if first == last else f"lines {first:,}-{last:,}"
        extent = f"{part} of {len(lines):,}" if is_part else _count(len(lines))
        name = f"{file.shown}:{LineRange(first, last)}" if is_part else file.shown
        shown = f"{file.shown} ({extent}{why}{note})"
        media_type = _media_type(file.shown)
        self.add_text(shown, name, "".join(numbered), media_type=media_type, tokens=tokens, source=source)

    def _fitting(self, lines: list[str]) -> int:
        """Return how many lines fit the budget; 0 if they are not worth it."""
        fits = bisect_right(
            range(1, len(lines) + 1), self.left_tokens, key=lambda count: self.tokens("".join(lines[:count]))
        )
        return fits if fits and self.tokens("".join(lines[:fits])) >= LEAST_CUT_TOKENS else 0

    def _why_full(self) -> str:
        if self._bounds.is_spent:
            return self._bounds.reason()
        if len(self.read) >= MAX_FILES:
            return f"over the limit of {MAX_FILES} files"
        return "outside the token budget"


def _most_bytes(file: SourceFile) -> int:
    """Return the limit for the size of a file; a larger one is left out."""
    suffix = PurePath(file.shown).suffix.lower()
    if file.is_named and suffix in DOCUMENTS:
        return MAX_DOCUMENT_BYTES
    if file.is_named and suffix in IMAGES:
        return MAX_IMAGE_BYTES
    return RANGE_FILE_BYTES if file.lines else MAX_FILE_BYTES


def lines_of(text: str) -> list[str]:
    """Return the lines of a text with their ends, as editors and git count them."""
    lines = text.split("\n")
    return [f"{line}\n" for line in lines[:-1]] + ([lines[-1]] if lines[-1] else [])


def number(lines: list[str], first: int) -> list[str]:
    """Return lines with the number of every tenth at its beginning, and of the first one of a part."""
    places = (first + place for place in range(len(lines)))
    return [
        f"{place}\t{line}" if place % NUMBERED_EVERY == 0 or (place == first and first > 1) else line
        for place, line in zip(places, lines, strict=True)
    ]


def _count(lines: int) -> str:
    return "1 line" if lines == 1 else f"{lines:,} lines"


def _size(path: Path) -> int:
    return path.stat().st_size


def _without_path(error: InvalidArgument) -> str:
    """Return the problem with a file, without its path, which precedes it."""
    for problem in ("is not below an allowed root", "cannot be read", "was replaced"):
        if problem in error.problem:
            return {"is not below an allowed root": "leads outside the allowed roots"}.get(problem, problem)
    return "is not a regular file" if "regular file" in error.problem else "cannot be read"


def _stored_name(name: str) -> str:
    return shown_name(name[-MAX_NAME_CHARS:])


def _media_type(name: str) -> str:
    guessed = mimetypes.guess_type(name)[0] or TEXT
    return guessed if guessed.startswith("text/") else TEXT
