"""Add the keys and constraints of new tables to the tables of an older system.

Each constraint is added for new rows first, then validated for the older ones without blocking other sessions, then
completed. If older clients have violated one meanwhile, the corresponding step of revision 0002 runs again. An
existing key remains, since older clients and foreign keys of other tables rely on it; a table without one gets
EXAI's.

At the end the triggers that helped older clients are dropped, and those that record changes for caches are created.
From then on a message without a conversation, a duplicate name and a duplicate link are rejected, as in new tables;
roles and contents of older clients are still adapted.

Locks: short exclusive ones. Does nothing without older tables.
"""

from collections.abc import Callable

from alembic import op
from sqlalchemy.exc import DBAPIError

from exai.db.migrations.adoption import TABLES, columns_of
from exai.db.migrations.migrate import create_index, create_triggers, holding, in_one_trip, patiently, take_locks

revision = "0003"
down_revision = "0002"

PRESENT = {
    "conversations": ("continuation_id", "metadata", "created_at", "updated_at"),
    "messages": ("conversation_id", "seq", "role", "content", "metadata", "created_at"),
    "files": ("created_at",),
    "conversation_files": ("conversation_id", "file_id"),
}
UNIQUE = {
    ("conversations", "conversations_owner_continuation_key"): "owner, continuation_id",
    ("messages", "messages_conversation_seq_key"): "conversation_id, seq",
    ("conversation_files", "conversation_files_pair_key"): "conversation_id, file_id",
}
FOREIGN = {
    ("conversations", "conversations_parent_fkey"): """
        foreign key (parent_id) references public.conversations (id)
    """,
    ("messages", "messages_conversation_fkey"): """
        foreign key (conversation_id) references public.conversations (id) on delete cascade
    """,
    ("conversation_files", "conversation_files_conversation_fkey"): """
        foreign key (conversation_id) references public.conversations (id) on delete cascade
    """,
    ("conversation_files", "conversation_files_file_fkey"): """
        foreign key (file_id) references public.files (id) on delete cascade
    """,
}
CHECKS = {
    ("conversations", "conversations_parent_check"): "(parent_id is null) = (parent_seq is null)",
    ("conversations", "conversations_numbers_check"): "next_seq >= 1 and revision >= edited_revision",
    ("messages", "messages_seq_check"): "seq >= 1",
    ("files", "files_sha256_check"): "sha256 ~ '^[0-9a-f]{64}$'",
    ("files", "files_size_check"): "size_bytes >= 0",
    ("messages", "messages_role_check"): "role in ('system', 'user', 'assistant', 'tool')",
}
ATTEMPTS = 5
BROKEN = ("23502", "23503", "23505", "23514")
"""Triggers for older clients, dropped once the constraint exists that each stands for."""

HELPING = {
    "exai_home": ("messages", "recover_parent_v1"),
    "exai_name": ("conversations", "name_conversation_v1"),
    "zz_exai_keep": ("conversations", "preserve_updated_at_v1"),
    "exai_quarantine": ("conversation_files", "quarantine_link_v1"),
}
TRIGGERS = (
    "exai_fix_number", "exai_note_update", "exai_note_delete", "exai_note_truncate", "exai_note_change",
    "exai_note_removal",
)  # fmt: skip
ALWAYS = {
    "exai_note_update": "messages",
    "exai_note_delete": "messages",
    "exai_note_truncate": "messages",
    "exai_note_change": "conversations",
    "exai_note_removal": "conversations",
}

HAS_KEY = """
select 1 from pg_catalog.pg_constraint k
 where k.conrelid = $1::text::regclass and k.contype in ('p', 'u')
   and (select array_agg(a.attname::text order by c.place)
          from unnest(k.conkey) with ordinality c(attnum, place)
          join pg_catalog.pg_attribute a on a.attrelid = k.conrelid and a.attnum = c.attnum) = $2::text[]
"""
HAS_PRIMARY_KEY = "select 1 from pg_catalog.pg_index where indrelid = $1::text::regclass and indisprimary"
HAD_IDENTITY = "select 1 from exai.adopted_tables where name = $1::text and replica_identity is not null"

HAS_CONSTRAINT = "select 1 from pg_catalog.pg_constraint where conrelid = $1::text::regclass and conname = $2::text"
OLD_FOREIGN_KEYS = """
select k.conname::text
  from pg_catalog.pg_constraint k
  join pg_catalog.pg_constraint o
    on o.conrelid = k.conrelid and o.conkey = k.conkey and o.confrelid = k.confrelid and o.conname = $2::text
 where k.conrelid = $1::text::regclass and k.contype = 'f' and k.conname <> $2::text
"""


def upgrade() -> None:
    found = {row[0] for row in op.get_bind().exec_driver_sql("select name from exai.adopted_tables").fetchall()}
    adopted = [table for table in TABLES if table in found]
    for table in adopted:
        make_keys(table)
    if {"conversations", "messages"} & found:
        # Not before every message has to have a number: until then a conversation may have to be numbered again.
        require("conversations", "next_seq")
    for table in adopted:
        make_rules(table)
    if found:
        replace_triggers(found)


def replace_triggers(adopted: set[str]) -> None:
    numbered = {"conversations", "messages"} if {"conversations", "messages"} & adopted else set()
    tables = [table for table in ("conversation_files", "messages", "conversations") if table in adopted | numbered]
    if tables:
        take_locks(*tables)
    in_one_trip(
        [
            *(
                f"drop trigger if exists {name} on public.{table}"
                for name, (table, _) in HELPING.items()
                if table in tables
            ),
            *(f"drop function if exists exai.{function}" for _, function in HELPING.values()),
            "drop function if exists exai.recover_conversation_v1",
        ]
    )
    if numbered:
        create_triggers(TRIGGERS)
        in_one_trip(f"alter table public.{table} enable always trigger {name}" for name, table in ALWAYS.items())


def make_keys(table: str) -> None:
    if table in ("conversations", "files"):
        make_key(table, f"{table}_id_key", "id")
    for column in PRESENT[table]:
        require(table, column)
    for (owner, name), columns in UNIQUE.items():
        if owner == table:
            make_key(table, name, columns)
    if op.get_bind().exec_driver_sql(HAD_IDENTITY, (table,)).fetchall():
        with holding(table):
            op.execute(f"alter table public.{table} replica identity default")


def make_rules(table: str) -> None:
    for (owner, name), rule in FOREIGN.items():
        if owner == table:
            add_constraint(table, name, rule)
            validate(table, name)
            drop_constraints(table, OLD_FOREIGN_KEYS, f"public.{table}", name)
    for (owner, name), rule in CHECKS.items():
        if owner == table:
            add_constraint(table, name, f"check ({rule})")
            validate(table, name)


def require(table: str, column: str) -> None:
    """Make a column not null; a validated check makes the scan for nulls under an exclusive lock unnecessary."""
    if columns_of(op.get_bind(), table)[column].not_null:
        return
    name = f"{table}_{column}_present"
    add_constraint(table, name, f"check ({column} is not null)")
    validate(table, name)
    with holding(table):
        op.execute(f"alter table public.{table} alter column {column} set not null")
        op.execute(f"alter table public.{table} drop constraint {name}")


def drop_constraints(table: str, query: str, *parameters: str) -> None:
    names = [row[0] for row in op.get_bind().exec_driver_sql(query, parameters).fetchall()]
    if not names:
        return
    # A foreign key locks both of its tables.
    with holding(*dict.fromkeys((table, "files", "conversations"))):
        for name in names:
            op.execute(f'alter table public.{table} drop constraint "{name}"')


def add_constraint(table: str, name: str, definition: str) -> None:
    if not op.get_bind().exec_driver_sql(HAS_CONSTRAINT, (f"public.{table}", name)).fetchall():
        # A foreign key locks both of its tables.
        others = [other for other in ("files", "conversations") if f"public.{other}" in definition]
        with holding(*dict.fromkeys((table, *others))):
            op.execute(f"alter table public.{table} add constraint {name} {definition} not valid")


def validate(table: str, name: str) -> None:
    def proved() -> None:
        with patiently(lock_s=4):
            op.execute(f"alter table public.{table} validate constraint {name}")

    mending(table, proved)


def make_key(table: str, name: str, columns: str) -> None:
    """Make the columns unique, and the primary key if there is none."""
    bind = op.get_bind()
    if bind.exec_driver_sql(HAS_KEY, (f"public.{table}", columns.split(", "))).fetchall():
        return
    mending(table, lambda: create_index("public", name, f"public.{table} ({columns})", unique=True))
    primary = not op.get_bind().exec_driver_sql(HAS_PRIMARY_KEY, (f"public.{table}",)).fetchall()
    kind, key = ("primary key", f"{table}_pkey") if primary else ("unique", name)
    for column in columns.split(", ") if primary else ():
        require(table, column)
    with holding(table):
        op.execute(f"alter table public.{table} add constraint {key} {kind} using index {name}")


def mending(table: str, step: Callable[[], None]) -> None:
    """Validate a constraint for all rows; if rows violate it, correct them and try again."""
    backfill = op.get_context().script.get_revision("0002").module
    for attempt in range(1, ATTEMPTS + 1):
        try:
            return step()
        except DBAPIError as error:
            if getattr(error.orig, "sqlstate", None) not in BROKEN or attempt == ATTEMPTS:
                raise
            backfill.mend(table)
    return None


def downgrade() -> None:
    """Keep the constraints: every row satisfies them, and the previous revision does not forbid them."""
