"""Text of models, titles and errors as it may be written to a terminal.

Invariant: nothing that is written to a terminal through here can move its cursor, change its title, colours or
clipboard, or show words in another order than they are stored; to files and pipes text goes unchanged.
"""

from __future__ import annotations

import re
from typing import TextIO

_CONTROL = re.compile(
    # C0 without tab and line feed, DEL, C1; embedding, override and isolation of writing directions; line separators.
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\u2028\u2029]"
)
SYMBOLS = 0x2400
"""Where Unicode has a visible sign for each of the first control characters."""


def printable(text: str) -> str:
    """Return `text` with a visible sign in the place of every control character but tab and line feed."""
    return _CONTROL.sub(_sign, text.replace("\r\n", "\n").removesuffix("\r"))


def shown(text: str, stream: TextIO) -> str:
    """Return what to write to `stream`: the text itself, unless a terminal would act on it."""
    return printable(text) if stream.isatty() else text


def _sign(match: re.Match[str]) -> str:
    code = ord(match[0])
    if code < 0x20:
        return chr(SYMBOLS + code)
    return chr(SYMBOLS + 0x21) if code == 0x7F else "\ufffd"
