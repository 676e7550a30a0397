"""Reads the material that the arguments of a tool name, and stores it as files of the owner.

Invariant: only files below the allowed roots are read. The result covers all named material: read, left out with
the reason, or an error. All work on the file system runs in threads of its own, within limits of time and size.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Final, TypeVar

from exai.account import hold
from exai.errors import InvalidArgument
from exai.files.loading import FilePath
from exai.files.origins import machine_id, sources_of
from exai.files.paths import MAX_PATH_CHARS, Roots
from exai.files.service import FileService
from exai.files.sources.bounds import TIME_S, Bounds
from exai.files.sources.collecting import Collected, collect
from exai.files.sources.comparing import MAX_COMPARED, ChangedFile, compare, newest_read
from exai.files.sources.filling import BYTES_PER_TOKEN, SCAN_CURE, Estimate
from exai.files.threads import PathReading, ReadingThreads
from exai.models import ContinuationId, FileId, FileSource, Owner, StoredFile
from exai.resilience import Clock
from exai.validation import MAX_LIST, check_list, check_name, check_number, check_owner, file_id_of, is_uuid

THREADS: Final = 3
GRACE_S: Final = 5.0
"""How much longer than its limits a reading may take before its caller stops waiting for the file system."""

MAX_DIFF_CHARS: Final = 500
NOTHING_CHANGED: Final = "reread: no file of the conversation is known to have changed on disk"
Found = TypeVar("Found")
MAX_TOLD: Final = 30
"""Parts that were left out and are named to a model."""


@dataclass(frozen=True, slots=True)
class SourceRequest:
    """What to read. An entry is a path, directory or glob, `path:10-80`, or a file id.

    `diff` is `uncommitted`, `staged`, `unstaged`, or a revision or range of git. `directory` is the caller's, in which
    relative paths begin; without it they are looked for below the roots. The files of the conversation `reread` that
    have changed on disk since they were read are read again.
    """

    entries: tuple[str, ...] = ()
    diff: str | None = None
    directory: Path | None = None
    budget_tokens: int = 100_000
    scan_cure: str | None = SCAN_CURE
    """What a caller can do about a PDF without text; None if the model's provider reads it, so that it is stored."""

    reread: ContinuationId | None = None


@dataclass(frozen=True, slots=True)
class SourcesRead:
    """The stored files; `read` and `left_out` list the material, `notes` state how entries were interpreted.

    `sources` are the origins of those that were read from a disk.
    """

    files: tuple[FileId, ...] = ()
    read: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    sources: Mapping[FileId, FileSource] = field(default_factory=dict, compare=False)

    @property
    def left_out_text(self) -> str:
        """Return a list of the material left out, for a prompt, so that the model knows of it; "" for none."""
        if not self.left_out:
            return ""
        lines = [f"- {each}" for each in self.left_out[:MAX_TOLD]]
        more = [f"- and {len(self.left_out) - MAX_TOLD:,} more"] if len(self.left_out) > MAX_TOLD else []
        return "\n".join(["Of the material this was left out:", *lines, *more])


class SourceReader:
    """Reads sources; safe for any number of tasks of one event loop."""

    def __init__(
        self,
        files: FileService,
        roots: Roots,
        estimate: Estimate,
        *,
        clock: Clock = time.monotonic,
        limit_s: float = TIME_S + GRACE_S,
    ) -> None:
        self._files, self._roots, self._estimate, self._clock = files, roots, estimate, clock
        self._threads = ReadingThreads(THREADS, limit_s)

    async def read(self, owner: Owner, request: SourceRequest) -> SourcesRead:
        """Read and store the sources: 1 database round trip, one more for file ids and each further MiB, and `reread`.

        Raises `InvalidArgument` for an entry that means no file or several, and if nothing at all could be read;
        `NotFound` for an unknown file id, `NotConfigured`, `DeadlineExceeded`, `BlobError` or a `DatabaseError`.
        """
        check_owner(owner)
        _check(request)
        notes: tuple[str, ...] = ()
        has_named = bool(request.entries) or request.diff is not None
        if request.reread is not None:
            again = tuple(map(_entry_of, await self._changed(owner, request.reread)))
            notes = () if again else (NOTHING_CHANGED,)
            request = replace(request, entries=tuple(dict.fromkeys((*request.entries, *again))))
        if not request.entries and request.diff is None:
            return SourcesRead(notes=notes)
        ids = tuple(dict.fromkeys(file_id_of("files", each) for each in request.entries if is_uuid(each)))
        known, too_long, left_tokens = _fitting(await self._files.get_all(owner, ids), request.budget_tokens)
        with hold(left_tokens * BYTES_PER_TOKEN, "sources being read"):
            collected = Collected()
            if any(not is_uuid(each) for each in request.entries) or request.diff is not None:
                collected = await self._in_thread(owner, partial(self._collect, request, left_tokens))
            stored = await self._files.put(owner, collected.contents) if collected.contents else ()
        result = SourcesRead(
            tuple(dict.fromkeys(file.id for file in (*known, *stored))),
            (*(f"{file.name} (stored file, {file.size_bytes:,} bytes)" for file in known), *collected.read),
            (*(f"{file.name} (outside the token budget)" for file in too_long), *collected.left_out),
            (*notes, *collected.notes),
            sources_of(stored),
        )
        if has_named and not result.read:
            raise _nothing(request, result)
        return result

    async def reread(self, owner: Owner, continuation_id: ContinuationId) -> SourcesRead:
        """Store the files of a conversation again that have changed on disk, each in the form in which it was stored.

        1 database round trip, and one or more to store files. Raises as `read`.
        """
        changed = await self._changed(owner, continuation_id)
        if not changed:
            return SourcesRead(notes=(NOTHING_CHANGED,))
        whole = [file for file in changed if file.source is not None and file.sha256 == file.source.sha256]
        parts = tuple(_entry_of(file) for file in changed if file not in whole)
        found = await self.read(owner, SourceRequest(parts)) if parts else SourcesRead()
        paths = [FilePath(file.source.path, file.name, file.media_type) for file in whole if file.source]
        stored = await self._files.put_paths(owner, paths) if paths else ()
        return replace(
            found,
            files=tuple(dict.fromkeys((*(file.id for file in stored), *found.files))),
            read=(*(f"{file.name} ({file.size_bytes:,} bytes)" for file in stored), *found.read),
            sources={**found.sources, **sources_of(stored)},
        )

    async def compare(
        self, owner: Owner, files: Sequence[StoredFile], fresh: Collection[FileId] = ()
    ) -> tuple[ChangedFile, ...]:
        """Return those of the files that are not on disk as they were when they were read, those read last first.

        Files that are `fresh` were read just now, and are not read again. Raises `DeadlineExceeded`.
        """
        read = [file for file in newest_read(files) if file.id not in fresh]
        return await self._in_thread(owner, lambda bounds: compare(self._roots, bounds, read)) if read else ()

    async def _changed(self, owner: Owner, continuation_id: ContinuationId) -> list[StoredFile]:
        """Return the files of a conversation that have changed on disk."""
        files = await self._files.list_read(owner, continuation_id, machine_id(), MAX_COMPARED)
        changed = {each.file_id for each in await self.compare(owner, files) if each.state == "changed"}
        return [file for file in newest_read(files) if file.id in changed]

    def _collect(self, request: SourceRequest, budget_tokens: int, bounds: Bounds) -> Collected:
        return collect(
            self._roots,
            bounds,
            self._estimate,
            entries={f"files[{place}]": each for place, each in enumerate(request.entries) if not is_uuid(each)},
            diff=request.diff,
            directory=request.directory,
            budget_tokens=budget_tokens,
            limit_bytes=self._files.max_bytes,
            scan_cure=request.scan_cure,
        )

    async def _in_thread(self, owner: Owner, work: Callable[[Bounds], Found]) -> Found:
        """Run blocking work in a thread, which ends soon after its caller has left."""
        bounds = Bounds(self._clock, self._clock() + TIME_S)

        def begin(reading: PathReading) -> Found:
            bounds.end_s, bounds.touch = self._clock() + TIME_S, reading.touch
            return work(bounds)

        try:
            return await self._threads.run(owner, begin)
        finally:
            bounds.stop()


def _entry_of(file: StoredFile) -> str:
    source = file.source
    if source is None:
        raise AssertionError("only a file that was read from a disk has changed there")
    return source.path if source.lines is None else f"{source.path}:{source.lines}"


def _fitting(files: Sequence[StoredFile], budget_tokens: int) -> tuple[list[StoredFile], list[StoredFile], int]:
    """Divide stored files into those that fit and the others; return also the tokens that are left."""
    known: list[StoredFile] = []
    too_long: list[StoredFile] = []
    for file in files:
        tokens = file.size_bytes // BYTES_PER_TOKEN
        (known if tokens <= budget_tokens else too_long).append(file)
        budget_tokens -= tokens if tokens <= budget_tokens else 0
    return known, too_long, budget_tokens


def _check(request: SourceRequest) -> None:
    check_list("files", request.entries, MAX_LIST, "Give a directory or a glob instead")
    for place, entry in enumerate(request.entries):
        check_name(f"files[{place}]", entry, MAX_PATH_CHARS)
        if not entry.strip():
            raise InvalidArgument(f"files[{place}]", "is blank", "Give a path, directory, glob or file_id")
    if request.diff is not None:
        check_name("diff", request.diff, MAX_DIFF_CHARS)
    check_number("budget_tokens", request.budget_tokens)


def _nothing(request: SourceRequest, result: SourcesRead) -> InvalidArgument:
    why = "; ".join((*result.left_out, *result.notes)) or "they are empty"
    if not request.entries:
        return InvalidArgument("diff", f"nothing could be read of it: {why}", "Give another diff, or name files")
    return InvalidArgument("files", f"nothing could be read of them: {why}", "Name other files")
