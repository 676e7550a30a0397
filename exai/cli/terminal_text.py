"""Makes text of models, titles and errors safe for output to a terminal.

Invariant: text written to a terminal through this module cannot move its cursor, change its title, colours or
clipboard, or reorder words; text written to files and pipes is unchanged.
"""

from __future__ import annotations

import re
from typing import TextIO

_CONTROL = re.compile(
    # C0 without tab and line feed, DEL, C1; embedding, override and isolation of writing directions; line separators.
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\u2028\u2029]"
)
SYMBOLS = 0x2400
"""Start of Unicode's visible symbols for the first control characters."""


def printable(text: str) -> str:
    """Return `text` with every control character but tab and line feed replaced by a visible symbol."""
    return _CONTROL.sub(_sign, text.replace("\r\n", "\n").removesuffix("\r"))


def shown(text: str, stream: TextIO) -> str:
    """Return the text to write to `stream`: control characters are replaced only for a terminal."""
    return printable(text) if stream.isatty() else text


def _sign(match: re.Match[str]) -> str:
    code = ord(match[0])
    if code < 0x20:
        return chr(SYMBOLS + code)
    return chr(SYMBOLS + 0x21) if code == 0x7F else "\ufffd"
