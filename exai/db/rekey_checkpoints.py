"""Bring the stored form of checkpoints, their values and their writes to that of the newest key, or as they were given.

Invariant: that of `exai.db.rekey`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

import orjson

from exai.db.checkpoints.sealing import BODY, METADATA, VALUE, WRITE, CheckpointSeal
from exai.db.driver.pool import Database, Record
from exai.db.rekey import REPLACED_BYTES, SCANNED, RekeyBatch, RowKey
from exai.encryption.places import key_name
from exai.errors import ContentUnreadable
from exai.models import Owner
from exai.threads import thread_key

FIRST_THREAD: Final = "00000000-0000-0000-0000-000000000000"
LEAST_PLACE: Final = -(2**31)


@dataclass(frozen=True, slots=True)
class SealedTable:
    """A table of checkpoints; `first` is a key before all others."""

    scan: str
    replace: str
    key: Sequence[str]
    first: Sequence[str | int]
    resealed: Callable[[CheckpointSeal, Record], tuple[Any, ...]]


def _checkpoint(seal: CheckpointSeal, row: Record) -> tuple[Any, ...]:
    place = (row["namespace"], row["checkpoint_id"])
    named = (row["key_name"], row["bound_to"])
    facts = seal.opened_document(place, orjson.loads(row["facts"]), row["bound_to"])
    return (
        seal.sealed(BODY, place, seal.opened(BODY, place, row["body"], *named)),
        seal.sealed(METADATA, place, seal.opened(METADATA, place, row["metadata"], *named)),
        orjson.dumps(dict(seal.document(place, facts))).decode(),
    )


def _value(seal: CheckpointSeal, row: Record) -> tuple[Any, ...]:
    place = (row["namespace"], row["channel"], row["version"])
    return (seal.sealed(VALUE, place, seal.opened(VALUE, place, row["value"], row["key_name"], row["bound_to"])),)


def _write(seal: CheckpointSeal, row: Record) -> tuple[Any, ...]:
    place = (row["namespace"], row["checkpoint_id"], row["task_id"], str(row["place"]))
    return (seal.sealed(WRITE, place, seal.opened(WRITE, place, row["value"], row["key_name"], row["bound_to"])),)


CHECKPOINTS: Final = SealedTable(
    "rekey_scan_checkpoints",
    "rekey_checkpoints",
    ("thread", "namespace", "checkpoint_id"),
    (FIRST_THREAD, "", ""),
    _checkpoint,
)
VALUES: Final = SealedTable(
    "rekey_scan_checkpoint_values",
    "rekey_checkpoint_values",
    ("thread", "namespace", "channel", "version"),
    (FIRST_THREAD, "", "", ""),
    _value,
)
WRITES: Final = SealedTable(
    "rekey_scan_checkpoint_writes",
    "rekey_checkpoint_writes",
    ("thread", "namespace", "checkpoint_id", "task_id", "place"),
    (FIRST_THREAD, "", "", "", LEAST_PLACE),
    _write,
)

TABLES: Final = (CHECKPOINTS, VALUES, WRITES)


class CheckpointRekeyRepository:
    """Reads rows of all owners and replaces their stored form; two round trips a batch, one without a change."""

    def __init__(self, database: Database) -> None:
        self._database, self._codec = database, database.codec

    @property
    def works(self) -> tuple[tuple[Callable[..., Any], RowKey], ...]:
        """What replaces some rows of each table after a place, and the first place."""
        return tuple((partial(self._rows, table), tuple(table.first)) for table in TABLES)

    async def _rows(self, table: SealedTable, place: RowKey, *, is_rehearsal: bool) -> RekeyBatch:
        wanted = key_name(self._codec)
        rows = await self._database.fetch(table.scan, *place, wanted, SCANNED, REPLACED_BYTES)
        batch = RekeyBatch()
        columns: list[tuple[Any, ...]] = []
        read = next((number for number, row in enumerate(rows) if row["is_wanted"] and not row["fits"]), len(rows))
        for row in rows[:read]:
            if not row["is_wanted"]:
                continue
            batch.found += 1
            key, owner = [row[name] for name in table.key], Owner(row["owner"])
            seal = CheckpointSeal(self._codec, owner, row["thread_id"], row["copied_from"])
            try:
                columns.append((*key, row["row_version"], *table.resealed(seal, row), wanted))
            except ContentUnreadable as error:
                batch.unreadable.append(f"checkpoint of the thread {row['thread_id']}: {error}")
                continue
            batch.conversations.add(thread_key(owner, row["thread_id"]))
        if read < len(rows) or len(rows) == SCANNED:
            batch.place = tuple(rows[read - 1][name] for name in table.key)
        await batch.replace(self._database, table.replace, columns, is_rehearsal=is_rehearsal)
        return batch
