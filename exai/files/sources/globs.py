"""Match paths with globs: `*`, `?`, `[a-z]`, `{a,b}`, and `**` for any number of directories.

Invariant: matching takes polynomial time for every pattern; a pattern without magic matches its own text only.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from fnmatch import translate
from functools import lru_cache
from typing import Final

from exai.errors import InvalidArgument, shown

MAGIC: Final = re.compile(r"[*?\[{]")
BRACES: Final = re.compile(r"\{([^{}]*,[^{}]*)\}")
MAX_ALTERNATIVES: Final = 64
ANY_DEPTH: Final = "**"


def is_glob(text: str) -> bool:
    """Return whether a text has a character with a meaning in globs."""
    return MAGIC.search(text) is not None


def alternatives(field: str, pattern: str) -> tuple[str, ...]:
    """Return a pattern with its braces expanded. Raises `InvalidArgument` for too many alternatives."""
    done: list[str] = []
    waiting = [pattern]
    while waiting:
        each = waiting.pop()
        found = BRACES.search(each)
        if found is None:
            done.append(each)
        else:
            parts = found[1].split(",")
            waiting += [each[: found.start()] + part + each[found.end() :] for part in reversed(parts)]
        if len(waiting) + len(done) > MAX_ALTERNATIVES:
            cure = "Give several entries instead"
            raise InvalidArgument(field, f"{shown(pattern)} has more than {MAX_ALTERNATIVES} alternatives", cure)
    return tuple(dict.fromkeys(done))


def fixed_part(pattern: str) -> tuple[str, str]:
    """Divide a pattern into the directories before the first magic one, and the rest."""
    parts = pattern.split("/")
    magic = next((place for place, part in enumerate(parts) if is_glob(part)), len(parts) - 1)
    return "/".join(parts[:magic]) or pattern[: pattern.startswith("/")], "/".join(parts[magic:])


def matches(pattern: str, path: str) -> bool:
    """Return whether a relative path matches a pattern without braces, part by part."""
    return _match(tuple(pattern.split("/")), path.split("/"))


def _match(patterns: Sequence[str], names: Sequence[str]) -> bool:
    """Keep the set of pattern places that may come next, as a finite automaton does."""
    places = _closed({0}, patterns)
    for name in names:
        following = set()
        for place in places:
            if place < len(patterns):
                if patterns[place] == ANY_DEPTH:
                    following |= {place, place + 1} if place == len(patterns) - 1 else {place}
                elif _matches_name(patterns[place], name):
                    following.add(place + 1)
        places = _closed(following, patterns)
    return len(patterns) in places


def _closed(places: set[int], patterns: Sequence[str]) -> set[int]:
    """Add the places that follow without a name: `**` also stands for no directory, but not for no file."""
    for place in sorted(places):
        last = place
        while last < len(patterns) - 1 and patterns[last] == ANY_DEPTH:
            last += 1
            places.add(last)
    return places


def _matches_name(pattern: str, name: str) -> bool:
    # Also by its own text: names such as `[id].tsx` are common.
    return name == pattern or _compiled(pattern).match(name) is not None


@lru_cache(maxsize=512)
def _compiled(pattern: str) -> re.Pattern[str]:
    return re.compile(translate(pattern))
