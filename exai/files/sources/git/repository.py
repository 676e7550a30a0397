"""Runs git on a repository below an allowed root, as a reader that the repository cannot make run anything.

Invariant: no program that a repository's configuration or attributes name is started, nothing is fetched, no lock is
taken, and the user's own configuration has no effect. Every command ends with its time or output limit.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from exai.errors import InvalidArgument, NotConfigured
from exai.files.paths import ROOTS_SETTING, Roots
from exai.files.sources.bounds import Bounds
from exai.files.sources.programs import NOT_STARTED, ProgramOutput, inherited, run

LISTING_BYTES: Final = 8 * 1_048_576
ANSWER_BYTES: Final = 65_536
MAX_STORES: Final = 20
"""Stores of objects that one repository may use; git itself follows lists of them through several levels."""

HOLDING: Final = frozenset({"pack", "info"})
"""Directories of a store that hold objects, beside those with the first two digits of the names."""


SETTINGS: Final = {
    "core.fsmonitor": "false",
    "core.hooksPath": os.devnull,
    "core.attributesFile": os.devnull,
    "core.excludesFile": os.devnull,
    "core.quotePath": "false",
    "diff.external": "",
    "diff.orderFile": os.devnull,
    "diff.submodule": "short",
    "protocol.allow": "never",
    # Access is decided by the roots alone; a mounted repository often belongs to another user.
    "safe.directory": "*",
}
ENVIRONMENT: Final = {
    "GIT_ALLOW_PROTOCOL": "",
    "GIT_ATTR_NOSYSTEM": "1",
    "GIT_CONFIG_GLOBAL": os.devnull,
    "GIT_CONFIG_NOSYSTEM": "1",
    "GIT_CONFIG_SYSTEM": os.devnull,
    "GIT_NO_LAZY_FETCH": "1",
    "GIT_NO_REPLACE_OBJECTS": "1",
    "GIT_OPTIONAL_LOCKS": "0",
    "GIT_TERMINAL_PROMPT": "0",
    "HOME": os.devnull,
    "LC_ALL": "C",
    "XDG_CONFIG_HOME": os.devnull,
}


@dataclass(frozen=True, slots=True)
class Repository:
    """A work tree and the settings that switch off the filters of its configuration."""

    top: Path
    settings: tuple[str, ...] = ()


class Git:
    """The program `git`; blocks, so it belongs into a thread."""

    def __init__(self, roots: Roots, bounds: Bounds) -> None:
        self._roots, self._bounds = roots, bounds
        self._program = shutil.which("git")
        self._own_stores: frozenset[Path] = frozenset()

    @property
    def is_installed(self) -> bool:
        """Return whether there is a program to run."""
        return self._program is not None

    def require(self) -> None:
        """Raise `NotConfigured` if git is not installed."""
        if self._program is None:
            raise NotConfigured("reading a git diff", "Install git on the daemon's machine, or name the files instead")

    def find(self, directory: Path) -> Repository | None:
        """Return the repository that holds a directory below a root; None if there is none below that root.

        Raises `InvalidArgument` for a repository whose objects or work tree are elsewhere.
        """
        if not self.is_installed:
            return None
        answer = self.run(directory, "rev-parse", "--show-toplevel", "--absolute-git-dir", "--git-common-dir")
        lines = answer.line.split("\n")
        if answer.status != 0 or len(lines) != 3:
            return None
        top, own, common = (Path(directory, line).resolve() for line in lines)
        places = (top, own, common, own / "index")
        if not all(map(self._roots.allows, places)) or not self._has_own_objects(common / "objects"):
            raise InvalidArgument(
                "diff",
                f"the repository of {directory} has its work tree or its objects outside the allowed roots",
                f"Add that directory to {ROOTS_SETTING}, or name the files instead",
            )
        if not directory.is_relative_to(top):
            return None
        return Repository(top, self._without_filters(directory))

    def run(
        self,
        directory: Path,
        *arguments: str,
        settings: Sequence[str] = (),
        limit_bytes: int = ANSWER_BYTES,
        given: bytes = b"",
    ) -> ProgramOutput:
        """Run a command in a directory; `given` is its standard input, less than a pipe holds.

        An answer without a status of 0 if it cannot be started.
        """
        if self._program is None:
            return ProgramOutput(NOT_STARTED, b"")
        command = [self._program, "--no-pager", "--literal-pathspecs"]
        for setting in (*(f"{name}={value}" for name, value in SETTINGS.items()), *settings):
            command += ["-c", setting]
        environment = {**inherited(), **ENVIRONMENT, "GIT_CEILING_DIRECTORIES": self._ceiling(directory)}
        return run([*command, *arguments], directory, environment, self._bounds, given=given, limit_bytes=limit_bytes)

    def _has_own_objects(self, objects: Path) -> bool:
        """Return whether all that git can find through a store is below the roots: by links, or in stores it borrows.

        False also if that cannot be determined, or not in time.
        """
        waiting, known = [objects], set(self._own_stores)
        while waiting:
            store = waiting.pop().resolve()
            if store in known:
                continue
            known.add(store)
            borrowed = _alternates(store)
            if borrowed is None or len(known) > MAX_STORES or self._bounds.is_late:
                return False
            if not all(map(self._roots.allows, (store, *_links(store)))):
                return False
            waiting += borrowed
        self._own_stores = frozenset(known)
        return True

    def _ceiling(self, directory: Path) -> str:
        """Return the directory from which on git looks no further upwards: the one above the root."""
        _, root = self._roots.find("directory", str(directory))
        return str(root.parent)

    def _without_filters(self, directory: Path) -> tuple[str, ...]:
        """Return settings that make every configured filter empty: a diff of the work tree would run them."""
        found = self.run(directory, "config", "-z", "--name-only", "--get-regexp", r"^filter\.")
        drivers = {name.rpartition(".")[0] for name in found.items}
        if found.is_cut or any("=" in driver for driver in drivers):
            raise InvalidArgument(
                "diff", "the repository's configuration has filters that cannot be switched off", "Name the files"
            )
        keys = ("clean=", "smudge=", "process=", "required=false")
        return tuple(f"{driver}.{key}" for driver in sorted(drivers) for key in keys)


def _alternates(store: Path) -> list[Path] | None:
    """Return the stores from which a store borrows objects; None if git may read the list in another way."""
    try:
        with (store / "info" / "alternates").open("rb") as stream:
            listed = stream.read(ANSWER_BYTES + 1)
    except OSError:
        return []
    lines = [line for line in listed.split(b"\n") if line and not line.startswith(b"#")]
    if len(listed) > ANSWER_BYTES or b"\0" in listed or any(line.startswith(b'"') for line in lines):
        return None
    return [Path(store, os.fsdecode(line)) for line in lines]


def _links(store: Path) -> Iterator[Path]:
    """Yield the links among the directories and files of a store."""
    for entry in _entries(store):
        if entry.is_symlink():
            yield Path(entry.path)
        if (len(entry.name) == 2 or entry.name in HOLDING) and entry.is_dir():
            yield from (Path(inner.path) for inner in _entries(entry.path) if inner.is_symlink())


def _entries(directory: Path | str) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(directory) as found:
            return list(found)
    except OSError:
        return []
