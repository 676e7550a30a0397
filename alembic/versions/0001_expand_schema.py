"""Create the schema, or extend the tables of an older system so that they can hold EXAI's rows.

Nothing is removed from an older table: columns are added, length limits are lifted, and columns that only the older
system writes become optional. Rows written from now on are numbered at once; the next revision numbers the older ones.
Until revision 0003 every row that older clients could write before is accepted: triggers adapt it or quarantine it.

Locks: each older table exclusively while columns, functions and triggers are added; its rows are neither read nor
written. An index that a change of a column's type would rebuild under that lock is dropped first, and built again by
revision 0004.
"""

from alembic import op
from alembic.util import CommandError

from exai.db.migrations.adoption import TIMES, WANTED, CannotAdopt, columns_of, old_tables, statements_for
from exai.db.migrations.migrate import (
    create_functions,
    create_index,
    create_triggers,
    drop_index,
    in_one_trip,
    patiently,
    read_script,
    take_locks,
)

revision = "0001"
down_revision = None

TABLES = (
    "exai.adopted_tables",
    "public.conversations",
    "public.messages",
    "public.turns",
    "public.files",
    "public.conversation_files",
    "exai.removed_conversations",
    "exai.purged_turns",
    "exai.quarantine",
    "exai.blobs",
    "exai.blob_parts",
    "exai.contents",
    "exai.content_texts",
    "exai.remote_files",
    "exai.message_words",
    "exai.unindexed_messages",
    "exai.answers",
    "exai.encryption_keys",
)
DERIVED = ("exai.message_words", "exai.unindexed_messages", "exai.answers")
"""Their contents can be derived from messages, or are only a cache."""

SETTINGS = (
    "alter table exai.blob_parts alter column data set storage external",
    # The table has no key; if all tables are published, its rows could not be deleted otherwise.
    "alter table exai.unindexed_messages replica identity full",
)
OURS_ALONE = ("public.turns",)
"""An older table of this name is not adopted."""

TEXT_FUNCTIONS = (
    "fold_v1", "strip_marks_v1", "spaced_v1", "spaced_units_v1", "units_v1", "lexemes_v1", "spaced_words_v1",
    "segment_mark_v1", "words_v1", "owner_key_v1", "read_query_v1", "combine_terms_v1", "excerpt_v1", "has_terms_v1",
)  # fmt: skip
"""They refer to no table, so they are created before tables are locked."""

FUNCTIONS = (
    "server_epoch_v1", "pending_turns_v1", "header_v1", "live_header_v1", "turn_v1", "message_line_v1",
    "read_page_v1", "read_forward_v1", "find_messages_v1", "list_conversations_v1",
    "claim_name_v1", "known_keys_v1", "patch_metadata_v1", "check_patches_v1", "patch_records_v1", "place_v1",
    "rekey_messages_v1", "rekey_conversations_v1",
    "store_turn_v1", "append_v1", "append_batch_v1", "budgets_v1", "reserve_v1", "begin_turn_v1", "finish_turn_v1",
    "count_steps_v1",
    "fork_v1", "rewind_v1", "change_conversation_v1", "import_v1",
    "search_unindexed_v1", "search_page_v1", "rows_read_v1", "search_v1", "index_messages_v1",
    "usage_v1", "similar_answers_v1", "blob_size_v1", "put_files_v1", "sweep_contents_v1", "link_files_v1",
    "rekey_content_v1",
    "number_message_v1", "fill_conversation_v1", "forbid_renumbering_v1", "clamp_updated_at_v1",
    "note_edit_v1", "note_change_v1", "note_removal_v1", "note_truncation_v1",
    "queue_words_v1", "requeue_words_v1", "queue_title_v1", "keep_usage_v1",
)  # fmt: skip
"""Each refers only to earlier ones."""

FIRST_TRIGGERS = ("exai_number", "exai_fill", "exai_clock", "exai_keep_usage")
LATER_TRIGGERS = (
    "exai_queue_insert", "exai_queue_update", "exai_queue_delete", "exai_queue_truncate", "exai_queue_title",
    "exai_queue_new_title",
    "exai_fix_number", "exai_note_update", "exai_note_delete", "exai_note_truncate", "exai_note_change",
    "exai_note_removal",
)  # fmt: skip
"""They rely on numbers, so where there are older rows revisions 0002 and 0003 create them."""

ALWAYS = {
    "exai_note_update": "messages",
    "exai_note_delete": "messages",
    "exai_note_truncate": "messages",
    "exai_note_change": "conversations",
    "exai_note_removal": "conversations",
}
"""These triggers also fire in sessions with session_replication_role = replica, in which ordinary ones do not."""

CLEANUP = "public.cleanup_orphaned_files"
OLDER_CLEANUP = """
select format('drop routine %s', p.oid::regprocedure)
  from pg_catalog.pg_proc p
 where p.pronamespace = 'public'::regnamespace and p.proname = 'cleanup_orphaned_files'
"""
"""The older system's had no grace period. All are dropped: a call without arguments would be ambiguous."""

GRANT = """
do $$
declare
  v_role text;
begin
  revoke all on function {cleanup}(interval, integer) from public;
  for v_role in select rolname from pg_catalog.pg_roles where rolname in ('anon', 'authenticated') loop
    execute format('revoke all on table {tables} from %I', v_role);
    execute format('revoke all on function {cleanup}(interval, integer) from %I', v_role);
  end loop;
  for v_role in select rolname from pg_catalog.pg_roles where rolname = 'service_role' loop
    execute format('grant execute on function {cleanup}(interval, integer) to %I', v_role);
  end loop;
end
$$
"""

DURING = {
    ("messages", "exai_adopt"): """
        before insert or update of role, content, metadata, created_at on public.messages for each row
        when (new.turn_id is null and (
            new.role is null or new.role not in ('system', 'user', 'assistant', 'tool') or new.content is null
            or new.metadata is null or jsonb_typeof(new.metadata) <> 'object' or new.created_at is null))
        execute function exai.adopt_message_v1()
    """,
    ("messages", "exai_home"): """
        before insert on public.messages for each row when (new.turn_id is null and {homeless})
        execute function exai.recover_parent_v1()
    """,
    ("conversations", "exai_adopt"): """
        before insert or update of continuation_id, metadata on public.conversations for each row
        when (new.continuation_id = '' or length(new.continuation_id) > 500 or jsonb_typeof(new.metadata) <> 'object')
        execute function exai.fill_conversation_v1()
    """,
    ("conversations", "exai_name"): """
        before insert or update of continuation_id on public.conversations for each row
        execute function exai.name_conversation_v1()
    """,
    ("conversations", "zz_exai_keep"): """
        before update on public.conversations for each row
        when ((old.next_seq is null and new.next_seq is not null)
              or new.continuation_id = old.continuation_id || '~' || old.id)
        execute function exai.preserve_updated_at_v1()
    """,
    ("conversation_files", "exai_quarantine"): """
        before insert on public.conversation_files for each row
        execute function exai.quarantine_link_v1({arguments})
    """,
}
"""On older tables only. They fire in the order of their names; revision 0003 drops all but `exai_adopt`."""

FITTING = (
    "adopted_role_v1",
    "adopted_metadata_v1",
    "adopt_message_v1",
    "recover_conversation_v1",
    "recover_parent_v1",
    "name_conversation_v1",
    "preserve_updated_at_v1",
    "quarantine_link_v1",
)

HAS_KEY = """
select 1 from pg_catalog.pg_index i
  join pg_catalog.pg_attribute a on a.attrelid = i.indrelid and a.attnum = i.indkey[0]
 where i.indrelid = $1::text::regclass and i.indisunique and i.indnkeyatts = 1 and i.indpred is null
   and i.indisvalid and a.attname = 'id'
"""
HAS_UNIQUE = """
select 1 from pg_catalog.pg_index i
 where i.indrelid = $1::text::regclass and i.indisunique and i.indpred is null and i.indisvalid
   and (select array_agg(a.attname::text order by a.attname)
          from pg_catalog.pg_attribute a where a.attrelid = i.indrelid and a.attnum = any(i.indkey)) = $2::text[]
"""
LETS_ORPHANS_IN = """
select a.attname::text
  from pg_catalog.pg_attribute a
 where a.attrelid = $1::text::regclass and a.attname in ('conversation_id', 'file_id')
   and not exists (select from pg_catalog.pg_constraint k
                    where k.conrelid = a.attrelid and k.contype = 'f' and k.convalidated and k.conkey = array[a.attnum])
"""
LETS_NULLS_IN = """
select a.attname::text
  from pg_catalog.pg_attribute a
 where a.attrelid = $1::text::regclass and a.attname in ('conversation_id', 'file_id') and not a.attnotnull
"""
OLD_CHECKS = """
select k.conname::text
  from pg_catalog.pg_constraint k
  join pg_catalog.pg_attribute a on a.attrelid = k.conrelid and k.conkey = array[a.attnum]
 where k.conrelid = $1::text::regclass and k.conrelid = to_regclass('public.messages') and k.contype = 'c'
   and a.attname in ('role', 'content')
"""
INDEXES_ON = """
select distinct r.relname::text, pg_get_indexdef(i.indexrelid)
  from pg_catalog.pg_index i
  join pg_catalog.pg_class r on r.oid = i.indexrelid
  join pg_catalog.pg_attribute a on a.attrelid = i.indrelid and a.attname = any($2::text[])
  join pg_catalog.pg_depend d
    on d.classid = 'pg_class'::regclass and d.objid = i.indexrelid and d.refobjid = i.indrelid
   and d.refobjsubid = a.attnum
 where i.indrelid = $1::text::regclass and not i.indisunique and i.indisvalid
"""
REMEMBER_INDEX = """
insert into exai.quarantine (table_name, reason, row)
values ($1::text, 'index to be built again', jsonb_build_object('definition', $2::text))
"""
BAD_IDS = "select 1 from public.{table} group by id having count(*) > 1 or id is null limit 1"
IS_HIDDEN = "select row_security_active($1::text)"
NEEDS_IDENTITY = """
select 1 from pg_catalog.pg_class c
 where c.oid = ('public.' || $1::text)::regclass and c.relreplident = 'd'
   and not exists (select from pg_catalog.pg_index i where i.indrelid = c.oid and i.indisprimary)
   and exists (select from pg_catalog.pg_publication_tables t
                 join pg_catalog.pg_publication p on p.pubname = t.pubname
                where (t.schemaname, t.tablename) = ('public', $1::text) and (p.pubupdate or p.pubdelete))
"""
"""A published table without a key rejects updates and deletions."""


def upgrade() -> None:
    bind = op.get_bind()
    old = old_tables(bind)
    for table in old:
        plan(table)
    for name in OURS_ALONE:
        if bind.exec_driver_sql("select to_regclass($1::text) is not null", (name,)).scalar():
            raise CommandError(f"{name} is there already and is not EXAI's; rename it first")
    for table in old:
        prepare(table)
    create_functions(TEXT_FUNCTIONS)
    if old:
        take_locks(*reversed(old))
    op.execute("select set_config('timezone', 'UTC', true)")
    new = [name for name in TABLES if name.removeprefix("public.") not in old]
    in_one_trip([read_script("tables", "adopted_tables")])
    for table in old:
        adopt(table)
    in_one_trip([read_script("tables", name.split(".")[1]) for name in new if name != "exai.adopted_tables"])
    in_one_trip([*SETTINGS, *(f"alter table {name} enable row level security" for name in new)])
    if "messages" in old and "conversations" not in old:
        # The conversations that will be made for the messages are numbered later.
        op.execute("alter table public.conversations alter column next_seq drop not null")
    in_one_trip([row[0] for row in op.get_bind().exec_driver_sql(OLDER_CLEANUP).fetchall()])
    in_one_trip([read_script("functions", "cleanup_orphaned_files")])
    create_functions(FUNCTIONS)
    op.execute(GRANT.format(tables=", ".join(new), cleanup=CLEANUP))
    create_triggers(FIRST_TRIGGERS)
    if not {"conversations", "messages"} & {*old}:
        create_triggers(LATER_TRIGGERS)
        in_one_trip([f"alter table public.{table} enable always trigger {name}" for name, table in ALWAYS.items()])
    if old:
        create_functions(FITTING)
        fit(old)


def prepare(table: str) -> None:
    """Do the long steps before the locks are taken, without blocking other sessions."""
    bind = op.get_bind()
    # Foreign keys that refer to the table need its key.
    if table in ("conversations", "files") and not bind.exec_driver_sql(HAS_KEY, (f"public.{table}",)).fetchall():
        with patiently() as bind:
            bad = bind.exec_driver_sql(BAD_IDS.format(table=table)).fetchall()
        if bad:
            raise CommandError(f"public.{table} has rows without an id or with the same one; give each its own first")
        create_index("public", f"{table}_id_key", f"public.{table} (id)", unique=True)
    columns = columns_of(op.get_bind(), table)
    changed = [name for name in WANTED[table] if name in columns and columns[name].type == TIMES[1]]
    for name, definition in op.get_bind().exec_driver_sql(INDEXES_ON, (f"public.{table}", changed)).fetchall():
        op.execute(read_script("tables", "quarantine"))
        op.get_bind().exec_driver_sql(REMEMBER_INDEX, (table, definition))
        drop_index("public", name)


def fit(old: tuple[str, ...]) -> None:
    """Adapt the rows that older clients write, but keep rejecting the ones that the older rules reject."""

    def found(query: str, table: str, *parameters: object) -> bool:
        return bool(op.get_bind().exec_driver_sql(query, (f"public.{table}", *parameters)).fetchall())

    names = [("messages", "exai_adopt"), ("conversations", "exai_adopt"), ("conversations", "zz_exai_keep")]
    arguments, homeless = [], "true"
    if "messages" in old and (strangers := found(LETS_ORPHANS_IN, "messages")) | found(LETS_NULLS_IN, "messages"):
        names.append(("messages", "exai_home"))
        homeless = "true" if strangers else "new.conversation_id is null"
    if "conversations" in old and not found(HAS_UNIQUE, "conversations", ["continuation_id"]):
        names.append(("conversations", "exai_name"))
    if "conversation_files" in old:
        table = "conversation_files"
        reasons = {
            "nulls": found(LETS_NULLS_IN, table),
            "orphans": found(LETS_ORPHANS_IN, table),
            "twice": not found(HAS_UNIQUE, table, ["conversation_id", "file_id"]),
        }
        arguments = [reason for reason, given in reasons.items() if given]
        if arguments:
            names.append((table, "exai_quarantine"))
    values = {"arguments": ", ".join(arguments), "homeless": homeless}
    in_one_trip([f"create trigger {key[1]} {DURING[key].format(**values)}" for key in names if key[0] in old])


def plan(table: str) -> list[str]:
    if op.get_bind().exec_driver_sql(IS_HIDDEN, (f"public.{table}",)).scalar():
        raise CommandError(f"row level security hides rows of public.{table} from this role; migrate as one it spares")
    try:
        return statements_for(table, columns_of(op.get_bind(), table))
    except CannotAdopt as refusal:
        raise CommandError(str(refusal)) from refusal


def adopt(table: str) -> None:
    # Older rules about roles and contents would refuse what EXAI writes, and changing a type would prove them again.
    checks = op.get_bind().exec_driver_sql(OLD_CHECKS, (f"public.{table}",)).fetchall()
    in_one_trip([*(f'alter table public.{table} drop constraint "{name}"' for (name,) in checks), *plan(table)])
    published = bool(op.get_bind().exec_driver_sql(NEEDS_IDENTITY, (table,)).fetchall())
    if published:
        op.execute(f"alter table public.{table} replica identity full")
    identity = "'default'" if published else "null"
    op.execute(f"insert into exai.adopted_tables (name, replica_identity) values ('{table}', {identity})")


def downgrade() -> None:
    bind = op.get_bind()
    if bind.exec_driver_sql("select name from exai.adopted_tables").fetchall():
        raise CommandError("the tables were here before EXAI; what was added to them can only be removed by hand")
    for name in TABLES:
        if name not in DERIVED and bind.exec_driver_sql(f"select 1 from {name} limit 1").fetchall():
            raise CommandError(f"{name} holds rows, which would be lost; remove them first")
    # Functions that take a row of a table depend on it, and triggers on their functions.
    rows = ("header_v1", "live_header_v1", "turn_v1", "message_line_v1", "claim_name_v1")
    in_one_trip(
        [
            f"drop function {CLEANUP}(interval, integer)",
            *(f"drop function exai.{name}" for name in rows),
            *(f"drop table {name}" for name in reversed(TABLES)),
            *(f"drop function exai.{name}" for name in (*TEXT_FUNCTIONS, *FUNCTIONS) if name not in rows),
        ]
    )
