"""Lists the files below a directory: by git in a repository, otherwise by the rules of the `.gitignore` files.

Invariant: links to directories are not followed, closed paths are not entered, and a listing ends at its limits.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from pathspec import GitIgnoreSpec

from exai.errors import InvalidArgument
from exai.files.paths import Roots, is_directory
from exai.files.sources.bounds import MAX_DEPTH, Bounds
from exai.files.sources.git.repository import LISTING_BYTES, Git

IGNORE_FILE: Final = ".gitignore"
IGNORE_BYTES: Final = 65_536
IGNORE_LINES: Final = 1_000
IGNORE_STARS: Final = 6
"""More of them in one pattern take too long to match."""

NEVER: Final = frozenset({".git", ".hg", ".svn", ".jj"})
USUALLY_IGNORED: Final = frozenset(
    {
        ".cache",
        ".gradle",
        ".mypy_cache",
        ".next",
        ".nox",
        ".pytest_cache",
        ".ruff_cache",
        ".terraform",
        ".tox",
        ".venv",
        "__pycache__",
        "bower_components",
        "node_modules",
        "venv",
    }
)
"""Directories that a project without git leaves out as well."""

Rules = tuple[tuple[Path, GitIgnoreSpec], ...]


@dataclass(slots=True)
class Tree:
    """The files below `top`, as paths relative to it, in order; `left_out` names the directories not entered."""

    top: Path
    files: list[str] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
    cut: str | None = None
    """Why the listing is incomplete."""


class TreeLister:
    """Lists directories; keeps every listing of one reading."""

    def __init__(self, roots: Roots, git: Git, bounds: Bounds) -> None:
        self._roots, self._git, self._bounds = roots, git, bounds
        self._known: dict[Path, Tree] = {}
        self.touch = bounds.touch

    def list(self, top: Path) -> Tree:
        """Return the files below a directory that is below a root."""
        if top not in self._known:
            self.touch("files", str(top))
            tree = self._known[top] = Tree(top)
            self._bounds.begin_listing()
            if not self._by_git(tree, Path(), 0):
                self._by_walking(tree)
            tree.files = sorted(dict.fromkeys(tree.files), key=lambda name: name.split("/"))
        return self._known[top]

    def _by_git(self, tree: Tree, inner: Path, depth: int) -> bool:
        """Add the files of a repository, and of those inside it; return False if the directory is in none."""
        place = tree.top / inner
        try:
            repository = self._git.find(place)
        except InvalidArgument:
            return False
        if repository is None:
            return False
        found = self._git.run(
            place, "ls-files", "-z", "--cached", "--others", "--exclude-standard", limit_bytes=LISTING_BYTES
        )
        if found.status != 0 and not found.is_cut:
            return False
        if found.is_cut:
            tree.cut = self._bounds.reason() if self._bounds.is_over else "it has too many files"
        for name in found.items:
            self._bounds.entries -= 1
            if self._bounds.is_over:
                tree.cut = self._bounds.reason()
                break
            path = place / name
            # A repository inside this one, or a submodule, is listed as a directory.
            if name.endswith("/") or (is_directory(path) and not path.is_symlink()):
                if depth < MAX_DEPTH and path.resolve() != tree.top and self._roots.allows(path):
                    self._by_git(tree, inner / name, depth + 1)
            else:
                tree.files.append((inner / name).as_posix())
        return True

    def _by_walking(self, tree: Tree) -> None:
        """Add files by walking, nearest directories first."""
        waiting: list[tuple[Path, Rules, int]] = [(tree.top, self._rules_above(tree.top), 0)]
        for directory, above, depth in waiting:
            if self._bounds.is_over:
                tree.cut = self._bounds.reason()
                return
            rules = (*_rules_of(directory), *above)
            for name, is_dir in self._entries(tree, directory):
                path = directory / name
                relative = path.relative_to(tree.top).as_posix()
                if _is_ignored(path, rules, is_dir=is_dir):
                    continue
                if not is_dir:
                    tree.files.append(relative)
                elif name in USUALLY_IGNORED:
                    tree.left_out.append(f"{relative}/ (dependencies or caches)")
                elif depth == MAX_DEPTH:
                    tree.left_out.append(f"{relative}/ (more than {MAX_DEPTH} directories deep)")
                elif self._roots.allows(path):
                    waiting.append((path, rules, depth + 1))

    def _entries(self, tree: Tree, directory: Path) -> Iterator[tuple[str, bool]]:
        """Yield the names in a directory, in order, and whether each is a directory; no sockets, pipes and devices."""
        try:
            with os.scandir(directory) as entries:
                found = []
                for entry in entries:
                    self._bounds.entries -= 1
                    if self._bounds.is_over:
                        tree.cut = self._bounds.reason()
                        break
                    is_dir = entry.is_dir(follow_symlinks=False)
                    if entry.name not in NEVER and (
                        is_dir or entry.is_file(follow_symlinks=False) or entry.is_symlink()
                    ):
                        found.append((entry.name, is_dir))
        except OSError as error:
            relative = directory.relative_to(tree.top).as_posix()
            tree.left_out.append(f"{relative if relative != '.' else ''}/ (cannot be read: {error.strerror})")
            return
        yield from sorted(found)

    def _rules_above(self, top: Path) -> Rules:
        _, root = self._roots.find("files", str(top))
        above = [parent for parent in top.parents if parent.is_relative_to(root)]
        return tuple(rule for parent in above for rule in _rules_of(parent))


def _rules_of(directory: Path) -> Rules:
    """Return the rules of a directory's own file."""
    try:
        descriptor = os.open(directory / IGNORE_FILE, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return ()
    with os.fdopen(descriptor, "rb") as stream:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            return ()
        lines = stream.read(IGNORE_BYTES).decode(errors="replace").splitlines()[:IGNORE_LINES]
    return _spec(directory, [line for line in lines if line.count("*") <= IGNORE_STARS])


def _spec(directory: Path, lines: Sequence[str]) -> Rules:
    try:
        return ((directory, GitIgnoreSpec.from_lines(lines)),)
    except ValueError:
        # One wrong pattern; git ignores it alone.
        return tuple(rule for line in reversed(lines) for rule in _spec(directory, [line])) if len(lines) > 1 else ()


def _is_ignored(path: Path, rules: Rules, *, is_dir: bool) -> bool:
    """Apply the rules of the nearest directory first; the first rule that matches decides."""
    for directory, spec in rules:
        relative = path.relative_to(directory).as_posix() + ("/" if is_dir else "")
        included = spec.check_file(relative).include
        if included is not None:
            return included
    return False
