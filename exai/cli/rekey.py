"""Implements `exai rekey`.

Invariant: it may be interrupted at any time and begun again.
"""

from __future__ import annotations

import argparse
import sys

from exai.app import open_app
from exai.cli.command import FAILED, OK, read_settings, run
from exai.cli.terminal_text import shown
from exai.conversations.rekeying import Rekeyed, Rekeying
from exai.encryption.keyring import SETTING
from exai.errors import ConfigError
from exai.monitoring.runs import recorded_run
from exai.settings.load import Settings


def rekey(options: argparse.Namespace) -> int:
    """Bring what is stored to the newest key, or to plain text."""
    return run(_rekey(read_settings(errors_only=True), is_rehearsal=options.dry_run, index=options.index))


async def _rekey(settings: Settings, *, is_rehearsal: bool, index: bool) -> int:
    keys = settings.store.named_keys
    if not keys:
        raise ConfigError(SETTING, "is not set, so there is nothing to encrypt or decrypt with", "Set it, see the docs")
    newest = keys[0].name if settings.store.is_writing else None
    async with open_app(settings) as app:
        rekeying = Rekeying(app.database, app.files, app.cache.erasure, app.maintenance)
        if is_rehearsal:
            done = await rekeying.run(newest, _progress, is_rehearsal=True)
        else:
            async with recorded_run(app.history.insert, "rekey") as figures:
                done = await rekeying.run(newest, _progress)
                figures |= {"rows": done.replaced, "problems": done.unread}
        if index and not is_rehearsal:
            await rekeying.index_again()
    if sys.stderr.isatty():
        sys.stderr.write("\n")
    for line in _report(done, newest, is_rehearsal=is_rehearsal):
        print(shown(line, sys.stdout))
    return OK if is_rehearsal or done.is_complete else FAILED


def _progress(done: Rekeyed) -> None:
    if sys.stderr.isatty():
        sys.stderr.write(f"\rpass {done.passes}: {done.replaced:,} rows rekeyed")
        sys.stderr.flush()


def _report(done: Rekeyed, newest: str | None, *, is_rehearsal: bool) -> list[str]:
    form = f"encrypted with the key {newest}" if newest else "plain"
    contents = f"{done.contents:,} contents of files ({done.content_bytes:,} bytes)"
    if is_rehearsal:
        lines = [f"{done.left:,} rows are not {form}; {done.unread:,} of them cannot be read", *done.unreadable]
        return [*lines, f"{contents} would be stored again"] if done.contents else lines
    lines = [f"{done.replaced:,} rows are now {form}"]
    if done.contents:
        lines.append(
            f"{contents} were stored again; `exai prune` removes their former bytes after EXAI_FILES__ORPHAN_GRACE_S"
        )
    if done.unread:
        lines += [f"{done.unread:,} rows cannot be read and stay as they are:", *done.unreadable]
    if done.left > done.unread:
        waiting = done.left - done.unread
        lines.append(
            f"{waiting:,} rows are still stored otherwise: give all daemons the same {SETTING}, restart them, repeat"
        )
    if done.is_complete:
        lines.append(f"No other key is needed: remove the others from {SETTING}" if newest else f"Remove {SETTING}")
    if done.cache_problem is not None:
        lines.append(f"The cache keeps entries in the older form for a day at most ({done.cache_problem})")
    return lines
