"""Reads what changed in a git repository: the patch, new files, and the changed files as a whole.

Invariant: git receives only object names that it verified as commits, never a caller's text as an option.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Final

from exai.errors import InvalidArgument, shown
from exai.files.sources.git.repository import Git, Repository
from exai.files.sources.programs import ProgramOutput
from exai.files.sources.skipping import MAX_FILE_BYTES

UNCOMMITTED: Final = "uncommitted"
STAGED: Final = "staged"
UNSTAGED: Final = "unstaged"
RANGE: Final = re.compile(r"(?P<left>.*?)(?P<dots>\.{2,3})(?P<right>.*)", re.DOTALL)
OTHER_WORDS: Final = {
    "uncommitted": UNCOMMITTED,
    "working tree": UNCOMMITTED,
    "worktree": UNCOMMITTED,
    "staged": STAGED,
    "--staged": STAGED,
    "--cached": STAGED,
    "unstaged": UNSTAGED,
}
"""What else models write for the three."""

OWN: Final = "^!"
"""Behind a commit: its own changes."""

PATCH_BYTES: Final = 8 * 1_048_576
BLOB_BYTES: Final = 32 * 1_048_576
MAX_CHANGES: Final = 2_000
MAX_BLOBS: Final = 200
DEFAULT_BRANCHES: Final = ("main", "master")
OPTIONS: Final = (
    "--no-ext-diff",
    "--no-textconv",
    "--no-color",
    "--no-relative",
    "--ignore-submodules=dirty",
    "--src-prefix=a/",
    "--dst-prefix=b/",
    "--unified=3",
    "--diff-algorithm=histogram",
    "-M",
)
SECTION: Final = re.compile(r"^diff --(?:git|cc|combined) ", re.MULTILINE)
RENAMED: Final = re.compile(r"^(?:rename|copy) to (.*)$", re.MULTILINE)
ESCAPED: Final = re.compile(r"\\([0-7]{3}|.)", re.DOTALL)
ESCAPES: Final = {"a": "\a", "b": "\b", "t": "\t", "n": "\n", "v": "\v", "f": "\f", "r": "\r"}
MODES_OF_FILES: Final = ("100644", "100755", "100664")


@dataclass(frozen=True, slots=True)
class Change:
    """A changed file. `path` is relative to the repository, `old_path` its name before.

    `patch` is empty for a file that git does not track; that of another new file has all its lines. `blob` is the
    object with the content, None if that is the file on the disk. `is_file` is false for links and submodules.
    """

    path: str
    old_path: str
    patch: str = ""
    blob: str | None = None
    is_new: bool = False
    is_deleted: bool = False
    is_file: bool = True


@dataclass(frozen=True, slots=True)
class ChangeSet:
    """The changes that a specification means, in the order of their paths."""

    title: str
    top: Path
    changes: tuple[Change, ...]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class _Sides:
    """The sides of a diff: two commits, or a commit and the index or the work tree; None for the index on the left."""

    left: str | None
    right: str | None = None
    is_staged: bool = False
    notes: tuple[str, ...] = ()

    @property
    def has_work_tree(self) -> bool:
        return self.right is None and not self.is_staged

    @property
    def arguments(self) -> tuple[str, ...]:
        return (*(("--cached",) if self.is_staged else ()), *filter(None, (self.left, self.right)))


class Differ:
    """Reads the changes of one repository; blocks."""

    def __init__(self, git: Git, repository: Repository) -> None:
        self._git, self._repository = git, repository

    def read(self, spec: str) -> ChangeSet:
        """Return the changes that `spec` means. Raises `InvalidArgument` for a revision that is not there."""
        sides = self._sides(spec)
        changes, notes = self._compare(sides)
        if not changes and spec.rpartition("..")[2] in ("", "HEAD") and ".." in spec:
            # On the base branch itself a range is empty, and the changes to review are those of the work tree.
            uncommitted = self._sides(UNCOMMITTED)
            changes, more = self._compare(uncommitted)
            if changes:
                said = f"diff: {shown(spec)} has no changes, so that the uncommitted ones were read"
                return ChangeSet(
                    UNCOMMITTED, self._repository.top, changes, (*sides.notes, *uncommitted.notes, said, *more)
                )
        return ChangeSet(spec, self._repository.top, changes, (*sides.notes, *notes))

    def contents(self, changes: Sequence[Change]) -> dict[str, bytes]:
        """Return the contents of the objects of some changes; those over the limits are missing."""
        wanted = list(dict.fromkeys(change.blob for change in changes if change.blob and change.is_file))[:MAX_BLOBS]
        given = "".join(f"{blob}\n" for blob in wanted).encode()
        if not wanted:
            return {}
        sizes = self._run("cat-file", "--batch-check=%(objectname) %(objecttype) %(objectsize)", given=given)
        small = [
            name
            for name, kind, size in (line.split() for line in sizes.line.split("\n") if line.count(" ") == 2)
            if kind == "blob" and int(size) <= MAX_FILE_BYTES
        ]
        given = "".join(f"{blob}\n" for blob in small).encode()
        return dict(_objects(self._run("cat-file", "--batch", given=given, limit_bytes=BLOB_BYTES).data))

    def _sides(self, spec: str) -> _Sides:
        text = spec.strip().removeprefix("git diff ").strip()
        text = OTHER_WORDS.get(text.lower().removesuffix(" changes"), text)
        if text.lower() == UNCOMMITTED:
            return _Sides(self._head())
        if text.lower() == STAGED:
            return _Sides(self._head(), is_staged=True)
        if text.lower() == UNSTAGED:
            return _Sides(None)
        if text.endswith(OWN):
            commit = self._commit(text.removesuffix(OWN))
            parent = self._verified(f"{commit}^")
            return _Sides(parent or self._empty(), commit)
        if found := RANGE.fullmatch(text):
            return self._range(found["left"], found["dots"], found["right"])
        commit = self._commit(text)
        note = f"diff: all changes since {text}, with those of the work tree; {text}{OWN} is that commit alone"
        return _Sides(commit, notes=(note,))

    def _range(self, left: str, dots: str, right: str) -> _Sides:
        notes: list[str] = []
        begin, end = (self._commit(side or "HEAD", notes) for side in (left, right))
        if dots == "...":
            base = self._run("merge-base", begin, end)
            if base.status != 0:
                raise InvalidArgument("diff", f"{left} and {right} have no common commit", "Use .. in place of ...")
            begin = base.line
        return _Sides(begin, end, notes=tuple(notes))

    def _head(self) -> str:
        return self._verified("HEAD") or self._empty()

    def _empty(self) -> str:
        """Return the id of the empty tree, which exists in every repository."""
        return self._run("hash-object", "-t", "tree", "--stdin").line

    def _commit(self, revision: str, notes: list[str] | None = None) -> str:
        """Return the commit that a revision names; a missing main branch is looked for under its usual names."""
        if found := self._verified(revision):
            return found
        if revision in DEFAULT_BRANCHES:
            for other in (f"origin/{revision}", "origin/HEAD", *DEFAULT_BRANCHES):
                if found := self._verified(other):
                    if notes is not None:
                        notes.append(f"diff: there is no {revision} here, so that {other} was taken")
                    return found
        raise InvalidArgument(
            "diff",
            f"{shown(revision)} is no commit of {self._repository.top}",
            "Use 'uncommitted', 'staged', 'unstaged', or a revision or range of git, such as main...HEAD",
        )

    def _verified(self, revision: str) -> str | None:
        if revision.startswith("-") or not revision.isprintable():
            return None
        found = self._run("rev-parse", "--verify", "--quiet", "--end-of-options", f"{revision}^{{commit}}")
        return found.line if found.status == 0 and re.fullmatch(r"[0-9a-f]{40,64}", found.line) else None

    def _compare(self, sides: _Sides) -> tuple[tuple[Change, ...], tuple[str, ...]]:
        command = ("diff", *OPTIONS, *sides.arguments)
        listed = self._run(*command, "--raw", "-z", "--no-abbrev", "--", limit_bytes=PATCH_BYTES)
        patch = self._run(*command, "--patch", "--", limit_bytes=PATCH_BYTES)
        if (listed.status != 0 and not listed.is_cut) or (patch.status != 0 and not patch.is_cut):
            raise InvalidArgument(
                "diff", f"git could not compare the files of {self._repository.top}", "Name the files instead"
            )
        notes = ["diff: it is too long, and was cut"] if listed.is_cut or patch.is_cut else []
        sections = _sections(os.fsdecode(patch.data), is_cut=patch.is_cut)
        changes = list(_listed(listed.items, sections, is_on_disk=sides.has_work_tree))
        if sides.has_work_tree:
            found = self._run("ls-files", "-z", "--others", "--exclude-standard", limit_bytes=PATCH_BYTES)
            changes += [Change(name, name, is_new=True) for name in found.items if not name.endswith("/")]
        if len(changes) > MAX_CHANGES:
            notes.append(f"diff: {len(changes):,} files have changed; the first {MAX_CHANGES:,} were considered")
        return tuple(changes[:MAX_CHANGES]), tuple(notes)

    def _run(self, *arguments: str, given: bytes = b"", limit_bytes: int = 65_536) -> ProgramOutput:
        settings = self._repository.settings
        return self._git.run(self._repository.top, *arguments, settings=settings, given=given, limit_bytes=limit_bytes)


def _listed(items: Sequence[str], sections: Mapping[str, str], *, is_on_disk: bool) -> Iterator[Change]:
    """Yield the changes that git lists: modes, objects and status, and behind them one path, or two of a rename."""
    left = iter(items)
    done: set[str] = set()
    for facts in left:
        modes = facts.split(" ")
        old_path = path = next(left, "")
        if len(modes) != 5 or not path:
            return
        _, mode, _, blob, status = modes
        if status[0] in "RC":
            path = next(left, "")
        if path in done:
            # An unmerged file is listed twice.
            continue
        done.add(path)
        yield Change(
            path,
            old_path,
            sections.get(path, ""),
            None if is_on_disk else blob,
            is_new=status[0] == "A",
            is_deleted=status[0] == "D",
            is_file=mode in MODES_OF_FILES or status[0] == "U",
        )


def _sections(patch: str, *, is_cut: bool) -> dict[str, str]:
    """Divide a patch by the path of the changed file; an incomplete last section is left out."""
    starts = [found.start() for found in SECTION.finditer(patch)]
    sections: dict[str, str] = {}
    for start, end in pairwise(starts if is_cut else [*starts, len(patch)]):
        section = patch[start:end]
        path = _path_of(section)
        sections[path] = sections.get(path, "") + section
    return sections


def _path_of(section: str) -> str:
    """Return the path after the change; git puts those with control characters into quotes."""
    head, _, body = section.partition("\n")
    kind, _, names = head.removeprefix("diff --").partition(" ")
    if found := RENAMED.search(body.partition("\n@@")[0]):
        return _unquoted(found[1])
    if kind != "git":
        return _unquoted(names)
    # Both names are the same but for their first letter.
    name = names[len(names) // 2 + 1 :]
    return _unquoted(name).removeprefix("b/")


def _unquoted(name: str) -> str:
    if not (name.startswith('"') and name.endswith('"')):
        return name
    plain = ESCAPED.sub(lambda found: _character(found[1]), name[1:-1])
    return os.fsdecode(plain.encode("latin-1")) if plain.isascii() or max(plain) <= "\xff" else plain


def _character(escape: str) -> str:
    return chr(int(escape, 8)) if escape.isdigit() else ESCAPES.get(escape, escape)


def _objects(data: bytes) -> Iterator[tuple[str, bytes]]:
    """Yield the names and contents that `cat-file --batch` writes; an incomplete last one is left out."""
    place = 0
    while (end := data.find(b"\n", place)) >= 0:
        facts = data[place:end].decode(errors="replace").split(" ")
        if len(facts) != 3 or not facts[2].isdigit():
            return
        begin, place = end + 1, end + 1 + int(facts[2]) + 1
        if place > len(data):
            return
        yield facts[0], data[begin : place - 1]
