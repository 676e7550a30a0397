"""Names and media types of files, as people and models see them.

Invariant: a name is one line, and shows its characters in the order in which they are stored.
"""

from __future__ import annotations

import mimetypes
import unicodedata
from typing import Final

from exai.errors import InvalidArgument

MAX_NAME_CHARS: Final = 255
MAX_MEDIA_TYPE_CHARS: Final = 255
DEFAULT_MEDIA_TYPE: Final = "application/octet-stream"
DEFAULT_NAME: Final = "file"

BREAKING: Final = ("Cc", "Cs", "Zl", "Zp")
TURNING: Final = frozenset(map(chr, (0x061C, 0x200E, 0x200F, *range(0x202A, 0x202F), *range(0x2066, 0x206A))))
"""Characters that a name must not contain: categories that end a line or are no text, and bidirectional controls."""


def checked_name(field: str, name: object) -> str:
    """Return a name without the spaces around it. Raises `InvalidArgument`."""
    if not isinstance(name, str) or not _is_name(name.strip()):
        cure = f"Use 1 to {MAX_NAME_CHARS} characters, none of them a control character"
        raise InvalidArgument(field, "is not a file name", cure)
    return name.strip()


def checked_media_type(field: str, media_type: object, name: str) -> str:
    """Return a media type, by default that of the name's ending. Raises `InvalidArgument`."""
    given = (mimetypes.guess_type(name)[0] or DEFAULT_MEDIA_TYPE) if media_type in (None, "") else media_type
    if not isinstance(given, str) or not _is_media_type(given):
        raise InvalidArgument(field, "is not a media type", f"Use 1 to {MAX_MEDIA_TYPE_CHARS} printable characters")
    return given


def shown_name(name: str) -> str:
    """Return a name of an export as it can be stored, without the characters that cannot be shown."""
    shown = "".join(filter(_may_be_shown, name[:MAX_NAME_CHARS])).strip()
    return shown if _is_name(shown) else DEFAULT_NAME


def one_line(text: str) -> str:
    """Return a sentence about a file on one line, with a replacement for each character that cannot be shown."""
    return text if text.isprintable() else "".join(char if _may_be_shown(char) else "\ufffd" for char in text)


def shown_media_type(media_type: str) -> str:
    """Return a media type of an export as it can be stored."""
    return media_type if _is_media_type(media_type) else DEFAULT_MEDIA_TYPE


def _is_name(text: str) -> bool:
    return 0 < len(text) <= MAX_NAME_CHARS and any(map(str.isprintable, text)) and all(map(_may_be_shown, text))


def _may_be_shown(char: str) -> bool:
    """Return whether a name may contain a character; joiners, any spaces and emoji unknown to Python are allowed."""
    return char.isprintable() or (unicodedata.category(char) not in BREAKING and char not in TURNING)


def _is_media_type(text: str) -> bool:
    return 0 < len(text) <= MAX_MEDIA_TYPE_CHARS and text.isprintable()
