"""Frames read and written without the library: equivalent to the library, or left to it."""

from __future__ import annotations

import pytest
from websockets.frames import Frame, Opcode
from websockets.protocol import Protocol, Side

from exai.mcp.transport.metering import read_through
from exai.mcp.transport.websocket_fast_path import MAX_SHORT_BYTES, only_text, short_text

SIZES = (0, 1, 125, 126, 127, 128, 255, 256, 65_535)


def framed(data: bytes, opcode: Opcode = Opcode.TEXT, *, fin: bool = True) -> bytes:
    return Frame(opcode, data, fin).serialize(mask=True)


@pytest.mark.parametrize("size", SIZES)
def test_a_short_text_is_read_as_the_library_reads_it(size: int) -> None:
    """RFC 6455, 5.2: sizes in 7 and in 16 bits, masked."""
    data = bytes(range(32, 127)) * 700
    assert only_text(framed(data[:size]), MAX_SHORT_BYTES) == data[:size]


@pytest.mark.parametrize("size", SIZES)
def test_a_short_text_is_written_as_the_library_writes_it(size: int) -> None:
    """RFC 6455, 5.2: the shortest form, not masked."""
    assert short_text(b"x" * size) == Frame(Opcode.TEXT, b"x" * size).serialize(mask=False)


def test_everything_else_is_left_to_the_library() -> None:
    """Fragments, control frames, faults and incomplete frames are parsed in one place."""
    for data in (
        b"",
        b"\x81",
        framed(b"x" * 65_536),
        framed(b"x" * 20) + framed(b"y"),
        framed(b"x" * 20)[:-1],
        framed(b"x" * 200)[:3],
        framed(b"x", Opcode.BINARY),
        framed(b"x", Opcode.PING),
        framed(b"x", Opcode.CONT),
        framed(b"x", fin=False),
        b"\xc1" + framed(b"x")[1:],
        Frame(Opcode.TEXT, b"xxxxx").serialize(mask=False),
        Frame(Opcode.TEXT, b"x" * 300).serialize(mask=False),
    ):
        assert only_text(data, MAX_SHORT_BYTES) is None, data[:8]


def test_a_text_larger_than_a_message_may_be_is_left_to_the_library() -> None:
    """It closes the connection with 1009."""
    assert only_text(framed(b"x" * 101), 100) is None


def test_the_reader_distinguishes_a_frames_beginning_from_its_middle() -> None:
    """Only at its beginning may the parser be left out."""
    conn = Protocol(Side.SERVER)
    reader = read_through(conn)
    data = framed(b"x" * 200)
    assert reader.is_between_frames
    for byte in data[:-1]:
        conn.receive_data(bytes((byte,)))
        assert not reader.is_between_frames
    conn.receive_data(data[-1:])
    assert reader.is_between_frames
    conn.receive_data(data + data[:1])
    assert not reader.is_between_frames
    assert len(conn.events_received()) == 2
