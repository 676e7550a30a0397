"""Parses an argument that names a file: a path, a range of its lines, or an address.

Invariant: a text that is the path of an existing file denotes it, even if it could also be read as a range or a glob.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import PureWindowsPath
from typing import Final
from urllib.parse import unquote

RANGE: Final = re.compile(
    r"(?P<path>.+?)(?::(?P<first>\d{1,9})(?:-(?P<last>\d{1,9})|:\d{1,9})?:?|#L(?P<from>\d{1,9})(?:-L?(?P<to>\d{1,9}))?)"
)
DRIVE: Final = re.compile(r"(?P<drive>[A-Za-z]):[\\/](?P<rest>.*)", re.DOTALL)
SHARE: Final = re.compile(r"[\\/]{2}wsl(?:\.localhost|\$)[\\/][^\\/]+(?P<rest>[\\/].*)", re.DOTALL | re.IGNORECASE)
"""A path into a Linux distribution as Windows writes it."""


@dataclass(frozen=True, slots=True)
class LineRange:
    """Lines of a file, both included, from 1."""

    first: int
    last: int

    def __str__(self) -> str:
        return str(self.first) if self.first == self.last else f"{self.first}-{self.last}"


def path_of(entry: str) -> str:
    """Return the path that an entry means; an address of a file, and a path of Windows on Linux, are translated."""
    text = entry.strip()
    if text.lower().startswith("file://"):
        # The name of a host stands before the path; it is this machine's.
        text = "/" + unquote(text[len("file://") :].partition("/")[2])
    if os.name == "nt":
        return text
    if found := SHARE.fullmatch(text):
        return found["rest"].replace("\\", "/")
    if found := DRIVE.fullmatch(text):
        return f"/mnt/{found['drive'].lower()}/{PureWindowsPath(found['rest']).as_posix()}"
    return text


def range_of(path: str) -> tuple[str, LineRange] | None:
    """Return a path and the lines behind it (`a.py:10`, `a.py:10-80`, `a.py:10:5`, `a.py#L10-L80`), if it has any."""
    found = RANGE.fullmatch(path)
    if found is None:
        return None
    first = int(found["first"] or found["from"])
    last = int(found["last"] or found["to"] or first)
    first, last = max(min(first, last), 1), max(first, last, 1)
    return found["path"], LineRange(first, last)
