"""Implements `exai backup` and `exai restore`.

Invariant: the result goes to standard output, progress to standard error and only to a terminal. A passphrase is read
from a file or typed; it is never an argument, which other users could see.
"""

from __future__ import annotations

import argparse
import getpass
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from exai.backends import own_servers
from exai.cli.command import FAILED, OK, read_settings, require_server, run
from exai.cli.terminal_text import shown
from exai.errors import InvalidArgument
from exai.models import MAX_OWNER_CHARS, is_owner_name
from exai.monitoring.metrics import MetricsRecorder
from exai.monitoring.runs import recorded_run
from exai.program import program
from exai.settings.load import Settings

if TYPE_CHECKING:
    from exai.backup.manifest import AskPassphrase
    from exai.backup.sealing import Seal
    from exai.backup.verifying import BackupReader
    from exai.backup.writing import Base

BAR_CHARS: Final = 30
NAME_CHARS: Final = 30
MAX_PASSPHRASE_BYTES: Final = 65_536


def backup(options: argparse.Namespace) -> int:
    """Write a backup into a directory, or verify one."""
    require_server("backup")
    directory = Path(options.directory)
    asking = _passphrase_source(options)
    if options.verify:
        if options.base is not None:
            raise InvalidArgument("--base", "is for a new backup", "Leave it out")
        return run(_verify(directory, asking, is_sealed=_is_sealed(options)))
    is_sealed = _is_sealed(options)
    settings = read_settings(errors_only=True)
    base = None if options.base is None else Path(options.base)
    return run(_write(settings, directory, base, _twice(asking) if is_sealed and base is None else asking, is_sealed))


def restore(options: argparse.Namespace) -> int:
    """Restore a backup into the configured database."""
    require_server("restore")
    owners = _owners_of(options.owner)
    settings = read_settings(errors_only=True)
    asking = _passphrase_source(options)
    return run(_restore(settings, Path(options.directory), owners, asking, is_sealed=_is_sealed(options)))


class Bar:
    """A progress bar on a terminal; elsewhere nothing."""

    def __init__(self) -> None:
        self._expected, self._done = 1, 0

    def expect(self, size_bytes: int) -> None:
        """Begin with a new amount of work."""
        self.end()
        self._expected, self._done = max(1, size_bytes), 0

    def add(self, size_bytes: int, what: str) -> None:
        """Count bytes, and draw the bar."""
        self._done += size_bytes
        if sys.stderr.isatty():
            share = min(1.0, self._done / self._expected)
            text = f"{share:4.0%} {self._done / 1e6:,.0f} MB  {what[:NAME_CHARS]:<{NAME_CHARS}}"
            sys.stderr.write(f"\r[{'#' * int(share * BAR_CHARS):<{BAR_CHARS}}] {text}")
            sys.stderr.flush()

    def end(self) -> None:
        """End the line of the bar."""
        if sys.stderr.isatty() and self._done:
            sys.stderr.write("\n")


async def _write(settings: Settings, directory: Path, base_path: Path | None, ask: AskPassphrase, sealed: bool) -> int:
    from exai.backup.sealing import seal_of
    from exai.backup.writing import BackupWriter
    from exai.db.backup.snapshot import open_snapshot, store_metric
    from exai.files.stores import open_outer_stores

    base = _base_of(base_path, ask, sealed=sealed) if base_path else None
    seal: Seal | None = base.seal if base else (seal_of(ask()) if sealed else None)
    bar = Bar()
    async with _database(settings) as url, recorded_run(partial(store_metric, url), "backup") as figures:
        async with open_snapshot(url) as snapshot:
            identity = await snapshot.identity()
            async with open_outer_stores(settings, identity, MetricsRecorder()) as stores:
                writer = BackupWriter(directory, seal, stores, bar)
                writer.prepare()
                manifest, written = await writer.write(snapshot, base)
        figures |= {"rows": manifest.rows, "contents": written.contents, "problems": written.missing}
    bar.end()
    stored = sum(table.part.stored_bytes for table in manifest.tables)
    print(
        f"{manifest.rows:,} rows of {len(manifest.tables)} tables ({stored:,} bytes) and {written.contents:,} contents "
        f"of files ({written.copied:,} copied, {written.linked:,} from the earlier backup) are in {directory}"
    )
    if not written.missing:
        return OK
    print(f"the backup is complete, but {written.missing:,} contents have no bytes:")
    for problem in written.problems:
        print(shown(f"  {problem}", sys.stdout))
    return FAILED


def _base_of(directory: Path, ask: AskPassphrase, *, sealed: bool) -> Base:
    from exai.backup.manifest import read_manifest
    from exai.backup.writing import Base as EarlierBackup

    def asked() -> str:
        if not sealed:
            problem, cure = "is encrypted, and the new one would not be", "Give --passphrase as well"
            raise InvalidArgument("--base", problem, cure)
        return ask()

    _, seal = read_manifest(directory, asked)
    if sealed and seal is None:
        raise InvalidArgument("--base", "is not encrypted, and the new one is", "Leave --base out once")
    return EarlierBackup(directory, seal)


async def _verify(directory: Path, ask: AskPassphrase, *, is_sealed: bool) -> int:
    bar = Bar()
    reader = _reader(directory, ask, is_sealed=is_sealed)
    problems = await reader.verify(bar)
    bar.end()
    manifest = reader.manifest
    for problem in problems:
        print(shown(f"  {problem}", sys.stdout))
    if problems:
        print(f"{directory} is damaged")
        return FAILED
    lost = f", {manifest.missing:,} of them without bytes" if manifest.missing else ""
    print(
        f"{directory} is what was written at {manifest.created_at} by EXAI {manifest.exai_version}: revision "
        f"{manifest.revision}, {manifest.rows:,} rows, {manifest.contents:,} contents of files{lost}"
    )
    return OK


async def _restore(
    settings: Settings, directory: Path, owners: Mapping[str, str], ask: AskPassphrase, *, is_sealed: bool
) -> int:
    from exai.backup.restoring import BackupRestorer
    from exai.db.backup.loading import holding, identity_of, refuse
    from exai.db.backup.snapshot import store_metric
    from exai.db.migrations.migrate import move_to, upgrade
    from exai.db.migrations.revision import expected_revision, known_revisions
    from exai.files.stores import open_outer_stores

    reader, bar = _reader(directory, ask, is_sealed=is_sealed), Bar()
    if reader.manifest.revision not in known_revisions():
        problem = f"is of revision {reader.manifest.revision}, which this release does not know"
        raise InvalidArgument("DIRECTORY", problem, "Use the release that made it, or a newer one")
    problems = await reader.verify(bar)
    if problems:
        bar.end()
        raise InvalidArgument("DIRECTORY", f"is damaged: {'; '.join(problems)}", "Restore another backup")
    is_restored = False

    async def insert(metric: str, data: Mapping[str, Any]) -> None:
        # A restore that failed leaves no row.
        if is_restored:
            await store_metric(url, metric, data)

    async with _database(settings) as url, recorded_run(insert, "restore") as figures:
        refuse(await holding(url))
        await move_to(url, reader.manifest.revision)
        async with open_outer_stores(settings, await identity_of(url), MetricsRecorder()) as stores:
            restorer = BackupRestorer(reader, stores.get(settings.files.store), owners, bar)
            restored = await restorer.restore(url)
        await upgrade(url)
        figures |= {"rows": restored.rows, "contents": restored.contents, "problems": restored.missing}
        is_restored = True
    bar.end()
    print(
        f"{restored.rows:,} rows and {restored.contents:,} contents of files were restored; the database is at "
        f"revision {expected_revision()}"
    )
    if restored.left_out:
        print(
            shown(f"columns that this database does not have were left out: {', '.join(restored.left_out)}", sys.stdout)
        )
    if restored.missing:
        print(f"{restored.missing:,} contents have no bytes in the backup: `{program()} blobs verify` names them")
    return OK


def _reader(directory: Path, ask: AskPassphrase, *, is_sealed: bool) -> BackupReader:
    """Return the reader of a backup; with `is_sealed` only of an encrypted one, since any other may be forged."""
    from exai.backup.manifest import read_manifest
    from exai.backup.verifying import BackupReader as Reader

    manifest, seal = read_manifest(directory, ask)
    if is_sealed and seal is None:
        problem = "is given, but the backup is not encrypted, so nothing proves who has written it"
        raise InvalidArgument("--passphrase-file", problem, "Leave it out if the backup was made without a passphrase")
    return Reader(directory, manifest, seal)


def _is_sealed(options: argparse.Namespace) -> bool:
    """Return whether a backup has to be encrypted; restorations ask for a passphrase by themselves."""
    return getattr(options, "passphrase", False) or options.passphrase_file is not None


@asynccontextmanager
async def _database(settings: Settings) -> AsyncIterator[str]:
    """Yield the address of the database, of the role that owns the tables if one is configured."""
    async with own_servers(settings, migrates=False) as embedded:
        given = settings.database.migration_url or settings.database.url
        if embedded is not None and embedded.postgres_url is not None:
            yield embedded.postgres_url
        elif given is not None:
            yield given.get_secret_value()


def _owners_of(pairs: list[str]) -> dict[str, str]:
    owners: dict[str, str] = {}
    for pair in pairs:
        old, is_pair, new = pair.partition("=")
        if not is_pair or not is_owner_name(old) or not is_owner_name(new):
            cure = f"Write OLD=NEW, each of up to {MAX_OWNER_CHARS} printable characters"
            raise InvalidArgument("--owner", f"cannot be read: {pair}", cure)
        if old in owners or new in owners.values():
            raise InvalidArgument("--owner", f"names an owner twice: {pair}", "Give each OLD and each NEW once")
        owners[old] = new
    return owners


def _passphrase_source(options: argparse.Namespace) -> AskPassphrase:
    """Return a function that reads the passphrase from the file, or asks for it at the terminal."""

    def ask() -> str:
        if options.passphrase_file is not None:
            try:
                with Path(options.passphrase_file).open("rb") as stream:
                    return stream.read(MAX_PASSPHRASE_BYTES).decode(errors="surrogateescape").rstrip("\r\n")
            except OSError as error:
                cure = "Give a file that this user can read"
                raise InvalidArgument("--passphrase-file", f"cannot be read ({error.strerror})", cure) from None
        if not sys.stdin.isatty():
            cure = "Give --passphrase-file, or run it at a terminal"
            raise InvalidArgument("passphrase", "is needed, and there is no terminal to ask at", cure)
        return getpass.getpass("Passphrase: ")

    return ask


def _twice(ask: AskPassphrase) -> AskPassphrase:
    """Return a function that asks twice at a terminal, since a misspelled passphrase would lose the backup."""

    def asked() -> str:
        first = ask()
        if first != ask():
            raise InvalidArgument("passphrase", "differs the second time", "Type the same one twice")
        return first

    return asked
