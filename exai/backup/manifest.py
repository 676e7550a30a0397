"""The manifest of a backup: its versions, tables and digests. It is written last: without it a backup is incomplete.

Invariant: a manifest that is read is the one that was written. With a passphrase it also proves who has written it.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import orjson

from exai import __version__
from exai.backup.parts import UNFINISHED, open_regular, sync_directory
from exai.backup.sealing import Damaged, Seal, plain_digest, seal_of
from exai.errors import InvalidArgument, NotFound

FORMAT: Final = 1
NAME: Final = "manifest.json"
TABLES: Final = "tables"
"""The directory of the rows of tables."""

BYTES: Final = "files"
"""The directory of the contents of files."""

LISTING: Final = "files.jsonl.zst"
MAX_BYTES: Final = 16 * 1_048_576
TABLE_NAME: Final = re.compile(r"[A-Za-z0-9_]+\.[A-Za-z0-9_]+")


@dataclass(frozen=True, slots=True)
class PartRecord:
    """What was written into one file: size and digest before compression, and the size of the file."""

    file: str
    size_bytes: int
    sha256: str
    stored_bytes: int


@dataclass(frozen=True, slots=True)
class TableRecord:
    """The rows of one table."""

    schema: str
    table: str
    columns: Sequence[str]
    rows: int
    part: PartRecord

    @property
    def name(self) -> str:
        """Return the name with its schema."""
        return f"{self.schema}.{self.table}"


@dataclass(frozen=True, slots=True)
class Manifest:
    """All that is known about a backup. `sequences` are schema, name and last value; `missing` counts lost contents."""

    created_at: str
    revision: str
    server_version: str
    tables: Sequence[TableRecord]
    sequences: Sequence[tuple[str, str, int]]
    listing: PartRecord
    contents: int
    content_bytes: int
    missing: int
    exai_version: str = __version__

    @property
    def rows(self) -> int:
        """Return the number of rows in all tables."""
        return sum(table.rows for table in self.tables)

    @property
    def expected_bytes(self) -> int:
        """Return the size of everything before compression."""
        return sum(table.part.size_bytes for table in self.tables) + self.content_bytes


AskPassphrase = Callable[[], str]
"""Returns the passphrase; called only for a backup that has one."""


def write_manifest(directory: Path, manifest: Manifest, seal: Seal | None) -> None:
    """Write the manifest durably, which completes the backup."""
    body = orjson.dumps(manifest, option=orjson.OPT_INDENT_2).decode()
    document: dict[str, Any] = {"format": FORMAT, "manifest": body}
    if seal is None:
        document["sha256"] = plain_digest(body.encode())
    else:
        document["scrypt"] = {"salt": seal.salt.hex(), "n": seal.cost}
        document["hmac"] = seal.signature(body.encode())
    unfinished = directory / (NAME + UNFINISHED)
    with unfinished.open("wb") as stream:
        stream.write(orjson.dumps(document, option=orjson.OPT_INDENT_2))
        stream.flush()
        os.fsync(stream.fileno())
    for each in (directory, *(path for path in directory.rglob("*") if path.is_dir())):
        sync_directory(each)
    unfinished.replace(directory / NAME)
    sync_directory(directory)


def is_complete(directory: Path) -> bool:
    """Return whether the directory holds a backup that has ended."""
    return (directory / NAME).is_file()


def read_manifest(directory: Path, ask: AskPassphrase) -> tuple[Manifest, Seal | None]:
    """Return the manifest of a backup, and its keys.

    Raises:
        NotFound: there is none.
        InvalidArgument: the backup is incomplete, newer than this release, or the passphrase is wrong.
        Damaged: the manifest is not what was written.

    """
    if not directory.is_dir():
        raise NotFound("backup", str(directory), "Give the directory of a backup")
    try:
        with open_regular(directory / NAME) as stream:
            data = stream.read(MAX_BYTES)
    except FileNotFoundError:
        problem = f"{directory} holds no complete backup: it has no {NAME}"
        raise InvalidArgument("DIRECTORY", problem, "Give the directory of a backup that has ended") from None
    try:
        document = orjson.loads(data)
        if document["format"] != FORMAT:
            cure = "Use the release that made it, or a newer one"
            raise InvalidArgument("DIRECTORY", f"has format {document['format']}, not {FORMAT}", cure)
        body = document["manifest"].encode()
        seal = _checked(document, body, ask)
        return _manifest_of(orjson.loads(body)), seal
    except (KeyError, ValueError, TypeError, AttributeError) as error:
        raise Damaged(f"{NAME} is damaged ({type(error).__name__})") from None


def _checked(document: dict[str, Any], body: bytes, ask: AskPassphrase) -> Seal | None:
    """Return the keys, None without a passphrase, after comparing the manifest with its digest."""
    if "scrypt" not in document:
        if document["sha256"] != plain_digest(body):
            raise Damaged(f"{NAME} is damaged: its digest differs")
        return None
    scrypt = document["scrypt"]
    seal = seal_of(ask(), bytes.fromhex(scrypt["salt"]), scrypt["n"])
    if document["hmac"] != seal.signature(body):
        raise InvalidArgument("passphrase", f"is wrong, or {NAME} was changed", "Give the one the backup was made with")
    return seal


def table_file(name: str) -> str:
    """Return the file of the rows of a table."""
    return f"{TABLES}/{name}.copy.zst"


def _manifest_of(fields: dict[str, Any]) -> Manifest:
    tables = [TableRecord(**{**table, "part": PartRecord(**table["part"])}) for table in fields["tables"]]
    listing = PartRecord(**fields["listing"])
    names = [table.name for table in tables]
    # A manifest without a passphrase may be forged: it must not name files elsewhere.
    expected = [LISTING, *map(table_file, names)]
    if not all(map(TABLE_NAME.fullmatch, names)) or [listing.file, *(each.part.file for each in tables)] != expected:
        raise Damaged(f"{NAME} names other files than those of a backup")
    sequences = [(str(schema), str(name), int(last)) for schema, name, last in fields["sequences"]]
    return Manifest(**{**fields, "tables": tables, "sequences": sequences, "listing": listing})
