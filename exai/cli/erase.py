"""Implements `exai erase`.

Invariant: nothing is erased without `--yes`, or the owner's or conversation's name typed at the terminal.
"""

from __future__ import annotations

import argparse
import sys

from exai.app import open_app
from exai.cli.command import OK, owner_of, read_settings, run
from exai.cli.terminal_text import shown
from exai.conversations.erasure import Erased, Erasure
from exai.db.erasure import ErasureRepository
from exai.errors import ConfigError, InvalidArgument
from exai.models import MAX_OWNER_CHARS, ContinuationId, Owner, is_owner_name
from exai.monitoring.runs import recorded_run
from exai.settings.load import Settings


def erase(options: argparse.Namespace) -> int:
    """Erase an owner or a conversation."""
    settings = read_settings(errors_only=True)
    if options.subject == "owner":
        if not is_owner_name(options.name):
            cure = f"Use up to {MAX_OWNER_CHARS} printable characters"
            raise ConfigError("NAME", "cannot be an owner's name", cure)
        owner, name = Owner(options.name), None
    else:
        owner, name = owner_of(options), ContinuationId(options.name)
    if not options.dry_run and not options.yes:
        _confirm(options.name)
    with_forks = getattr(options, "forks", False)
    return run(_erase(settings, owner, name, with_forks=with_forks, is_rehearsal=options.dry_run))


def _confirm(name: str) -> None:
    if not sys.stdin.isatty():
        raise InvalidArgument("--yes", "is missing, and there is no terminal to ask at", "Give it, or try --dry-run")
    print("This cannot be undone. Type the name again to erase it: ", end="", file=sys.stderr, flush=True)
    if sys.stdin.readline().strip() != name:
        raise InvalidArgument("NAME", "was not repeated", "Nothing was erased")


async def _erase(
    settings: Settings, owner: Owner, name: ContinuationId | None, *, with_forks: bool, is_rehearsal: bool
) -> int:
    owner_url = settings.database.migration_url
    async with open_app(settings) as app:
        repository = ErasureRepository(app.database, owner_url.get_secret_value() if owner_url else None)
        erasure = Erasure(repository, app.files.blobs, app.cache)
        if is_rehearsal:
            erased = await erasure.erase(owner, name, with_forks=with_forks, is_rehearsal=True)
        else:
            # The record has no names: it stays when everything of the owner is gone.
            async with recorded_run(app.history.insert, "erase") as figures:
                erased = await erasure.erase(owner, name, with_forks=with_forks)
                figures |= {"conversations": len(erased.rows.conversations), "files": erased.rows.files}
    if not erased.rows.conversations and not any(erased.rows.rows.values()):
        print(shown(f"Nothing of the owner {owner} was stored; is the name correct?", sys.stdout))
    for line in _report(erased, is_rehearsal=is_rehearsal):
        print(shown(line, sys.stdout))
    return OK


def _report(erased: Erased, *, is_rehearsal: bool) -> list[str]:
    rows, done = erased.rows, "would be erased" if is_rehearsal else "were erased"
    size_bytes = sum(content.size_bytes for content in rows.contents)
    lines = [
        f"{len(rows.conversations):,} conversations, {rows.files:,} files and {len(rows.contents):,} contents "
        f"({size_bytes:,} bytes) {done}, with these rows:",
        *(f"  {table:<36} {number:>10,}" for table, number in sorted(rows.rows.items()) if number),
    ]
    if is_rehearsal:
        return lines
    if erased.elsewhere:
        lines.append(
            f"{erased.elsewhere:,} contents had no bytes on this machine; if another daemon has a data directory of "
            "its own, delete them there with `exai prune`"
        )
    if erased.cache_problem is not None:
        lines.append(
            f"The cache was not emptied ({erased.cache_problem}): daemons drop its entries within seconds, and the "
            "names of erased conversations are kept for a week; repeat the command with the cache to erase them"
        )
    return [
        *lines,
        "Backups that were made before still hold all of it: delete them, or erase again after a restoration.",
        "Logs of daemons name owners and conversations, but hold no content.",
        "Copies of documents at providers are deleted by daemons within an hour.",
    ]
