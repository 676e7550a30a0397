"""The atomic steps of the cache protocol as Lua scripts; each file in `lua/` documents the guarantees of its script."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, fields
from importlib.resources import files


@dataclass(frozen=True, slots=True)
class Script:
    """A script's text and the digest by which the server identifies it."""

    name: str
    text: str
    sha: str

    @classmethod
    def of(cls, name: str, text: str) -> Script:
        """Return the script of this name and text."""
        return cls(name, text, hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest())


@dataclass(frozen=True, slots=True)
class Scripts:
    """All scripts, each named as its file."""

    read: Script
    fill: Script
    release: Script
    apply: Script
    watermark: Script
    advance: Script
    peek: Script
    find_answer: Script
    keep_answer: Script


def load_scripts() -> Scripts:
    """Read the files that are part of this package."""
    directory = files("exai.cache.redis").joinpath("lua")
    names = [field.name for field in fields(Scripts)]
    return Scripts(**{name: Script.of(name, directory.joinpath(f"{name}.lua").read_text("utf-8")) for name in names})
