"""Implements `exai export` and `exai import`, which access the stores directly, like a daemon.

Invariant: a file under its final name is a complete export, since it is written beside its place and then renamed.
Text is written in UTF-8 with line feeds, independently of the terminal's encoding, and read in any Unicode encoding.
"""

from __future__ import annotations

import asyncio
import codecs
import contextlib
import io
import os
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import TextIO

from exai.app import open_app
from exai.cli.browse import check_owner, whole_id
from exai.cli.terminal_text import printable
from exai.conversations.formats import ExportItem, Format, read_lines, read_markdown
from exai.errors import InvalidArgument, NotFound
from exai.models import LOCAL_OWNER, ContinuationId, Owner
from exai.monitoring.runs import recorded_run
from exai.settings.load import Settings

STANDARD = "-"
SUFFIXES: dict[str, Format] = {".jsonl": "jsonl", ".md": "markdown", ".markdown": "markdown"}

BEGINNINGS = (
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
    (b"{\0", "utf-16-le"),
    (b"<\0", "utf-16-le"),
    (b"\0{", "utf-16-be"),
    (b"\0<", "utf-16-be"),
)
"""Initial bytes of texts that are not UTF-8: a byte order mark, or the first character of an export."""


async def export(settings: Settings, name: str, target: str, kind: Format | None, owner: Owner = LOCAL_OWNER) -> None:
    """Write a conversation to a file, or to standard output for `-`, a page at a time. Raises `InvalidArgument`."""
    shape = kind or _shape_of(target)
    if target != STANDARD:
        _check_target(target)
    async with open_app(settings) as app:
        await check_owner(app, settings, owner)
        parts = app.transfer.export(owner, await whole_id(app, owner, name), shape)
        if target == STANDARD:
            await _print(parts)
            return
        beside = Path(f"{target}.part")
        try:
            with beside.open("w", encoding="utf-8", newline="") as stream:
                async for part in parts:
                    await asyncio.to_thread(stream.write, part)
            beside.replace(target)
        except OSError as error:
            raise _unusable(target, "written", error) from error
        finally:
            with contextlib.suppress(OSError):
                beside.unlink()


async def import_file(
    settings: Settings, source: str, kind: Format | None, as_name: str | None, owner: Owner = LOCAL_OWNER
) -> str:
    """Store an exported conversation and return a summary; progress goes to standard error if that is a terminal."""
    shape = kind or SUFFIXES.get(Path(source).suffix.lower(), "jsonl")
    name = ContinuationId(as_name) if as_name else None
    progress = None
    with open_text(source) as stream:
        async with open_app(settings) as app, recorded_run(app.history.insert, "import") as figures:
            async for progress in app.transfer.import_text(owner, read_parts(stream, shape), as_name=name):
                figures["messages"] = progress.stored
                if sys.stderr.isatty():
                    sys.stderr.write(f"\r{progress.seen:,} messages read, {progress.stored:,} stored")
    if sys.stderr.isatty():
        sys.stderr.write("\n")
    if progress is None:
        raise AssertionError("an import has at least one batch")
    done = f"{progress.continuation_id}: {progress.stored:,} of {progress.seen:,} messages stored"
    done += ", the others were there already" if progress.stored < progress.seen else ""
    done += "; the conversation had been deleted and is there again" if progress.restored else ""
    return "\n".join([done, *progress.notes])


async def _print(parts: AsyncIterator[str]) -> None:
    """Write to standard output: printable text to a terminal, otherwise the bytes of the file."""
    if sys.stdout.isatty():
        encoding = sys.stdout.encoding or "utf-8"
        async for part in parts:
            sys.stdout.write(printable(part).encode(encoding, errors="replace").decode(encoding))
        return
    sys.stdout.flush()
    async for part in parts:
        await asyncio.to_thread(sys.stdout.buffer.write, part.encode())
    sys.stdout.buffer.flush()


def _shape_of(target: str) -> Format:
    """Return the format for the ending of a file's name; without an ending it is JSON Lines."""
    suffix = Path(target).suffix.lower()
    if suffix and suffix not in SUFFIXES:
        known = ", ".join(f"{each} ({kind})" for each, kind in SUFFIXES.items())
        problem = f"{target} has an ending that is no format of exports; known are {known}"
        raise InvalidArgument("FILE", problem, "Use one of these endings, or say which format with --format")
    return SUFFIXES.get(suffix, "jsonl")


def _check_target(target: str) -> None:
    """Raise for a target that cannot be written, before anything is read."""
    path = Path(target)
    if path.is_dir():
        raise InvalidArgument("FILE", f"{target} is a directory", "Give the name of a file in it")
    if not path.parent.is_dir():
        raise InvalidArgument("FILE", f"there is no directory {path.parent}", "Make it, or give another place")
    if not os.access(path.parent, os.W_OK):
        raise InvalidArgument(
            "FILE", f"{path.parent} cannot be written", "Correct its permissions, or give another place"
        )


def open_text(source: str) -> TextIO:
    """Open a text in the Unicode encoding detected from its first bytes. Raises `NotFound` or `InvalidArgument`."""
    try:
        if source == STANDARD:
            buffered = io.BufferedReader(io.FileIO(sys.stdin.fileno(), closefd=False))
        else:
            buffered = io.BufferedReader(io.FileIO(source))
        beginning = buffered.peek(4)[:4]
    except FileNotFoundError:
        raise NotFound("file", source, "Give the path of an export, or - for standard input") from None
    except OSError as error:
        raise _unusable(source, "read", error) from error
    encoding = next((name for mark, name in BEGINNINGS if beginning.startswith(mark)), "utf-8-sig")
    # Only line feeds end lines: a carriage return may be content.
    return io.TextIOWrapper(buffered, encoding=encoding, newline="\n")


def read_parts(stream: TextIO, shape: Format) -> Iterator[ExportItem]:
    """Read JSON Lines line by line, and Markdown as a whole, since its parts are delimited by length."""
    try:
        yield from read_lines(stream) if shape == "jsonl" else read_markdown(stream.read())
    except UnicodeError as error:
        reason = error.reason if isinstance(error, UnicodeDecodeError) else str(error)
        raise InvalidArgument("FILE", f"is not {stream.encoding} text ({reason})", "Save it as UTF-8") from None
    except OSError as error:
        raise _unusable("FILE", "read", error) from error


def _unusable(place: str, done: str, error: OSError) -> InvalidArgument:
    return InvalidArgument(
        "FILE", f"{place} cannot be {done} ({error.strerror or error})", "Correct that, or give another file"
    )
