"""Recognizes the images that models take, by their first bytes, and their size in pixels.

Invariant: only the header is read, and a header that is incomplete or contradicts itself is no image.
"""

from __future__ import annotations

import base64
import binascii
import re
from dataclasses import dataclass
from typing import Final

HEAD_CHARS: Final = 64
SIGNS: Final = {
    "image/png": re.compile(rb"\x89PNG\r\n\x1a\n"),
    "image/jpeg": re.compile(rb"\xff\xd8\xff"),
    "image/gif": re.compile(rb"GIF8[79]a"),
    "image/webp": re.compile(rb"RIFF....WEBP", re.DOTALL),
    "image/tiff": re.compile(rb"II\*\0|MM\0\*"),
    "image/avif": re.compile(rb"....ftyp(?:avif|avis)", re.DOTALL),
    "image/heic": re.compile(rb"....ftyp(?:hei[cxms]|mif1)", re.DOTALL),
    "image/svg+xml": re.compile(rb"<svg[\s>]|<\?xml.{0,1000}?<svg[\s>]", re.DOTALL),
}
"""The beginnings of images, also of those that no model reads."""

PNG: Final = b"\x89PNG\r\n\x1a\n"
GIF: Final = (b"GIF87a", b"GIF89a")
JPEG: Final = b"\xff\xd8\xff"
JPEG_SIZES: Final = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
"""Markers of the segments that hold the size."""

JPEG_ALONE: Final = frozenset({0x01, *range(0xD0, 0xD9)})
"""Markers without a segment."""

MAX_SEGMENTS: Final = 1_000


@dataclass(frozen=True, slots=True)
class ImageFacts:
    """The media type of an image and its size in pixels."""

    media_type: str
    width: int
    height: int


def image_of(data: bytes) -> ImageFacts | None:
    """Return what an image is; None for everything but PNG, JPEG, GIF and WebP."""
    found = None
    if data.startswith(PNG) and data[12:16] == b"IHDR":
        found = ImageFacts("image/png", _big(data[16:20]), _big(data[20:24]))
    elif data.startswith(GIF):
        found = ImageFacts("image/gif", _little(data[6:8]), _little(data[8:10]))
    elif data.startswith(JPEG):
        found = _jpeg(data)
    elif data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        found = _webp(data)
    return found if found and found.width and found.height else None


def _jpeg(data: bytes) -> ImageFacts | None:
    """Follow the segments up to the one with the size."""
    place = 2
    for _ in range(MAX_SEGMENTS):
        if data[place : place + 1] != b"\xff" or place + 9 > len(data):
            return None
        marker = data[place + 1]
        if marker == 0xFF:
            place += 1
        elif marker in JPEG_ALONE:
            place += 2
        elif marker in JPEG_SIZES:
            return ImageFacts("image/jpeg", _big(data[place + 7 : place + 9]), _big(data[place + 5 : place + 7]))
        else:
            place += 2 + max(_big(data[place + 2 : place + 4]), 2)
    return None


def _webp(data: bytes) -> ImageFacts | None:
    kind = data[12:16]
    if kind == b"VP8X" and len(data) >= 30:
        return ImageFacts("image/webp", _little(data[24:27]) + 1, _little(data[27:30]) + 1)
    if kind == b"VP8L" and len(data) >= 25 and data[20] == 0x2F:
        bits = _little(data[21:25])
        return ImageFacts("image/webp", (bits & 0x3FFF) + 1, ((bits >> 14) & 0x3FFF) + 1)
    if kind == b"VP8 " and data[23:26] == b"\x9d\x01\x2a":
        return ImageFacts("image/webp", _little(data[26:28]) & 0x3FFF, _little(data[28:30]) & 0x3FFF)
    return None


def _big(data: bytes) -> int:
    return int.from_bytes(data, "big")


def _little(data: bytes) -> int:
    return int.from_bytes(data, "little")


def image_type(data: bytes) -> str | None:
    """Return the media type of an image, by its first bytes."""
    return next((kind for kind, sign in SIGNS.items() if sign.match(data)), None)


def begins_image(text: str) -> bool:
    """Return whether base64 that is not all well formed begins as that of an image does."""
    head = text[:HEAD_CHARS].replace("\\/", "/")
    try:
        return image_type(base64.b64decode(head[: len(head) // 4 * 4], validate=True)) is not None
    except (binascii.Error, ValueError):
        return False
