"""Parse the body of a reply into events, in any of the known forms; no I/O.

The request asks for an event stream. Servers and proxies also send one JSON document, JSON lines, an event stream under
another content type, or any of these compressed although compression was declined.

Invariant: memory is bounded.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from typing import Final, Literal

from exai.providers.reply.reading import decode
from exai.providers.reply.sse import Event, EventTooLarge, SseParser

MAX_DOCUMENT_BYTES: Final = 16 * 1_048_576
"""An answer as one JSON document, with its escapes."""

MAX_FOREIGN_BYTES: Final = 65_536

_UNPACKED_BYTES: Final = 65_536
_MAGIC: Final = b"\x1f\x8b"
_SPACE: Final = b" \t\r\n\xef\xbb\xbf"
_FIELDS: Final = (b"data", b"event", b"id", b"retry", b"error:", b":")
_SNIFFED_BYTES: Final = 6

Form = Literal["unknown", "events", "document", "foreign"]


class BrokenCompression(Exception):
    """The body is not compressed in the way its header says."""


class BodyTooLarge(Exception):
    """The body is above the limit."""


class Unpacker:
    """Undoes gzip and deflate; other data passes unchanged. The output is in pieces of bounded size.

    Data compressed with gzip is recognized by its first bytes, with or without a header.
    """

    def __init__(self, encoding: str) -> None:
        self._encoding = encoding
        self._decoder: zlib._Decompress | None = None
        self._begun = False
        self._head = b""

    @property
    def ended(self) -> bool:
        """Whether the end of the compressed data was reached, if it has one."""
        return self._decoder is None or self._decoder.eof

    def feed(self, chunk: bytes) -> Iterator[bytes]:
        """Yield the unpacked pieces of `chunk`. Raises `BrokenCompression`."""
        if not self._begun:
            self._head += chunk
            if len(self._head) < len(_MAGIC):
                return
            chunk, self._head, self._begun = self._head, b"", True
            self._decoder = self._decoder_for(chunk)
        if self._decoder is None:
            yield chunk
            return
        try:
            while chunk and not self._decoder.eof:
                yield self._decoder.decompress(chunk, _UNPACKED_BYTES)
                chunk = self._decoder.unconsumed_tail
        except zlib.error as error:
            raise BrokenCompression(str(error)) from error

    def end(self) -> bytes:
        """Return the data still held: too short to examine, or inside the decoder."""
        return self._head if self._decoder is None else self._decoder.flush()

    def _decoder_for(self, head: bytes) -> zlib._Decompress | None:
        if head.startswith(_MAGIC):
            return zlib.decompressobj(zlib.MAX_WBITS | 16)
        if self._encoding != "deflate":
            return None
        # Half of the servers send raw deflate under this name, half zlib.
        has_header = head[0] & 0x0F == zlib.DEFLATED and int.from_bytes(head[:2], "big") % 31 == 0
        return zlib.decompressobj(zlib.MAX_WBITS if has_header else -zlib.MAX_WBITS)


class Body:
    """Parser of a successful reply: accepts its chunks and returns the events that they complete.

    `form` is what the body turned out to be. A `foreign` one gives no events; `foreign` has its beginning. `alive`
    counts the lines so far, or the pieces of a document: a server that sends some is at work. `is_one_document`, known
    after `close`: the body was one JSON value to its end, and not lines of which the last may be missing.
    """

    def __init__(self, media_type: str, encoding: str, *, max_event_bytes: int, max_bytes: int) -> None:
        self._unpacker = Unpacker(encoding)
        self._left_bytes = max_bytes
        self._parser = SseParser(max_event_bytes)
        self._is_stream = media_type == "text/event-stream"
        self._held = bytearray()
        self._pieces = self._lines = 0
        self._may_be_lines = True
        self.form: Form = "unknown"
        self.is_one_document = False

    @property
    def alive(self) -> int:
        """Number of lines or pieces received."""
        return self._parser.lines + self._pieces

    @property
    def ended(self) -> bool:
        """Whether the end of the compressed data, if any, was reached."""
        return self._unpacker.ended

    @property
    def foreign(self) -> bytes:
        """The beginning of a body in none of the known forms."""
        return bytes(self._held[:MAX_FOREIGN_BYTES]) if self.form in ("foreign", "unknown") else b""

    def feed(self, chunk: bytes) -> list[Event]:
        """Return the events completed by `chunk`. Raises `EventTooLarge`, `BodyTooLarge` or `BrokenCompression`."""
        return [event for piece in self._unpacker.feed(chunk) for event in self._take(piece)]

    def close(self) -> list[Event]:
        """Return the events completed by the end of the body."""
        events = self._take(self._unpacker.end())
        if self.form == "unknown":
            events += self._decide(bytes(self._held).lstrip(_SPACE))
        if self.form == "events":
            return events + self._parser.close()
        return events + self._documents() if self.form == "document" else events

    def _take(self, piece: bytes) -> list[Event]:
        self._left_bytes -= len(piece)
        if self._left_bytes < 0:
            raise BodyTooLarge
        if self.form == "events":
            return self._parser.feed(piece)
        self._held += piece
        self._pieces += self.form != "foreign"
        if self.form == "unknown":
            head = bytes(self._held[:MAX_FOREIGN_BYTES]).lstrip(_SPACE)
            if len(head) < _SNIFFED_BYTES and b"\n" not in head:
                return []
            return self._decide(head)
        events = self._complete_lines() if self.form == "document" and b"\n" in piece else []
        limit = MAX_FOREIGN_BYTES if self.form == "foreign" else MAX_DOCUMENT_BYTES
        if len(self._held) > limit:
            if self.form == "document":
                raise EventTooLarge
            del self._held[limit:]
        return events

    def _decide(self, head: bytes) -> list[Event]:
        if head.startswith((b"{", b"[")) and not head.startswith(b"[DONE]"):
            self.form = "document"
            return self._complete_lines()
        if self._is_stream or head.lower().startswith(_FIELDS):
            self.form = "events"
            held = bytes(self._held)
            self._held.clear()
            return self._parser.feed(held)
        if head:
            self.form = "foreign"
        return []

    def _complete_lines(self) -> list[Event]:
        """Return one event for each complete line if the first of them is a JSON value of its own.

        Lines are not held until the end of the body, so that the text of a connection that breaks is not lost.
        """
        end = self._held.rfind(b"\n") + 1
        if not end or not self._may_be_lines:
            return []
        lines = _lines_of(self._held[:end])
        if lines and not self._lines and not _is_json(lines[0]):
            self._may_be_lines = False
            return []
        del self._held[:end]
        self._lines += len(lines)
        return [Event(line.removeprefix("data:")) for line in lines]

    def _documents(self) -> list[Event]:
        """Return one event for a JSON document, or one for each line that has not been returned yet."""
        lines = _lines_of(self._held)
        text = bytes(self._held).decode(errors="replace")
        self._held.clear()
        if not self._lines and _is_json(text):
            self.is_one_document = True
            return [Event(text)]
        self.is_one_document = self._lines == 1 and not lines
        return [Event(line.removeprefix("data:")) for line in lines]


def _lines_of(held: bytearray) -> list[str]:
    return list(filter(None, map(str.strip, bytes(held).decode(errors="replace").split("\n"))))


def _is_json(text: str) -> bool:
    try:
        decode(text.strip().lstrip("\ufeff"))
    except ValueError:
        return False
    return True
