"""Read a JSON text of any size in parts, with one part in memory.

A `Shape` says into which containers to descend; every other value is returned whole, as the bytes of the text. So an
array of conversations is read a message at a time, and a part that is damaged or too large does not prevent the rest.

Invariant: memory is bounded by the limit of a part and by the depth of the containers that are descended into.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, BinaryIO, Final, TypeAlias

import orjson

CHUNK_BYTES: Final = 262_144
MAX_PART_BYTES: Final = 64 * 1_048_576
MAX_KEY_BYTES: Final = 65_536

LARGE_INTEGER: Final = re.compile(rb"(?:^|[\s:,\[])-?\d{19}")
SPACE: Final = re.compile(rb"[\s,:]*")
SCALAR: Final = re.compile(rb"[^\s,:\[\]{}\"]*")
STRUCTURE: Final = re.compile(rb'["{}\[\]]')
STRING_REST: Final = re.compile(rb'[^"\\]*+(?:\\.[^"\\]*+)*+("?)', re.DOTALL)
CLOSING: Final = {ord("{"): ord("}"), ord("["): ord("]")}


@dataclass(eq=False, slots=True)
class Shape:
    """An object (`{`) or array (`[`) that is descended into, and the shapes of its members or of all its items."""

    name: str
    opening: str = "{"
    members: dict[str, Shape] = field(default_factory=dict)
    items: Shape | None = None


@dataclass(frozen=True, slots=True)
class Begun:
    """A container that is descended into begins; `key` is its name in the container around it, or its place in it."""

    shape: Shape
    key: str | int
    where: str


@dataclass(frozen=True, slots=True)
class Part:
    """A value in the innermost container; `raw` is None if it is larger than the limit."""

    key: str | int
    raw: bytes | None
    where: str


@dataclass(frozen=True, slots=True)
class Ended:
    """The innermost container ends."""

    shape: Shape


@dataclass(frozen=True, slots=True)
class BrokenOff:
    """The text ends, or continues as no JSON text does; open containers end afterwards."""

    where: str
    reason: str


Step: TypeAlias = Begun | Part | Ended | BrokenOff


def parse(raw: bytes) -> Any:
    """Return the value of a JSON text. Raises `ValueError`, also for one that is nested too deeply."""
    try:
        # orjson reads integers beyond 64 bits as floats.
        if not LARGE_INTEGER.search(raw):
            return orjson.loads(raw)
    except orjson.JSONDecodeError:
        pass
    try:
        # Python's parser also reads NaN, lone surrogates and control characters in texts.
        return json.loads(raw.decode("utf-8", "surrogatepass"), strict=False)
    except RecursionError:
        raise ValueError("is nested too deeply") from None


def walk(stream: BinaryIO, shapes: Sequence[Shape], limit_bytes: int = MAX_PART_BYTES) -> Iterator[Step]:
    """Read a JSON text, or several one after another, each a container of one of the shapes."""
    return _Walk(stream, shapes, limit_bytes).steps()


@dataclass(slots=True)
class _Frame:
    shape: Shape
    closing: int
    number: int = 0


class _Walk:
    """The state of one reading."""

    def __init__(self, stream: BinaryIO, shapes: Sequence[Shape], limit_bytes: int) -> None:
        self._stream, self._limit = stream, limit_bytes
        self._roots = {ord(shape.opening): shape for shape in shapes}
        self._buffer, self._at, self._counted = b"", 0, 0
        self._offset, self._line = 0, 1
        self._frames: list[_Frame] = []

    def steps(self) -> Iterator[Step]:
        """Yield what the text holds."""
        while (byte := self._next()) is not None:
            if byte in b"}]":
                yield from self._end(byte)
            elif not self._frames:
                yield from self._value(byte, self._roots.get(byte), 0)
            elif self._frames[-1].closing == ord("]"):
                frame = self._frames[-1]
                frame.number += 1
                yield from self._value(byte, frame.shape.items, frame.number - 1)
            else:
                yield from self._member(byte)
        if self._frames:
            yield BrokenOff(self._where(), "the text ends in the middle")
            while self._frames:
                yield Ended(self._frames.pop().shape)

    def _end(self, byte: int) -> Iterator[Step]:
        if not self._frames or byte != self._frames[-1].closing:
            yield BrokenOff(self._where(), "a bracket does not match the one that it closes")
            if all(each.closing != byte for each in self._frames):
                self._at += 1
                return
            # The innermost container that it can close is taken to end there.
            while self._frames[-1].closing != byte:
                yield Ended(self._frames.pop().shape)
        self._at += 1
        yield Ended(self._frames.pop().shape)

    def _member(self, byte: int) -> Iterator[Step]:
        where, shape = self._where(), self._frames[-1].shape
        key = self._key(byte)
        after = self._next()
        if key is None:
            yield BrokenOff(where, "a member of an object has no name")
        elif after is not None and after in b"}]":
            yield BrokenOff(where, "a member of an object has no value")
        elif after is not None:
            yield from self._value(after, shape.members.get(key), key)

    def _value(self, byte: int, shape: Shape | None, key: str | int) -> Iterator[Step]:
        where = self._where()
        if shape is not None and ord(shape.opening) == byte:
            self._at += 1
            self._frames.append(_Frame(shape, CLOSING[byte]))
            yield Begun(shape, key, where)
            return
        raw, is_whole = self._take(byte)
        if is_whole:
            yield Part(key, raw, where)
        elif not self._frames:
            yield BrokenOff(where, "the text ends in the middle")

    def _key(self, byte: int) -> str | None:
        """Return the name of a member, None if there is none."""
        raw, is_whole = self._take(byte)
        if byte != ord('"') or raw is None or not is_whole or len(raw) > MAX_KEY_BYTES:
            return None
        try:
            return str(parse(raw))
        except ValueError:
            return None

    def _take(self, byte: int) -> tuple[bytes | None, bool]:
        """Return the bytes of the value that begins here, None if they are too many, and whether it has an end."""
        parts: list[bytes] = []
        size, depth, in_string = 0, 0, False
        is_scalar = byte not in b'"{['
        while True:
            begin = self._at
            self._at, is_done, depth, in_string = self._scan(is_scalar, depth, in_string)
            size += self._at - begin
            if size <= self._limit:
                parts.append(self._buffer[begin : self._at])
            else:
                parts.clear()
            if is_done or not self._refill():
                return (b"".join(parts) if size <= self._limit else None), is_done or is_scalar

    def _scan(self, is_scalar: bool, depth: int, in_string: bool) -> tuple[int, bool, int, bool]:
        """Return how far the value goes in the buffer, whether it ends there, and the state for the next buffer."""
        buffer, at = self._buffer, self._at
        if is_scalar:
            scalar = SCALAR.match(buffer, at)
            at = scalar.end() if scalar else at
            return at, at < len(buffer), 0, False
        while True:
            if in_string:
                rest = STRING_REST.match(buffer, at)
                at = rest.end() if rest else at
                if rest is None or not rest[1]:
                    return at, False, depth, True
                in_string = False
                if depth == 0:
                    return at, True, 0, False
            found = STRUCTURE.search(buffer, at)
            if found is None:
                return len(buffer), False, depth, False
            at = found.end()
            sign = buffer[found.start()]
            in_string = sign == ord('"')
            if not in_string:
                depth += 1 if sign in b"{[" else -1
                if depth == 0:
                    return at, True, 0, False

    def _next(self) -> int | None:
        """Skip what separates values, and return the byte that follows, None at the end."""
        while True:
            found = SPACE.match(self._buffer, self._at)
            self._at = found.end() if found else self._at
            if self._at < len(self._buffer):
                return self._buffer[self._at]
            if not self._refill():
                return None

    def _refill(self) -> bool:
        """Read on. What was not consumed stays at the beginning of the buffer."""
        self._count_lines()
        self._offset += self._at
        chunk = self._stream.read(CHUNK_BYTES)
        self._buffer, self._at, self._counted = self._buffer[self._at :] + chunk, 0, 0
        return bool(chunk)

    def _where(self) -> str:
        self._count_lines()
        return f"line {self._line}, byte {self._offset + self._at}"

    def _count_lines(self) -> None:
        self._line += self._buffer.count(b"\n", self._counted, self._at)
        self._counted = self._at
