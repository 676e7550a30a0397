"""Hold the tables an older system left behind to the keys and rules of new ones.

Each rule is added for new rows first, then proved for the old ones without holding anybody back, then made final.

Locks: short exclusive ones. Does nothing where there were no old tables.
"""

from alembic import op
from alembic.util import CommandError

from exai.db.adoption import columns_of
from exai.db.migrate import create_index, patiently, take_locks, until_done

revision = "0003"
down_revision = "0002"

PRESENT = {
    "conversations": ("continuation_id", "metadata", "next_seq", "created_at", "updated_at"),
    "messages": ("conversation_id", "seq", "role", "content", "metadata", "created_at"),
    "files": ("created_at",),
    "conversation_files": ("conversation_id", "file_id"),
}
UNIQUE = {
    ("conversations", "conversations_owner_continuation_key"): "owner, continuation_id",
    ("messages", "messages_conversation_seq_key"): "conversation_id, seq",
    ("files", "files_owner_sha256_key"): "owner, sha256",
    ("conversation_files", "conversation_files_pair_key"): "conversation_id, file_id",
}
FOREIGN = {
    "conversations": ("conversations_parent_fkey",),
    "messages": ("messages_conversation_fkey",),
    "files": (),
    "conversation_files": ("conversation_files_conversation_fkey", "conversation_files_file_fkey"),
}
CHECKS = {
    ("conversations", "conversations_parent_check"): "(parent_id is null) = (parent_seq is null)",
    ("conversations", "conversations_numbers_check"): "next_seq >= 1 and revision >= edited_revision",
    ("messages", "messages_seq_check"): "seq >= 1",
    ("files", "files_sha256_check"): "sha256 ~ '^[0-9a-f]{64}$'",
    ("files", "files_size_check"): "size_bytes >= 0",
}
ROLE_CHECK = "role in ('system', 'user', 'assistant', 'tool')"
ATTEMPTS = 5
"""Older writers go on making the duplicates that a unique index cannot be built over."""

HAS_CONSTRAINT = "select 1 from pg_catalog.pg_constraint where conrelid = $1::text::regclass and conname = $2::text"
OLD_ROLE_CHECKS = """
select k.conname::text
  from pg_catalog.pg_constraint k
  join pg_catalog.pg_attribute a on a.attrelid = k.conrelid and k.conkey = array[a.attnum]
 where k.conrelid = 'public.messages'::regclass and k.contype = 'c' and a.attname = 'role'
   and k.conname <> 'messages_role_check'
"""
OLD_FOREIGN_KEYS = """
select k.conname::text
  from pg_catalog.pg_constraint k
  join pg_catalog.pg_constraint o
    on o.conrelid = k.conrelid and o.conkey = k.conkey and o.confrelid = k.confrelid and o.conname = $2::text
 where k.conrelid = $1::text::regclass and k.contype = 'f' and k.conname <> $2::text
"""


def upgrade() -> None:
    bind = op.get_bind()
    adopted = [row[0] for row in bind.exec_driver_sql("select name from exai.adopted_tables").fetchall()]
    for table in adopted:
        for column in PRESENT[table]:
            require(table, column)
        for (owner, name), columns in UNIQUE.items():
            if owner == table:
                make_unique(table, name, columns)
        for name in FOREIGN[table]:
            validate(table, name)
            drop_constraints(table, OLD_FOREIGN_KEYS, f"public.{table}", name)
        for (owner, name), rule in CHECKS.items():
            if owner == table:
                add_check(table, name, rule)
                validate(table, name)
    if "messages" in adopted:
        open_roles()


def require(table: str, column: str) -> None:
    """Make a column not null; a check that is proved already spares the search for nulls under an exclusive lock."""
    if columns_of(op.get_bind(), table)[column].not_null:
        return
    name = f"{table}_{column}_present"
    add_check(table, name, f"{column} is not null")
    validate(table, name)
    take_locks(table)
    op.execute(f"alter table public.{table} alter column {column} set not null")
    op.execute(f"alter table public.{table} drop constraint {name}")


def drop_constraints(table: str, query: str, *parameters: str) -> None:
    names = [row[0] for row in op.get_bind().exec_driver_sql(query, parameters).fetchall()]
    if names:
        # A foreign key is a matter of both its tables.
        take_locks(*dict.fromkeys((table, "files", "conversations")))
    for name in names:
        op.execute(f'alter table public.{table} drop constraint "{name}"')


def add_check(table: str, name: str, rule: str) -> None:
    if not op.get_bind().exec_driver_sql(HAS_CONSTRAINT, (f"public.{table}", name)).fetchall():
        take_locks(table)
        op.execute(f"alter table public.{table} add constraint {name} check ({rule}) not valid")


def validate(table: str, name: str) -> None:
    with patiently(lock_s=4):
        op.execute(f"alter table public.{table} validate constraint {name}")


def make_unique(table: str, name: str, columns: str) -> None:
    if op.get_bind().exec_driver_sql(HAS_CONSTRAINT, (f"public.{table}", name)).fetchall():
        return
    for attempt in range(1, ATTEMPTS + 1):
        try:
            create_index("public", name, f"public.{table} ({columns})", unique=True)
            break
        except Exception as error:
            if getattr(getattr(error, "orig", None), "sqlstate", None) != "23505" or attempt == ATTEMPTS:
                raise
            clear_duplicates(table)
    take_locks(table)
    op.execute(f"alter table public.{table} add constraint {name} unique using index {name}")


def clear_duplicates(table: str) -> None:
    backfill = op.get_context().script.get_revision("0002").module
    with patiently(lock_s=4):
        if table == "conversations":
            until_done(backfill.RENAME_DUPLICATES)
        elif table == "conversation_files":
            until_done(backfill.SET_ASIDE_LINKS)
        else:
            raise CommandError(f"public.{table} has rows that are there twice")


def open_roles() -> None:
    """Old rules about roles would refuse the role `tool`; our rule is proved only if the old rows keep it."""
    bind = op.get_bind()
    drop_constraints("messages", OLD_ROLE_CHECKS)
    add_check("messages", "messages_role_check", ROLE_CHECK)
    with patiently(lock_s=4):
        if not bind.exec_driver_sql(f"select 1 from public.messages where not ({ROLE_CHECK}) limit 1").fetchall():
            op.execute("alter table public.messages validate constraint messages_role_check")


def downgrade() -> None:
    """The rules stay: every row keeps them, and going back needs none of them gone."""
