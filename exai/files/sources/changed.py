"""Adds the changes of a git repository to the sources: the patch first, then new files, then changed files as a whole.

Invariant: the patch has no line of a file that may not be read by its path.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from exai.errors import InvalidArgument
from exai.files.paths import Roots, is_directory
from exai.files.sources.filling import LEAST_CUT_TOKENS, RANGE_FILE_BYTES, Filling, SourceFile
from exai.files.sources.git.diffs import Change, ChangeSet, Differ
from exai.files.sources.git.repository import Git, Repository
from exai.files.sources.skipping import reason_by_name

PATCH_TYPE: Final = "text/x-diff"
HERE: Final = "start `exai connect` in it (over HTTP: name it in EXAI-Directory)"
LINE: Final = re.compile(r"^([+-])(?![+-]{2} )", re.MULTILINE)
BINARY: Final = re.compile(r"^Binary files .* differ$", re.MULTILINE)


def repository_of(git: Git, roots: Roots, directory: Path | None, named: Sequence[Path]) -> Repository:
    """Return the repository that holds the directory, or else all named files, or else is the only root.

    Raises `InvalidArgument` for none or several, `NotConfigured` without git.
    """
    git.require()
    given = [directory] if directory else [path if is_directory(path) else path.parent for path in named]
    places = list(dict.fromkeys(given or roots.directories))
    found = {each.top: each for each in (git.find(place) for place in places) if each is not None}
    if len(found) == 1:
        return next(iter(found.values()))
    listed = ", ".join(map(str, found or places)) or "the allowed roots"
    if found:
        cure = f"Name files of one of them by absolute paths, or {HERE}"
        raise InvalidArgument("diff", f"there are several repositories: {listed}", cure)
    cure = f"Name files of a git repository below an allowed root, or {HERE}"
    raise InvalidArgument("diff", f"there is no git repository in {listed}", cure)


class ChangedFiles:
    """Adds one diff to the sources; blocks."""

    def __init__(self, roots: Roots, filling: Filling, base: Path) -> None:
        self._roots, self._filling, self._base = roots, filling, base

    def add(self, differ: Differ, spec: str) -> tuple[str, ...]:
        """Read the changes and add them; return notes about them. Raises `InvalidArgument`."""
        found = differ.read(spec)
        if not found.changes:
            self._filling.left_out.add(f"diff {found.title}", f"no changes in {found.top}")
        kept = [change for change in found.changes if self._is_kept(found.top, change)]
        self._add_patch(found, kept)
        whole = [change for change in kept if change.is_file and (not change.patch or not change.is_new)]
        whole.sort(key=lambda change: bool(change.patch))
        contents = differ.contents(whole)
        for change in whole:
            path = found.top / change.path
            if change.blob is None:
                self._filling.add(SourceFile(path, self._shown(found.top, change.path), "diff"))
            elif change.blob in contents:
                data = contents[change.blob]
                self._filling.add(SourceFile(path, self._shown(found.top, change.path), "diff", data=data))
        return found.notes

    def _is_kept(self, top: Path, change: Change) -> bool:
        """Return whether a change is shown; if not, record the reason."""
        reason = "deleted" if change.is_deleted else reason_by_name(change.path)
        if BINARY.search(change.patch) and "\n@@ " not in change.patch:
            reason = reason or "binary"
        if not self._may_be_read(top, change):
            reason = "may not be read"
        if reason:
            self._filling.left_out.add(self._shown(top, change.path), reason)
        return reason is None

    def _may_be_read(self, top: Path, change: Change) -> bool:
        # The link itself is what git compares, so that the places of names decide, not their targets.
        places = [(top / name).parent.resolve() / Path(name).name for name in (change.path, change.old_path)]
        if change.is_file and not all(self._roots.allows(place) for place in places if not place.is_symlink()):
            return False
        if change.blob is None and change.is_file and not change.is_deleted and _has_other_names(top / change.path):
            try:
                self._roots.read("diff", str(top / change.path), RANGE_FILE_BYTES)
            except InvalidArgument:
                return False
        return True

    def _add_patch(self, found: ChangeSet, kept: Sequence[Change]) -> None:
        sections: list[str] = []
        tokens = 0
        for change in kept:
            if not change.patch:
                continue
            hunks = _text(change.patch).split("\n@@ ")
            text, kept_hunks = self._fitting(hunks, self._filling.left_tokens - tokens)
            if kept_hunks < len(hunks) - 1:
                shown = f"changes of {self._shown(found.top, change.path)}"
                number = f"{len(hunks) - 1 - kept_hunks:,} of {len(hunks) - 1:,} places"
                self._filling.left_out.add(shown, f"outside the token budget: {number}")
            if text:
                sections.append(text)
                tokens += self._filling.tokens(text)
        if sections:
            text = "".join(sections)
            signs = [sign[1] for sign in LINE.finditer(text)]
            files = f"{len(sections):,} file{'s' if len(sections) > 1 else ''}"
            counts = f"+{signs.count('+'):,} -{signs.count('-'):,}"
            shown = f"diff {found.title} ({files}, {counts})"
            name = f"diff {found.title}".replace("/", "-")
            self._filling.add_text(shown, name, text, media_type=PATCH_TYPE, tokens=tokens)

    def _fitting(self, hunks: Sequence[str], left_tokens: int) -> tuple[str, int]:
        """Return the head of a file's patch with the hunks that fit, and their number; nothing if none does."""
        text, *following = hunks
        kept = 0
        if left_tokens < LEAST_CUT_TOKENS:
            return "", 0
        if self._filling.tokens(whole := "\n@@ ".join(hunks)) <= left_tokens:
            return whole, len(following)
        for hunk in following:
            longer = f"{text}\n@@ {hunk}"
            if self._filling.tokens(longer) > left_tokens:
                break
            text, kept = longer, kept + 1
        if self._filling.tokens(text) > left_tokens or (following and not kept):
            return "", 0
        return text if text.endswith("\n") else f"{text}\n", kept

    def _shown(self, top: Path, name: str) -> str:
        path = top / name
        below = path.relative_to(self._base).as_posix() if path.is_relative_to(self._base) else name
        return _text(below)


def _text(raw: str) -> str:
    """Return a text of git without the bytes that are no UTF-8."""
    return raw.encode(errors="surrogateescape").decode(errors="replace")


def _has_other_names(path: Path) -> bool:
    try:
        return path.lstat().st_nlink > 1
    except OSError:
        return False
