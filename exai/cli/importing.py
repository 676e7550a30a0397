"""Implements `exai import` for the files of other programs, which accesses the stores directly, like a daemon.

Invariant: the report goes to standard output, progress to standard error and only to a terminal.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from itertools import islice
from pathlib import Path
from typing import Final, TextIO

from exai.app import App, open_app
from exai.cli.command import FAILED, OK, owner_of, read_settings, run
from exai.cli.terminal_text import shown
from exai.errors import InvalidArgument
from exai.importers.pipeline import ImportTarget, import_sources
from exai.importers.reading.bundles import open_bundle
from exai.importers.reading.documents import SourceDocument
from exai.importers.recognition import SOURCE_KINDS, SourceKind, recognised
from exai.importers.report import ImportReport
from exai.importers.sources.own import read_exports
from exai.importers.watching import Mirror
from exai.models import Owner
from exai.monitoring.runs import recorded_run
from exai.settings.load import Settings

BAR_CHARS: Final = 30
DRAW_S: Final = 0.2
STANDARD: Final = "-"
ADDRESSES: Final = ("postgresql://", "postgres://")
EXPORT_ENDINGS: Final = (".jsonl", ".md", ".markdown")
OTHER_ENDINGS: Final = (".zip", ".json", ".db", ".sqlite", ".sqlite3")
PLACES: Final = {
    "claude-code": "~/.claude/projects",
    "codex": "~/.codex/sessions",
    "gemini-cli": "~/.gemini/tmp",
}
"""Where programs keep their sessions, for an import without a path."""


def is_own_export(options: argparse.Namespace) -> bool:
    """Return whether the command is for one exported conversation of EXAI."""
    kind, paths = sources_of(options)
    if options.dry_run or options.watch or len(paths) != 1 or kind not in (None, "exai"):
        return False
    path = Path(paths[0])
    if paths[0].startswith(ADDRESSES):
        return False
    if options.format or options.as_name or paths[0] == STANDARD or not path.exists():
        return True
    if path.is_dir() or path.suffix.lower() in OTHER_ENDINGS:
        return path.is_dir() and path.suffix in EXPORT_ENDINGS
    return _has_one_export(path)


def _has_one_export(path: Path) -> bool:
    """Return whether a file has one exported conversation, or is nothing that is recognised."""
    with open_bundle(path) as bundle:
        found = next(iter(recognised(bundle)), "")
        if isinstance(found, str):
            return True
        exports = read_exports(SourceDocument(bundle, found.name)) if found.kind == "exai" else iter(())
        return len(list(islice(exports, 2))) == 1


def sources_of(options: argparse.Namespace) -> tuple[SourceKind | None, list[str]]:
    """Return the kind and the paths of a command; a first word that is a kind is one, unless a file is called so."""
    words: list[str] = options.source
    kind = next((each for each in SOURCE_KINDS if words and each == words[0]), None)
    if kind is None or (len(words) == 1 and kind not in PLACES and Path(words[0]).exists()):
        return None, words
    place = PLACES.get(kind)
    return kind, words[1:] or ([place] if place else [])


def import_files(options: argparse.Namespace) -> int:
    """Import the files of other programs. Returns the exit status: failed if there was nothing but damage."""
    kind, words = sources_of(options)
    if not words:
        raise InvalidArgument("PATH", "is missing", f"Give the path of an export of {kind}")
    if options.format or options.as_name:
        raise InvalidArgument("--format, --as", "are for one exported conversation of EXAI", "Leave them out")
    addresses = [each for each in words if each.startswith(ADDRESSES)]
    if addresses and (kind not in (None, "langgraph") or options.watch):
        raise InvalidArgument("PATH", "is an address", "Only threads of LangGraph are read from one, without --watch")
    paths = [Path(each).expanduser() for each in words if each not in addresses]
    bar = ImportBar(sys.stderr)
    if options.dry_run:
        report = run(import_sources(None, owner_of(options), paths, kind, bar.draw, addresses=addresses))
    else:
        settings = read_settings(errors_only=True)
        if options.watch:
            run(_mirror(settings, owner_of(options), paths, kind))
            return OK
        report = run(_import(settings, owner_of(options), paths, kind, bar, addresses=addresses))
    bar.end()
    if options.json:
        print(json.dumps(report.as_json(), indent=2))
    else:
        print("\n".join(shown(line, sys.stdout) for line in report.lines()))
    return FAILED if report.damaged and not report.messages else OK


def target_of(app: App) -> ImportTarget:
    """Return the services into which an import stores."""
    return ImportTarget(app.conversations, app.files, app.transfer, app.settings.limits)


async def _import(
    settings: Settings,
    owner: Owner,
    paths: Sequence[Path],
    kind: SourceKind | None,
    bar: ImportBar,
    *,
    addresses: Sequence[str],
) -> ImportReport:
    async with open_app(settings) as app, recorded_run(app.history.insert, "import") as figures:
        report = await import_sources(target_of(app), owner, paths, kind, bar.draw, addresses=addresses)
        figures |= {"messages": report.stored, "damaged": report.damaged}
    return report


async def _mirror(settings: Settings, owner: Owner, paths: Sequence[Path], kind: SourceKind | None) -> None:
    """Import what changes until the command is interrupted."""

    def on_pass(report: ImportReport) -> None:
        if report.stored or report.damaged:
            print("\n".join(shown(line, sys.stdout) for line in report.lines()), flush=True)

    async with open_app(settings) as app:
        await Mirror(target_of(app), owner, paths, kind).run(on_pass)


class ImportBar:
    """A progress bar with an estimate on a terminal; elsewhere nothing."""

    def __init__(self, stream: TextIO, clock: Callable[[], float] = time.monotonic) -> None:
        self._stream, self._clock = stream, clock
        self._began = self._drawn = clock()
        self._is_drawn = False

    def draw(self, report: ImportReport) -> None:
        """Draw how far an import has come, some times a second."""
        now = self._clock()
        if not self._stream.isatty() or now - self._drawn < DRAW_S:
            return
        self._drawn, self._is_drawn = now, True
        share = min(1.0, report.read_bytes / max(1, report.total_bytes))
        left = f", about {time_text((now - self._began) / share * (1 - share))} left" if share > 0.01 else ""
        text = f"{share:4.0%} {report.messages:,} messages{left}"
        self._stream.write(f"\r[{'#' * int(share * BAR_CHARS):<{BAR_CHARS}}] {text:<60}")
        self._stream.flush()

    def end(self) -> None:
        """End the line of the bar."""
        if self._is_drawn:
            self._stream.write("\n")


def time_text(seconds: float) -> str:
    """Return a time in whole units."""
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"
