"""A parser for the most common frame, one whole short text; all other frames go through the library's parser.

Invariant: a frame is parsed here only if it is all the input and the library's parser is between two messages, so that
bypassing the parser does not change its state.
"""

from __future__ import annotations

from collections.abc import Generator

from exai.mcp.transport.library_parts import Protocol, StreamReader, apply_mask

MAX_SHORT_BYTES = 65_535

_WHOLE_TEXT = 0x81
_MASKED = 0x80
_SIZE_16 = 126
_MASK_BYTES = 4


class FrameReader(StreamReader):
    """The parser's source, which knows whether the parser is at the start of a frame."""

    def __init__(self) -> None:
        super().__init__()
        self.is_between_frames = False

    def at_eof(self) -> Generator[None, None, bool]:
        """Note that the parser is between two frames: it calls this method there, and nowhere else."""
        self.is_between_frames = True
        has_ended = yield from super().at_eof()
        self.is_between_frames = False
        return has_ended


def read_through(conn: Protocol) -> FrameReader:
    """Replace the source of a connection that has received nothing with a `FrameReader`, and return the reader."""
    reader = conn.reader = FrameReader()
    conn.parser = conn.parse()
    next(conn.parser)
    return reader


def only_text(data: bytes, max_bytes: int) -> bytes | None:
    """Return the text of `data` if it is exactly one whole short text frame from a client; else None."""
    if len(data) < 2 or data[0] != _WHOLE_TEXT:
        return None
    size, start = data[1] - _MASKED, 2
    if size == _SIZE_16:
        size, start = int.from_bytes(data[2:4], "big"), 4
    if not 0 <= size <= max_bytes or len(data) != start + _MASK_BYTES + size or data[1] == 0xFF:
        return None
    return apply_mask(data[start + _MASK_BYTES :], data[start : start + _MASK_BYTES])


def short_text(data: bytes) -> bytes:
    """Encode a text of at most `MAX_SHORT_BYTES` as a server's frame."""
    size = len(data)
    if size < _SIZE_16:
        return bytes((_WHOLE_TEXT, size)) + data
    return bytes((_WHOLE_TEXT, _SIZE_16, size >> 8, size & 0xFF)) + data


def is_utf8(data: bytes) -> bool:
    """Return whether `data` is valid UTF-8, as a text frame requires."""
    if data.isascii():
        return True
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True
