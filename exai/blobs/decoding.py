"""Decode the bytes of a file as text.

Undecodable bytes are counted, shown as U+FFFD and reported in `Decoded.note`.

Invariant: the encoding is guessed, from the non-ASCII bytes, only if there is no byte order mark and the file is not
valid UTF-8.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Final

from exai.blobs.guessing import LEAST_BYTES, guess

BINARY: Final = "binary"
"""In place of an encoding: the file is no text."""

UTF_8: Final = "utf-8"
MARKED_UTF_8: Final = "utf-8-sig"
DAMAGED_UTF_8: Final = "utf-8 (damaged)"
PLAIN_UTF_8: Final = (UTF_8, MARKED_UTF_8)
SINGLE_BYTE: Final = "windows-1252"
MARKS: Final = (
    (codecs.BOM_UTF8, MARKED_UTF_8),
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
NAMES: Final = {
    "gb18030": "gb18030",
    "big5": "big5",
    "cp932": "shift_jis",
    "cp949": "euc-kr",
    "euc_jp": "euc-jp",
    "koi8_r": "koi8-r",
    "koi8_u": "koi8-u",
    "cp874": "windows-874",
    "iso2022_jp": "iso-2022-jp",
    "mac_roman": "macintosh",
    **{f"cp125{n}": f"windows-125{n}" for n in range(9)},
    **{f"cp{n}": f"ibm{n}" for n in (437, 850, 852, 857, 866, 1125)},
    **{f"iso8859_{n}": f"iso-8859-{n}" for n in (2, 5, 7, 15)},
}
UNCERTAIN: Final = " (uncertain)"
"""Behind the name of an encoding if others yield plausible texts, too."""

CODECS: Final = {DAMAGED_UTF_8: UTF_8, MARKED_UTF_8: UTF_8} | {
    f"{name}{suffix}": codec for codec, name in NAMES.items() for suffix in ("", UNCERTAIN)
}
"""The usual names, and Python's."""

WIDE_CODECS: Final = frozenset(["gb18030", "big5", "cp932", "cp949", "euc_jp", "iso2022_jp"])
ONE_BYTE: Final = frozenset(name for name, codec in CODECS.items() if codec in NAMES and codec not in WIDE_CODECS)
"""Encodings in which the place of a character is the place of a byte."""

SAMPLE_BYTES: Final = 32_768
BESIDE_BYTES: Final = 20
PIECE_BYTES: Final = 262_144
MOST_RUNS: Final = 5_000
LOOKED_AT_BYTES: Final = 1_048_576

HIGH: Final = re.compile(rb"[\x80-\xff]+")
CONTROL: Final = bytes(set(range(0x20)) - {7, 8, 9, 10, 12, 13, 27} | {0x7F})
NUL_SHOWN: Final = "\u2400"

PLAIN: Final = re.compile(
    "[\t\n\r\f !-~\xa0-\u052f\u0590-\u06ff\u0e00-\u0e7f"
    "\u2010-\u2027\u20ac\u3000-\u30ff\u4e00-\u9fff\uac00-\ud7a3\uff00-\uffef]"
)
"""What most texts consist of."""

LEAST_WIDE_CHARS: Final = 8
MOSTLY: Final = 0.9
BYTES_PER_BREAK: Final = 10_000
"""A text in UTF-16 that was cut, or damaged in few places, is still one."""

LEAST_WHOLE, WHOLE_PER_BREAK = 3, 4
"""Characters of UTF-8 for each place that is none, in a damaged text."""

MOST_CONTROL: Final = 0.02
"""Of the bytes of a text may be control characters."""

MOST_SEPARATORS: Final = 0.2
"""Of the bytes of a text may be NUL between its parts."""

MOST_BROKEN: Final = 0.05
"""Of the bytes beyond ASCII may be no part of a character."""


@dataclass(frozen=True, slots=True)
class Decoded:
    """A file as text. `note` says what the reader should know about it, None for plain UTF-8."""

    text: str
    encoding: str
    note: str | None


def encoding_of(data: bytes) -> str:
    """Return the name of a file's encoding, `BINARY` if it is not text. Takes time linear in the size."""
    for mark, name in MARKS:
        if data.startswith(mark):
            if _broken(data, name) <= (0 if name == MARKED_UTF_8 else 1 + len(data) // BYTES_PER_BREAK):
                return name
            if name == MARKED_UTF_8:
                return DAMAGED_UTF_8
    odd = len(data) - len(data.translate(None, CONTROL))
    if b"\0" in data and b"\0\0" not in data and data.count(0) == odd <= len(data) * MOST_SEPARATORS:
        # Names and variables that are separated by NUL, as by `find -print0`.
        odd = 0
    is_odd = odd > max(1, len(data) * MOST_CONTROL)
    if (is_odd or b"\0" in data) and (wide := _wide(data[: len(data) // 4 * 4][:LOOKED_AT_BYTES])) is not None:
        return wide if _broken(data, wide) <= 1 + len(data) // BYTES_PER_BREAK else BINARY
    if is_odd:
        return BINARY
    if _decodes(data, UTF_8):
        return _escaped(data) or UTF_8
    return _guessed(data)


def decode(data: bytes, encoding: str | None = None) -> Decoded | None:
    """Return a file as text, None if it is not text. Without `encoding` it is detected."""
    name = encoding or encoding_of(data)
    if name == BINARY:
        return None
    mark = next((mark for mark, marked in MARKS if marked == name and data.startswith(mark)), b"")
    text = data[len(mark) :].decode(CODECS.get(name, name), errors="exai-lenient")
    if name == DAMAGED_UTF_8:
        text = text.removeprefix("\ufeff")
    notes = [_source_of(name)] if name not in PLAIN_UTF_8 else []
    if name not in PLAIN_UTF_8 and (broken := text.count("\ufffd")):
        notes.append(f"{broken:,} bytes or sequences could not be decoded and are shown as U+FFFD")
    if "\0" in text:
        notes.append(f"NUL characters ({text.count(chr(0)):,}) are shown as {NUL_SHOWN}")
        text = text.replace("\0", NUL_SHOWN)
    return Decoded(text, name, "; ".join(notes) or None)


def _source_of(name: str) -> str:
    if not name.endswith(UNCERTAIN):
        return f"decoded from {name}"
    plain = name.removesuffix(UNCERTAIN)
    return (
        f"decoded from {plain}, which is a guess: the bytes may be text in another encoding. Store it as UTF-8 if wrong"
    )


def _lenient(error: UnicodeError) -> tuple[str, int]:
    """Replace an undecodable sequence; a byte undefined in windows-1252 becomes Latin-1's control character."""
    if not isinstance(error, UnicodeDecodeError):
        raise error
    if error.encoding in ("charmap", "cp1252", SINGLE_BYTE):
        return chr(error.object[error.start]), error.start + 1
    return "\ufffd", error.end


codecs.register_error("exai-lenient", _lenient)


def _decodes(data: bytes, name: str) -> bool:
    try:
        for _ in _pieces(data, name, "strict"):
            pass
    except UnicodeDecodeError:
        return False
    return True


def _broken(data: bytes, name: str) -> int:
    """Return how many places cannot be decoded."""
    return sum(piece.count("\ufffd") for piece in _pieces(data, name, "replace"))


def _pieces(data: bytes, name: str, errors: str) -> Iterator[str]:
    """Decode a piece at a time: as a whole the text may take four times the file's memory."""
    decoder = codecs.getincrementaldecoder(CODECS.get(name, name))(errors)
    for start in range(0, len(data), PIECE_BYTES):
        yield decoder.decode(data[start : start + PIECE_BYTES], final=start + PIECE_BYTES >= len(data))


def _wide(data: bytes) -> str | None:
    """Return the encoding of a text whose characters have two or four bytes and no mark, by where its zeros are."""
    quarter = len(data) // 4
    if quarter and len(data) % 4 == 0:
        zeros = [data[place::4].count(0) for place in range(4)]
        if zeros[3] == quarter and zeros[2] >= quarter * 0.9 and zeros[0] < quarter * 0.1:
            return "utf-32-le"
        if zeros[0] == quarter and zeros[1] >= quarter * 0.9 and zeros[3] < quarter * 0.1:
            return "utf-32-be"
    half = len(data) // 2
    if not half or len(data) % 2:
        return None
    low, high = data[::2].count(0), data[1::2].count(0)
    names = ("utf-16-le", "utf-16-be") if high > low else ("utf-16-be", "utf-16-le")
    # ASCII text has a zero byte in each character. Chinese text has zeros in line ends and digits only, so it is
    # recognized by the share of plausible characters.
    least = half * (0.3 if half >= LEAST_WIDE_CHARS else MOSTLY)
    if max(low, high) > least and min(low, high) < max(low, high) / 8:
        return names[0] if _plausible(data, names[0]) >= 1 - MOST_CONTROL else None
    if half < LEAST_WIDE_CHARS:
        return None
    name = max(names, key=lambda each: _plausible(data, each))
    return name if _plausible(data, name) >= MOSTLY else None


def _plausible(data: bytes, name: str) -> float:
    """Return the share of characters that texts are made of."""
    text = data.decode(name, errors="replace")
    return len(PLAIN.findall(text)) / len(text)


def _escaped(data: bytes) -> str | None:
    """ISO-2022-JP is written with ASCII bytes and escapes."""
    if b"\x1b$" in data and _decodes(data, "iso2022_jp"):
        return "iso-2022-jp"
    return None


def _guessed(data: bytes) -> str:
    runs = [match.span() for match in islice(HIGH.finditer(data), MOST_RUNS)]
    high = sum(end - begin for begin, end in runs)
    sample = _sample(data, runs)
    if _is_damaged(sample):
        return DAMAGED_UTF_8
    for codec, is_certain in guess(sample):
        if codec in NAMES and _broken(data, codec) <= max(2, high * MOST_BROKEN):
            return NAMES[codec] + ("" if is_certain else UNCERTAIN)
    return SINGLE_BYTE + (UNCERTAIN if high >= LEAST_BYTES else "")


def _is_damaged(data: bytes) -> bool:
    """Return whether most non-ASCII bytes are valid UTF-8, as in a log written by two programs."""
    beyond = re.sub(r"[\0-\x7f]+", "", data.decode(errors="replace"))
    broken = beyond.count("\ufffd")
    return len(beyond) - broken >= max(LEAST_WHOLE, WHOLE_PER_BREAK * broken)


def _sample(data: bytes, runs: list[tuple[int, int]]) -> bytes:
    """Return the non-ASCII bytes with their surroundings, cut at ASCII bytes only so that no character is split."""
    pieces: list[bytes] = []
    size, last = 0, 0
    following = [begin for begin, _ in runs[1:]] + [len(data)]
    for (begin, end), next_begin in zip(runs, following, strict=True):
        first, last = max(last, begin - BESIDE_BYTES), min(end + BESIDE_BYTES, next_begin)
        pieces.append(data[first:last])
        size += last - first
        if size > SAMPLE_BYTES:
            break
    return b"".join(pieces)[: 2 * SAMPLE_BYTES]
