"""Mirror a directory of sessions: import each file again when it has grown, so that nothing is lost when it is deleted.

Directories are looked through at intervals, which works on every file system. What is deleted in the directory stays
in the store.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from exai.importers.pipeline import ImportTarget, OnProgress, SourceImport
from exai.importers.reading.bundles import Bundle, open_bundle
from exai.importers.recognition import SourceKind, recognised_files
from exai.importers.report import ImportReport
from exai.models import Owner

INTERVAL_S: Final = 2.0

FileState = tuple[int, int]
"""Size and time of change of a file."""


class Mirror:
    """The import of directories again and again."""

    def __init__(
        self,
        target: ImportTarget,
        owner: Owner,
        paths: Sequence[Path],
        kind: SourceKind | None,
        on_progress: OnProgress = lambda _: None,
    ) -> None:
        self._target, self._owner, self._paths, self._kind = target, owner, paths, kind
        self._on_progress = on_progress
        self._states: dict[tuple[Path, str], FileState] = {}
        self._refused: set[tuple[Path, str]] = set()

    async def run(self, on_pass: Callable[[ImportReport], None], interval_s: float = INTERVAL_S) -> None:
        """Import what has changed, until this is cancelled; `on_pass` receives the report of each pass."""
        while True:
            on_pass(await self.once())
            await asyncio.sleep(interval_s)

    async def once(self) -> ImportReport:
        """Import the files that were added or changed since the last time. Raises as `import_sources`."""
        work = SourceImport(self._target, self._owner, self._on_progress)
        for path in self._paths:
            with open_bundle(path) as bundle:
                states = await asyncio.to_thread(_states, bundle)
                refused = {(path, name) for name in bundle.refused()}
                if refused - self._refused:
                    work.refuse(bundle)
                # A link that is gone is reported again when it comes back.
                self._refused = {each for each in self._refused if each[0] != path} | refused
                changed = {name for name, state in states.items() if self._states.get((path, name)) != state}
                for found in await asyncio.to_thread(recognised_files, bundle, self._kind, changed) if changed else ():
                    if not isinstance(found, str):
                        await work.file(bundle, found)
                # A file that changes while it is read is read again.
                self._states |= {(path, name): states[name] for name in changed}
        return work.report


def _states(bundle: Bundle) -> dict[str, FileState]:
    return {name: _state(bundle.path(name)) for name in bundle.names()}


def _state(path: Path | None) -> FileState:
    try:
        facts = path.stat() if path is not None else None
    except OSError:
        facts = None
    return (facts.st_size, facts.st_mtime_ns) if facts is not None else (0, 0)
