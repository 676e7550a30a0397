"""Resolves the paths of a caller: below the given directory, otherwise below the roots.

Invariant: the daemon's own working directory is never used, names are searched only in a given directory, and an
ambiguous name is an error that lists its matches.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from exai.errors import InvalidArgument, shown
from exai.files.paths import Roots, is_directory
from exai.files.sources.listing import TreeLister

MAX_LISTED: Final = 10
MAX_VARIANTS: Final = 16
"""Paths that differ in the case of their letters only."""


class Resolver:
    """Resolves paths for one reading."""

    def __init__(self, roots: Roots, lister: TreeLister, directory: Path | None) -> None:
        self._roots, self._lister, self._directory = roots, lister, directory

    @property
    def bases(self) -> tuple[Path, ...]:
        """Return the directories in which relative paths are looked for."""
        return (self._directory,) if self._directory else self._roots.directories

    def existing(self, field: str, path: str) -> Path | None:
        """Return the file or directory that exists under this very path. Raises `InvalidArgument` for several."""
        found = [each for each in self._targets(field, path) if _exists(each)]
        if len(found) > 1:
            raise _ambiguous(field, path, found)
        return found[0] if found else None

    def directories(self, field: str, path: str) -> list[Path]:
        """Return every directory that a relative or absolute path means; the bases for an empty one."""
        return [each for each in dict.fromkeys(self._targets(field, path)) if is_directory(each)]

    def search(self, field: str, path: str) -> Path:
        """Return the only file or directory whose path ends with `path`. Raises `InvalidArgument` for none or several.

        The case of letters counts only if there are files that differ in nothing else.
        """
        wanted = path.replace("\\", "/").removeprefix("./").strip("/")
        if "\\" in path and (found := self.existing(field, path.replace("\\", "/"))):
            return found
        meant = list(dict.fromkeys(self._variants(field, path)))
        cut = None
        if not meant and not Path(path).is_absolute():
            meant, cut = self._ending(wanted)
        if cut:
            raise _unknown(field, path, meant, cut)
        if len(meant) == 1:
            return meant[0]
        raise _ambiguous(field, path, meant) if meant else _missing(field, path, self._similar(wanted))

    def shown(self, path: Path) -> str:
        """Return a path as callers and models see it: below the directory, or below the only root."""
        bases = self.bases if self._directory or len(self.bases) == 1 else ()
        below = next((path.relative_to(base).as_posix() for base in bases if path.is_relative_to(base)), str(path))
        return os.fsencode(below).decode(errors="replace")

    def _targets(self, field: str, path: str) -> Iterator[Path]:
        given = [path] if Path(path).is_absolute() else [str(base / path) for base in self.bases]
        if not given:
            # Raises that there are no roots.
            self._roots.find(field, path)
        for each in given:
            self._lister.touch(field, each)
            yield self._roots.find(field, each)[0]

    def _variants(self, field: str, path: str) -> Iterator[Path]:
        """Yield the paths that differ from this one only in the case of their letters."""
        for target in self._targets(field, path):
            _, root = self._roots.find(field, str(target))
            places = [root]
            for name in target.relative_to(root).parts:
                places = [variant for place in places for variant in _named(place, name)][:MAX_VARIANTS]
            yield from (place for place in places if self._roots.allows(place))

    def _ending(self, wanted: str) -> tuple[list[Path], str | None]:
        """Return the files and directories below the bases whose path ends with `wanted`, and why some may lack."""
        inner, found, cut = f"/{wanted}/", [], None
        for base in self.bases:
            tree = self._lister.list(base)
            cut = cut or tree.cut
            for name in tree.files:
                end = f"/{name}/".find(inner)
                if end >= 0:
                    found.append(base / name[: end + len(wanted)])
        return [path for path in dict.fromkeys(found) if self._roots.allows(path)], cut

    def _similar(self, wanted: str) -> list[Path]:
        """Return files of the same name elsewhere below the roots, in letters of any case."""
        last = wanted.rpartition("/")[2].casefold()
        tops = dict.fromkeys((*self.bases, *self._roots.directories))
        found = (
            top / name
            for top in tops
            for name in self._lister.list(top).files
            if name.rpartition("/")[2].casefold() == last
        )
        return [path for path in found if self._roots.allows(path)]


def _named(directory: Path, name: str) -> list[Path]:
    exact = directory / name
    if _exists(exact):
        return [exact]
    folded = name.casefold()
    try:
        return sorted(each for each in directory.iterdir() if each.name.casefold() == folded)
    except OSError:
        return []


def _exists(path: Path) -> bool:
    try:
        path.lstat()
    except (OSError, ValueError):
        return False
    return True


def _ambiguous(field: str, path: str, found: list[Path]) -> InvalidArgument:
    return InvalidArgument(field, f"{shown(path)} has {len(found)} meanings", f"Give one of: {_listed(found)}")


def _unknown(field: str, path: str, found: list[Path], cut: str) -> InvalidArgument:
    there_are = f"; there are: {_listed(found)}" if found else ""
    problem = f"{shown(path)} was looked for in too many files: {cut}"
    return InvalidArgument(field, problem, f"Give its absolute path, or the directory it is in{there_are}")


def _missing(field: str, path: str, similar: list[Path]) -> InvalidArgument:
    cure = (
        f"There are: {_listed(similar)}"
        if similar
        else "Give an absolute path, or start `exai connect` in its directory (over HTTP: name it in EXAI-Directory)"
    )
    return InvalidArgument(field, f"{shown(path)} is not there", cure)


def _listed(paths: list[Path]) -> str:
    shown_paths = [os.fsencode(path).decode(errors="replace") for path in dict.fromkeys(paths)]
    more = f" and {len(shown_paths) - MAX_LISTED} more" if len(shown_paths) > MAX_LISTED else ""
    return ", ".join(shown_paths[:MAX_LISTED]) + more
