"""Implements `exai blobs` and the part of `exai prune` about files: moves, verifies and removes stored bytes.

Invariant: the result of a command goes to standard output, its progress to standard error and only to a terminal.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass
from typing import Final

from exai.app import App, open_app
from exai.cli.command import FAILED, OK, owner_of, read_settings, run
from exai.cli.terminal_text import shown
from exai.encryption.envelope import is_sealed_text
from exai.errors import InvalidArgument, NotFound
from exai.files.moving import move
from exai.files.upkeep import Swept, Verified, mark, sweep, verify
from exai.models import FileId, Owner
from exai.monitoring.runs import recorded_run
from exai.settings.load import Settings

BAR_CHARS: Final = 30
SHOWN_CONTENTS: Final = 20
"""Number of contents that a summary names."""


def blobs(options: argparse.Namespace) -> int:
    """Run one of the commands `exai blobs`."""
    settings = read_settings(errors_only=True)
    if options.action == "migrate":
        return run(_migrate(settings, options.source, options.target))
    if options.action == "link":
        return run(_link(settings, owner_of(options), options.name, options.lifetime_s))
    return run(_verify(settings, options.stores, repair=options.repair))


def prune(options: argparse.Namespace) -> int:
    """Remove deleted conversations and files whose retention has passed."""
    print(shown(run(_prune(read_settings(), options.idle_days, is_rehearsal=options.dry_run)), sys.stdout))
    return OK


async def _prune(settings: Settings, idle_days: float | None, *, is_rehearsal: bool) -> str:
    async with open_app(settings) as app:
        marked = threads = 0
        if is_rehearsal:
            conversations, marked = await app.maintenance.rehearse(idle_days=idle_days)
            threads = await app.maintenance.rehearse_threads(idle_days=idle_days)
            swept = await sweep(app.files, is_rehearsal=True)
        else:
            async with recorded_run(app.history.insert, "prune") as figures:
                conversations = figures["conversations"] = await app.maintenance.prune(idle_days=idle_days)
                swept = await sweep(app.files, is_rehearsal=False)
                figures["files"], figures["contents"] = swept.orphans, swept.unused.contents
    summary = _rehearsed(swept, conversations, marked, threads) if is_rehearsal else _summary(swept, conversations)
    return "\n".join([summary, *_named(swept.missing, app.files.blobs.private)])


def _summary(swept: Swept, conversations: int) -> str:
    unused = f"{swept.orphans:,} orphaned files and the bytes of {swept.unused.contents:,}"
    return f"removed {conversations:,} deleted conversations, {unused} contents"


def _rehearsed(swept: Swept, conversations: int, marked: int, threads: int) -> str:
    return (
        f"would remove {swept.orphans:,} orphaned files and the bytes of {swept.unused.contents:,} contents "
        f"({swept.unused.size_bytes:,} bytes), and {conversations:,} conversations that were deleted a week ago; would "
        f"delete {marked:,} idle or expired ones, which can be restored for a week, and the checkpoints of "
        f"{threads:,} idle or expired threads"
    )


async def _migrate(settings: Settings, source: str, target: str) -> int:
    if source == target:
        raise InvalidArgument("TO", "is the store to move from", "Name another one")
    async with open_app(settings) as app:
        app.files.blobs.named(source)
        store = app.files.blobs.named(target)
        progress = await _progress_of(app, [source])
        failed = []
        async with recorded_run(app.history.insert, "blobs migrate") as figures:
            async for each in move(app.files, [source], store):
                progress.add(each.file.size_bytes)
                if each.problem is not None:
                    failed.append(Verified(each.owner, each.file, each.problem))
            figures["contents"], figures["problems"] = progress.contents, len(failed)
    progress.end()
    moved = progress.contents - len(failed)
    print(f"{moved:,} contents moved from {source} to {target}; `exai prune` removes the old bytes after a while")
    return _report(failed, ())


async def _link(settings: Settings, owner: Owner, name: str, lifetime_s: int) -> int:
    if lifetime_s < 1:
        raise InvalidArgument("--lifetime-s", "is too small", "Give a number of seconds, 1 or more")
    async with open_app(settings) as app:
        file = await app.files.get(owner, FileId(name))
        if file.seal is not None:
            raise InvalidArgument("FILE_ID", "is encrypted, so no address can serve it", "Read it with file_get")
        store = app.files.blobs.of(file)
        if await store.size(owner, file) is None:
            raise NotFound("file", name, "Its bytes are missing: `exai prune`, then store it again")
        address = await store.link(owner, file, lifetime_s)
    if address is None:
        cure = "Read it with the tool file_get, or move it with `exai blobs migrate`"
        raise InvalidArgument("FILE_ID", f"is in the store {file.store}, which serves no downloads", cure)
    print(shown(address, sys.stdout))
    return OK


async def _verify(settings: Settings, stores: list[str], *, repair: bool) -> int:
    async with open_app(settings) as app:
        named = stores or list(app.files.blobs.names)
        for name in named:
            app.files.blobs.named(name)
        progress = await _progress_of(app, named)
        failed = []
        async with recorded_run(app.history.insert, "blobs verify") as figures:
            async for each in verify(app.files, named):
                progress.add(each.file.size_bytes)
                if each.problem is not None:
                    failed.append(each)
            marked = await mark(app.files, failed) if repair else 0
            figures["contents"], figures["problems"] = progress.contents, len(failed)
    progress.end()
    print(f"{progress.contents:,} contents verified ({progress.size_bytes:,} bytes), {len(failed):,} with a problem")
    if repair:
        print(f"{marked:,} marked: their bytes are stored again when the same content is given again")
    return _report(failed, app.files.blobs.private)


def _report(failed: list[Verified], private: tuple[str, ...]) -> int:
    for line in _named(failed, private):
        print(shown(line, sys.stdout))
    return FAILED if failed else OK


def _name_of(found: Verified) -> str:
    """Return the name of a file; encrypted ones are not read here."""
    return "(encrypted name)" if is_sealed_text(found.file.name) else found.file.name


def _named(failed: list[Verified] | tuple[Verified, ...], private: tuple[str, ...]) -> list[str]:
    """Return a line for each content with a problem, up to a number."""
    lines = [
        f"  {_name_of(each)} ({each.file.id}) of {each.owner}, in {each.file.store}: {each.problem}"
        + (" here; they may be in the directory of another daemon" if each.file.store in private else "")
        for each in failed[:SHOWN_CONTENTS]
    ]
    return lines + ([f"  and {len(failed) - SHOWN_CONTENTS:,} more"] if len(failed) > SHOWN_CONTENTS else [])


@dataclass
class Progress:
    """A progress bar on a terminal; elsewhere only the counts."""

    expected: int
    expected_bytes: int
    contents: int = 0
    size_bytes: int = 0

    def add(self, size_bytes: int) -> None:
        """Count one content, and draw the bar."""
        self.contents += 1
        self.size_bytes += size_bytes
        if sys.stderr.isatty():
            share = min(1.0, (self.size_bytes + self.contents) / max(1, self.expected_bytes + self.expected))
            bar = "#" * int(share * BAR_CHARS)
            counts = f"{self.contents:,} of {self.expected:,} contents, {share:.0%}"
            sys.stderr.write(f"\r[{bar:<{BAR_CHARS}}] {counts}")
            sys.stderr.flush()

    def end(self) -> None:
        """End the line of the bar."""
        if sys.stderr.isatty() and self.contents:
            sys.stderr.write("\n")


async def _progress_of(app: App, stores: list[str]) -> Progress:
    return Progress(*await app.files.repository.count_stored(stores))
