"""Determine the statements that adapt an older system's tables; the migrations execute them.

Invariant: no statement removes a row, narrows a column, or drops a name that older clients still use.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol

TABLES: Final = ("conversations", "messages", "files", "conversation_files")
"""In the order in which they refer to each other."""

TEXTS: Final = ("text", "character varying", "character")
TIMES: Final = ("timestamp with time zone", "timestamp without time zone")
UUID_TYPE: Final = "uuid"
FIRST_TIME: Final = "0001-01-02 00:00:00+00"
LAST_TIME: Final = "9999-12-31 00:00:00+00"
"""Latest time that clients can represent; infinity, for example, is beyond it."""


class Rows(Protocol):
    """The result of a statement."""

    def fetchall(self) -> Sequence[Any]:
        """All of it."""


class Bind(Protocol):
    """A database to look at."""

    def exec_driver_sql(self, statement: str, parameters: tuple[Any, ...] | None = None) -> Rows:
        """Run one statement as it stands."""


class CannotAdopt(Exception):
    """An old table has a shape that cannot be adapted without a decision of its owner."""


@dataclass(frozen=True, slots=True)
class Column:
    """One column as it is now; `filled` when a row may be inserted without naming it."""

    type: str
    not_null: bool
    filled: bool


@dataclass(frozen=True, slots=True)
class ExpectedColumn:
    """One column as it has to be.

    `older` is the value that rows from before get while the column is added, None to leave it empty for the backfill;
    `default` is what later rows get, None for nothing.
    """

    type: str
    older: str | None = None
    default: str | None = None


CONVERSATIONS: Final = {
    "owner": ExpectedColumn("text", "'local'", "'local'"),
    "continuation_id": ExpectedColumn("text", default="gen_random_uuid()::text"),
    "title": ExpectedColumn("text"),
    "metadata": ExpectedColumn("jsonb", "'{}'", "'{}'"),
    "tags": ExpectedColumn("text[]", "'{}'", "'{}'"),
    "parent_id": ExpectedColumn("uuid"),
    "parent_seq": ExpectedColumn("bigint"),
    # Empty means: not numbered yet. New conversations are empty of messages, so theirs begin at 1 at once.
    "next_seq": ExpectedColumn("bigint", default="1"),
    "revision": ExpectedColumn("bigint", "0", "0"),
    "edited_revision": ExpectedColumn("bigint", "0", "0"),
    "reply_seq": ExpectedColumn("bigint"),
    "reply_kind": ExpectedColumn("text"),
    "former_name": ExpectedColumn("text"),
    "cut_from": ExpectedColumn("uuid[]"),
    # A constant first, because a volatile default would rewrite the whole table.
    "changed_xid": ExpectedColumn("xid8", "'3'", "pg_current_xact_id()"),
    "deleted_at": ExpectedColumn("timestamp with time zone"),
    "expires_at": ExpectedColumn("timestamp with time zone"),
    "created_at": ExpectedColumn("timestamp with time zone", default="now()"),
    "updated_at": ExpectedColumn("timestamp with time zone", default="now()"),
}
MESSAGES: Final = {
    "conversation_id": ExpectedColumn("uuid"),
    "seq": ExpectedColumn("bigint"),
    "turn_id": ExpectedColumn("uuid"),
    "role": ExpectedColumn("text"),
    "kind": ExpectedColumn("text", "'message'", "'message'"),
    "content": ExpectedColumn("text"),
    "message_key": ExpectedColumn("text"),
    "metadata": ExpectedColumn("jsonb", "'{}'", "'{}'"),
    "created_at": ExpectedColumn("timestamp with time zone", default="now()"),
}
FILES: Final = {
    "owner": ExpectedColumn("text", "'local'", "'local'"),
    "sha256": ExpectedColumn("text"),
    "size_bytes": ExpectedColumn("bigint"),
    "media_type": ExpectedColumn("text"),
    "name": ExpectedColumn("text"),
    "storage_path": ExpectedColumn("text"),
    "created_at": ExpectedColumn("timestamp with time zone", "now()", "now()"),
    "used_at": ExpectedColumn("timestamp with time zone", "now()", "now()"),
}
LINKS: Final = {
    "conversation_id": ExpectedColumn("uuid"),
    "file_id": ExpectedColumn("uuid"),
    "source": ExpectedColumn("jsonb"),
}
WANTED: Final = {
    "conversations": CONVERSATIONS,
    "messages": MESSAGES,
    "files": FILES,
    "conversation_files": LINKS,
}
INDISPENSABLE: Final = {
    "conversations": ("id",),
    "messages": ("conversation_id", "role", "content"),
    "files": ("id",),
    "conversation_files": ("conversation_id", "file_id"),
}


def old_tables(bind: Bind) -> tuple[str, ...]:
    """Those of our tables that are there already."""
    rows = bind.exec_driver_sql(
        "select c.relname::text from pg_catalog.pg_class c"
        " where c.relnamespace = 'public'::regnamespace and c.relkind in ('r', 'p') and c.relname = any($1::text[])",
        (list(TABLES),),
    ).fetchall()
    found = {row[0] for row in rows}
    return tuple(table for table in TABLES if table in found)


def columns_of(bind: Bind, table: str, schema: str = "public") -> dict[str, Column]:
    """A table's columns by name; none if it is not there."""
    rows = bind.exec_driver_sql(
        """
        select a.attname::text, format_type(a.atttypid, null), a.attnotnull,
               a.atthasdef or a.attidentity <> '' or a.attgenerated <> '' or not a.attnotnull
          from pg_catalog.pg_attribute a
         where a.attrelid = to_regclass($1::text || '.' || $2::text) and a.attnum > 0 and not a.attisdropped
        """,
        (schema, table),
    ).fetchall()
    return {row[0]: Column(row[1], row[2], row[3]) for row in rows}


def statements_for(table: str, columns: dict[str, Column]) -> list[str]:
    """Return the statements that let an old table accept EXAI's rows: they add columns, widen types, drop not null.

    None of them reads or writes the table's rows, so that their locks are held for a moment only.

    Raises:
        CannotAdopt: a column is missing or of a type that cannot be kept.

    """
    missing = [name for name in INDISPENSABLE[table] if name not in columns]
    if missing:
        raise CannotAdopt(f"public.{table} is there but has no column {', '.join(missing)}; rename it out of the way")
    statements: list[str] = []
    if "id" in columns:
        statements += _identity(table, columns["id"])
    for name, wanted in WANTED[table].items():
        found = columns.get(name)
        statements += _added(table, name, wanted) if found is None else _kept(table, name, wanted, found)
    foreign = [name for name in columns if name != "id" and name not in WANTED[table]]
    return statements + [line for name in foreign for line in _optional(table, name, columns[name])]


def _identity(table: str, found: Column) -> list[str]:
    if found.type == UUID_TYPE:
        return [] if found.filled and found.not_null else [_set_default(table, "id", "gen_random_uuid()")]
    if table in {"conversations", "files"}:
        raise CannotAdopt(f"public.{table}.id is {found.type}, but has to be uuid; convert it first")
    if found.filled:
        return []
    if found.type in TEXTS:
        return [_set_default(table, "id", "gen_random_uuid()::text")]
    if found.type in {"bigint", "integer"}:
        sequence = f"public.{table}_id_seq"
        return [
            f"create sequence if not exists {sequence} owned by public.{table}.id",
            f"select setval('{sequence}', coalesce(max(id), 0) + 1, false) from public.{table}",  # noqa: S608
            _set_default(table, "id", f"nextval('{sequence}')"),
        ]
    raise CannotAdopt(f"public.{table}.id is {found.type} and has no default; give it one first")


def _added(table: str, name: str, wanted: ExpectedColumn) -> list[str]:
    older = f" not null default {wanted.older}" if wanted.older else ""
    statements = [f"alter table public.{table} add column {name} {wanted.type}{older}"]
    if wanted.default and wanted.default != wanted.older:
        statements.append(_set_default(table, name, wanted.default))
    return statements


def _kept(table: str, name: str, wanted: ExpectedColumn, found: Column) -> list[str]:
    statements = []
    if found.type != wanted.type:
        if wanted.type == "text" and found.type in TEXTS:
            # Only the limit goes; the rows stay as they are.
            statements.append(f"alter table public.{table} alter column {name} type text")
        elif wanted.type in TIMES and found.type in TIMES:
            # Read as UTC, which the migration's session is set to; then the rows stay as they are too.
            statements.append(f"alter table public.{table} alter column {name} type {wanted.type}")
        elif not (wanted.type == "bigint" and found.type == "integer" and name == "size_bytes"):
            raise CannotAdopt(
                f"public.{table}.{name} is {found.type}, but has to be {wanted.type}; convert it or rename it first"
            )
    if wanted.default and not (found.filled and found.not_null):
        statements.append(_set_default(table, name, wanted.default))
    elif found.not_null and not found.filled and wanted.older is None and name not in INDISPENSABLE[table]:
        statements.append(f"alter table public.{table} alter column {name} drop not null")
    return statements


def _optional(table: str, name: str, found: Column) -> list[str]:
    """Return the statement that makes a column optional which EXAI does not write; older writers still fill it."""
    quoted = '"' + name.replace('"', '""') + '"'
    if found.type in TIMES and not (found.filled and found.not_null):
        return [_set_default(table, quoted, "now()")]
    return [] if found.filled else [f"alter table public.{table} alter column {quoted} drop not null"]


def _set_default(table: str, name: str, default: str) -> str:
    return f"alter table public.{table} alter column {name} set default {default}"


def older_time(columns: dict[str, Column]) -> str:
    """Return an expression for the time of a message: null if it is unknown or no client could represent it."""
    names = [name for name in ("created_at", "timestamp", "sent_at") if name in columns and columns[name].type in TIMES]
    return f"coalesce({', '.join([_readable(name, columns[name].type) for name in names])})"


def _readable(name: str, type_: str) -> str:
    # Without a zone it is UTC; said so, and not left to the session, so that an index can be made of it.
    at = f'"{name}"' if type_ == TIMES[0] else f"(\"{name}\" at time zone 'UTC')"
    return f"case when {at} >= '{FIRST_TIME}'::timestamptz and {at} < '{LAST_TIME}'::timestamptz then {at} end"
