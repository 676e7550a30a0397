"""A program that reads a PDF or docx file on standard input and writes its text as JSON.

It is run as a process of its own, from this file and without the rest of EXAI, so that a malformed document can use no
more than the limits of that process. Invariant: it opens no file, and parses no document type or entity of XML.
"""

from __future__ import annotations

import io
import json
import sys
import time
import zipfile
from typing import IO, Final
from xml.parsers import expat

MAX_PAGES: Final = 400
MAX_CHARS: Final = 2_000_000
TIME_S: Final = 10.0
MEMORY_BYTES: Final = 1_073_741_824
UNPACKED_BYTES: Final = 16 * 1_048_576
PIECE_BYTES: Final = 65_536
BODY: Final = "word/document.xml"
WORD: Final = (
    "http://schemas.openxmlformats.org/wordprocessingml/2006/main ",
    "http://purl.oclc.org/ooxml/wordprocessingml/main ",
)
FALLBACK: Final = "http://schemas.openxmlformats.org/markup-compatibility/2006 Fallback"
"""The same content once more, for older programs."""

MARKS: Final = {"tab": "\t", "br": "\n", "cr": "\n", "noBreakHyphen": "-"}
SCAN: Final = "without text, as a scan"
ENDS: Final = {"p": "\n", "tc": "\t"}


class Unreadable(Exception):
    """The document has no text that can be read; the text says why."""


def text_of_pdf(data: bytes) -> dict[str, object]:
    """Return the text of the pages up to the limits, each with its number."""
    try:
        from pypdf import PdfReader
        from pypdf.errors import PyPdfError
    except ImportError:
        raise Unreadable('reading PDF needs pip install "exai[documents]"') from None
    end_s = time.monotonic() + TIME_S
    try:
        reader = PdfReader(io.BytesIO(data))
        if reader.is_encrypted and not reader.decrypt(""):
            raise Unreadable("encrypted")
        number, pages, size = len(reader.pages), [], 0
        for place in range(min(number, MAX_PAGES)):
            text = reader.pages[place].extract_text()
            pages.append(f"[page {place + 1}]\n{text.strip()}\n")
            size += len(text)
            if size > MAX_CHARS or time.monotonic() > end_s:
                break
    except PyPdfError as error:
        raise Unreadable(f"damaged or unsupported PDF: {type(error).__name__}") from None
    if not size:
        raise Unreadable(f"PDF of {_pages(number)} {SCAN}")
    note = f"text of {_pages(number)}" if len(pages) == number else f"text of pages 1-{len(pages)} of {number}"
    return {"text": "\n".join(pages), "note": note}


def _pages(number: int) -> str:
    return f"{number} page{'' if number == 1 else 's'}"


def text_of_docx(data: bytes) -> dict[str, object]:
    """Return the paragraphs of a document; the cells of tables are divided by tabs."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive, archive.open(BODY) as body:
            text, is_cut = _paragraphs(body)
    except (zipfile.BadZipFile, KeyError, NotImplementedError, RuntimeError, OSError, EOFError):
        raise Unreadable("damaged or encrypted docx") from None
    except expat.ExpatError:
        raise Unreadable("damaged docx") from None
    if not text.strip():
        raise Unreadable("docx without text")
    return {"text": text, "note": "text of the beginning" if is_cut else "text"}


def _paragraphs(body: IO[bytes]) -> tuple[str, bool]:
    """Parse the XML piece by piece up to the limits; return the text and whether it was cut."""
    found = _Paragraphs()
    unpacked, end_s = 0, time.monotonic() + TIME_S
    while piece := body.read(PIECE_BYTES):
        unpacked += len(piece)
        if unpacked > UNPACKED_BYTES:
            raise Unreadable(f"docx with more than {UNPACKED_BYTES:,} bytes unpacked")
        found.parser.Parse(piece, False)
        if found.size > MAX_CHARS or time.monotonic() > end_s:
            return "".join(found.pieces), True
    found.parser.Parse(b"", True)
    return "".join(found.pieces), False


class _Paragraphs:
    """Collects the text of a document while it is parsed."""

    def __init__(self) -> None:
        self.pieces: list[str] = []
        self.size = 0
        self._is_text, self._skipped = False, 0
        self.parser = expat.ParserCreate(namespace_separator=" ")
        self.parser.buffer_text = True
        self.parser.StartDoctypeDeclHandler = self._refuse
        self.parser.EntityDeclHandler = self._refuse
        self.parser.StartElementHandler = self._start
        self.parser.EndElementHandler = self._end
        self.parser.CharacterDataHandler = self._characters

    def _refuse(self, *_: object) -> None:
        raise Unreadable("docx with a document type, which no program writes")

    def _start(self, name: str, _: dict[str, str]) -> None:
        if self._skipped or name == FALLBACK:
            self._skipped += 1
            return
        local = _local(name)
        self._is_text = local == "t"
        self._add(MARKS.get(local, ""))

    def _end(self, name: str) -> None:
        if self._skipped:
            self._skipped -= 1
            return
        self._is_text = False
        self._add(ENDS.get(_local(name), ""))

    def _characters(self, text: str) -> None:
        if self._is_text and not self._skipped:
            self._add(text)

    def _add(self, text: str) -> None:
        if text:
            self.pieces.append(text)
            self.size += len(text)


def _local(name: str) -> str:
    """Return a name of the word processor's own elements, without its namespace."""
    return next((name.removeprefix(space) for space in WORD if name.startswith(space)), "")


def _limit_self() -> None:
    try:
        import resource
    except ImportError:
        return
    seconds = int(TIME_S) * 2
    for kind, most in ((resource.RLIMIT_AS, MEMORY_BYTES), (resource.RLIMIT_CPU, seconds), (resource.RLIMIT_CORE, 0)):
        resource.setrlimit(kind, (most, most))


def main() -> int:
    """Read a document of the kind that the only argument names."""
    _limit_self()
    data = sys.stdin.buffer.read()
    try:
        found = text_of_pdf(data) if sys.argv[1] == "pdf" else text_of_docx(data)
    except Unreadable as error:
        found = {"error": str(error)}
    except (MemoryError, RecursionError):
        found = {"error": "too complex"}
    sys.stdout.write(json.dumps(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
