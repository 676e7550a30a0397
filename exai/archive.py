"""What `exai export`, `exai import` and `exai prune` do; they speak to the stores directly, like any other daemon.

The invariant is that a file under its final name is a whole export: it is written beside its place and then renamed.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

from exai.app import open_app
from exai.config import Settings
from exai.conversations.formats import ConversationText, Format, MessageText, read_lines, read_markdown
from exai.errors import InvalidArgument, NotFound
from exai.models import LOCAL_OWNER, ContinuationId

STANDARD = "-"
SUFFIXES: dict[str, Format] = {".jsonl": "jsonl", ".md": "markdown", ".markdown": "markdown"}


async def export(settings: Settings, name: str, target: str, kind: Format | None) -> None:
    """Write a conversation to a file, or to standard output for `-`, a page at a time."""
    shape = kind or SUFFIXES.get(Path(target).suffix.lower(), "jsonl")
    async with open_app(settings) as app:
        parts = app.conversations.export(LOCAL_OWNER, ContinuationId(name), shape)
        if target == STANDARD:
            async for part in parts:
                sys.stdout.write(part)
            return
        beside = Path(f"{target}.part")
        with beside.open("w", encoding="utf-8", newline="") as stream:
            async for part in parts:
                await asyncio.to_thread(stream.write, part)
        beside.replace(target)


async def import_file(settings: Settings, source: str, kind: Format | None, as_name: str | None) -> str:
    """Store an exported conversation and return its name; progress goes to a terminal's standard error."""
    shape = kind or SUFFIXES.get(Path(source).suffix.lower(), "jsonl")
    if source != STANDARD and not Path(source).is_file():
        raise NotFound("file", source, "Give the path of an export, or - for standard input")
    name = ContinuationId(as_name) if as_name else None
    stored = seen = 0
    async with open_app(settings) as app:
        with _opened(source) as stream:
            async for progress in app.conversations.import_text(LOCAL_OWNER, _parts(stream, shape), as_name=name):
                name, seen, stored = progress.continuation_id, progress.seen, progress.stored
                if sys.stderr.isatty():
                    sys.stderr.write(f"\r{seen:,} messages read, {stored:,} stored")
    if sys.stderr.isatty():
        sys.stderr.write("\n")
    return f"{name}: {stored:,} of {seen:,} messages stored, the others were there already"


async def prune(settings: Settings, idle_days: float | None) -> str:
    """Remove what was deleted long enough ago, and files nobody has; returns what was done."""
    async with open_app(settings) as app:
        conversations = await app.conversations.prune(idle_days=idle_days)
        orphans, blobs = await app.files.sweep()
    return f"removed {conversations} deleted conversations, {orphans} orphaned files and the bytes of {blobs}"


def _opened(source: str) -> TextIO:
    if source == STANDARD:
        return open(sys.stdin.fileno(), encoding="utf-8", newline="", closefd=False)
    return Path(source).open(encoding="utf-8", newline="")


def _parts(stream: TextIO, shape: Format) -> Iterator[ConversationText | MessageText]:
    """Read JSON Lines line by line; Markdown whole, since its parts are found by length."""
    try:
        yield from read_lines(stream) if shape == "jsonl" else read_markdown(stream.read())
    except UnicodeDecodeError as error:
        raise InvalidArgument("file", f"is not UTF-8 ({error.reason})", "Export it again") from None
