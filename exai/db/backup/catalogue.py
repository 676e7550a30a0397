"""Which tables a backup has, read from the catalogs of the database, so that no table can be forgotten.

Invariant: every table of EXAI is copied unless `NOT_COPIED` names it with the reason.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from typing import Final

from exai.db.driver.statements import load_statements
from exai.db.migrations.revision import scripts_directory
from exai.errors import DatabaseError

NOT_COPIED: Final[Mapping[str, str]] = {
    "exai.adopted_tables": "describes the tables of this database before EXAI",
    "exai.blobs": "bytes are stored beside the tables, once for all stores",
    "exai.blob_parts": "as exai.blobs",
    "exai.removed_conversations": "is for the caches of this database",
    "exai.removed_threads": "as exai.removed_conversations",
}

_PUBLIC: Final = re.compile(r"^create table public\.(\w+)", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class TableShape:
    """A table with the columns that are copied; `name` includes the schema."""

    schema: str
    table: str
    columns: tuple[str, ...]
    size_bytes: int = 0
    referenced: frozenset[str] = frozenset()

    @property
    def name(self) -> str:
        """Return the name with its schema."""
        return f"{self.schema}.{self.table}"


@functools.cache
def statement(name: str) -> str:
    """Return the text of a named statement."""
    return load_statements()[name].text


@functools.cache
def public_tables() -> tuple[str, ...]:
    """Return the names of EXAI's tables in public, from the schema that all migrations together make."""
    return tuple(_PUBLIC.findall((scripts_directory() / "schema.sql").read_text("utf-8")))


def in_order(tables: Sequence[TableShape]) -> list[TableShape]:
    """Return the tables so that each comes after those that its foreign keys refer to."""
    by_name = {table.name: table for table in tables}
    graph: dict[str, Iterable[str]] = {name: table.referenced & by_name.keys() for name, table in by_name.items()}
    try:
        return [by_name[name] for name in TopologicalSorter(graph).static_order()]
    except CycleError as error:
        raise DatabaseError("database", f"foreign keys form a circle: {error.args[1]}") from error
