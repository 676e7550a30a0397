"""Collects the sources of one request: named files first, then changed ones, then globs and directories.

Invariant: an entry that contributes nothing is said in `left_out`, never passed over.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from exai.errors import InvalidArgument, shown
from exai.files.loading import FileContent
from exai.files.names import one_line
from exai.files.paths import Roots, is_directory
from exai.files.sources.bounds import Bounds
from exai.files.sources.changed import ChangedFiles, repository_of
from exai.files.sources.entries import LineRange, path_of, range_of
from exai.files.sources.filling import RANGE_FILE_BYTES, SCAN_CURE, Estimate, Filling, SourceFile
from exai.files.sources.git.diffs import Differ
from exai.files.sources.git.repository import Git
from exai.files.sources.globs import ANY_DEPTH, alternatives, fixed_part, is_glob, matches
from exai.files.sources.listing import Tree, TreeLister
from exai.files.sources.resolving import Resolver


@dataclass(frozen=True, slots=True)
class Collected:
    """The texts to store, and notes about them."""

    contents: tuple[FileContent, ...] = ()
    read: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class _Scan:
    """A directory whose files are read, or those of them that match one of the patterns."""

    shown: str
    top: Path
    patterns: tuple[str, ...] = ()


def collect(
    roots: Roots,
    bounds: Bounds,
    estimate: Estimate,
    *,
    entries: Mapping[str, str],
    diff: str | None,
    directory: Path | None,
    budget_tokens: int,
    limit_bytes: int = RANGE_FILE_BYTES,
    scan_cure: str | None = SCAN_CURE,
) -> Collected:
    """Read the entries, by the field that each is in, and the diff, without texts over `limit_bytes`; blocks.

    Raises `InvalidArgument` or `NotConfigured`.
    """
    git = Git(roots, bounds)
    lister = TreeLister(roots, git, bounds)
    texts = [path_of(each) for each in entries.values()]
    needs_directory = not all(Path(each).is_absolute() for each in texts) or (diff is not None and not entries)
    if directory is not None:
        bounds.touch("directory", str(directory))
    top = _directory(roots, directory, is_needed=needs_directory) if directory is not None else None
    filling = Filling(roots, bounds, estimate, budget_tokens, limit_bytes, scan_cure=scan_cure)
    collecting = _Collecting(Resolver(roots, lister, top), lister, filling)
    found = [each for field, entry in entries.items() for each in collecting.understand(field, entry)]
    named = [each for each in found if isinstance(each, SourceFile)]
    scans = [each for each in found if isinstance(each, _Scan)]
    repository = None
    if diff is not None:
        places = [each.path if isinstance(each, SourceFile) else each.top for each in found]
        repository = repository_of(git, roots, top, places)
    collecting.add_named(named)
    if repository is not None and diff is not None:
        collecting.add_changes(ChangedFiles(roots, filling, top or repository.top), Differ(git, repository), diff)
    collecting.add_scans(scans)
    return collecting.result()


def _directory(roots: Roots, directory: Path, *, is_needed: bool) -> Path | None:
    """Return the caller's directory. Raises `InvalidArgument` for one that may not be read, unless it is not needed."""
    try:
        top, _ = roots.find("directory", path_of(str(directory)))
        if not is_directory(top):
            cure = "Give an existing directory, or absolute paths"
            raise InvalidArgument("directory", f"{shown(str(directory))} is not a directory", cure)
    except InvalidArgument:
        if is_needed:
            raise
        return None
    return top


class _Collecting:
    """One request's way from entries to texts."""

    def __init__(self, resolver: Resolver, lister: TreeLister, filling: Filling) -> None:
        self._resolver, self._lister, self._filling = resolver, lister, filling
        self._notes: list[str] = []

    def understand(self, field: str, entry: str) -> list[SourceFile | _Scan]:
        """Return what an entry means. Raises `InvalidArgument` if that is nothing, or not one thing."""
        text = path_of(entry)
        ranged = range_of(text)
        if found := self._resolver.existing(field, text):
            return [self._at(field, found)]
        if ranged and (found := self._resolver.existing(field, ranged[0])):
            return [self._at(field, found, ranged[1])]
        if is_glob(text):
            return list(self._scans(field, text))
        path, lines = ranged or (text, None)
        found = self._resolver.search(field, path)
        self._notes.append(f"{shown(entry)} was understood as {found}")
        return [self._at(field, found, lines)]

    def add_named(self, named: Sequence[SourceFile]) -> None:
        """Add the files that were named. Raises `InvalidArgument` for one that cannot be read."""
        for file in named:
            self._filling.add(file)

    def add_changes(self, changed: ChangedFiles, differ: Differ, diff: str) -> None:
        """Add the files that have changed. Raises `InvalidArgument` for an unknown revision."""
        self._notes += changed.add(differ, diff)

    def add_scans(self, scans: Sequence[_Scan]) -> None:
        """Add the files of directories and globs."""
        for scan in scans:
            self._scan(scan)

    def result(self) -> Collected:
        """Return everything added so far."""
        filling = self._filling
        said = (filling.read, filling.left_out.sentences(), self._notes)
        read, left_out, notes = (tuple(map(one_line, sentences)) for sentences in said)
        return Collected(tuple(filling.contents), read, left_out, notes)

    def _at(self, field: str, path: Path, lines: LineRange | None = None) -> SourceFile | _Scan:
        name = self._resolver.shown(path)
        if not is_directory(path):
            return SourceFile(path, name, field, lines, is_named=True)
        if lines is not None:
            raise InvalidArgument(field, f"{shown(name)} is a directory, which has no lines", "Give a file")
        return _Scan(f"{name}/", path)

    def _scans(self, field: str, pattern: str) -> Iterator[_Scan]:
        tops: dict[Path, list[str]] = {}
        for each in alternatives(field, pattern):
            fixed, rest = fixed_part(each)
            for top in self._resolver.directories(field, fixed):
                tops.setdefault(top, []).append(rest)
        if not tops:
            self._filling.left_out.add(pattern, "matches nothing: its directory is not there")
        yield from (_Scan(pattern, top, tuple(rests)) for top, rests in tops.items())

    def _scan(self, scan: _Scan) -> None:
        tree = self._lister.list(scan.top)
        names = [name for name in tree.files if not scan.patterns or _matches_any(scan.patterns, name)]
        if tree.cut:
            self._notes.append(f"{scan.shown}: the list of its files is incomplete, because {tree.cut}")
        if not names:
            self._filling.left_out.add(scan.shown, _why_empty(scan, tree))
        if not scan.patterns:
            base = self._resolver.shown(scan.top)
            self._filling.left_out.add_said(each if base == "." else f"{base}/{each}" for each in tree.left_out)
        for name in names:
            path = scan.top / name
            self._filling.add(SourceFile(path, self._resolver.shown(path)))


def _matches_any(patterns: Sequence[str], name: str) -> bool:
    return any(matches(pattern, name) for pattern in patterns)


def _why_empty(scan: _Scan, tree: Tree) -> str:
    if not scan.patterns:
        return "holds no file that is not ignored"
    deeper = [f"{ANY_DEPTH}/{pattern}" for pattern in scan.patterns if ANY_DEPTH not in pattern]
    number = sum(_matches_any(deeper, name) for name in tree.files)
    hint = f"; {deeper[0]} matches {number:,}" if number else ""
    return f"matches nothing below {scan.top}, ignored files apart{hint}"
