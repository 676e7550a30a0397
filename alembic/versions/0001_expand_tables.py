"""Make the tables, or make those that an older system left behind take our rows.

What is there stays: columns are added, limits are lifted, values that only others know become optional. Rows are
numbered by the next revision; from here on whatever is written next to them is numbered at once. Nothing that older
clients could write is refused until the last revision of the taking over: triggers make it fit, or set it aside.

Locks: on an old table one short exclusive lock; its rows are neither read nor written. An index that changing the type
of a column would build anew under that lock is taken away before, and built again by revision 0004.
"""

from alembic import op
from alembic.util import CommandError

from exai.db.adoption import TIMES, WANTED, CannotAdopt, columns_of, old_tables, statements_for
from exai.db.migrate import create_functions, create_index, drop_index, patiently, take_locks

revision = "0001"
down_revision = None

TABLES = {
    "public.conversations": """
    create table public.conversations (
        id uuid not null default gen_random_uuid(),
        owner text not null default 'local',
        continuation_id text not null default gen_random_uuid()::text,
        title text,
        metadata jsonb not null default '{}',
        tags text[] not null default '{}',
        parent_id uuid,
        parent_seq bigint,
        next_seq bigint not null default 1,
        revision bigint not null default 0,
        edited_revision bigint not null default 0,
        changed_xid xid8 not null default pg_current_xact_id(),
        deleted_at timestamptz,
        created_at timestamptz not null default now(),
        updated_at timestamptz not null default now(),
        constraint conversations_pkey primary key (id),
        constraint conversations_owner_continuation_key unique (owner, continuation_id),
        constraint conversations_parent_fkey foreign key (parent_id) references public.conversations (id),
        constraint conversations_parent_check check ((parent_id is null) = (parent_seq is null)),
        constraint conversations_numbers_check check (next_seq >= 1 and revision >= edited_revision)
    )
    """,
    "public.messages": """
    create table public.messages (
        conversation_id uuid not null,
        seq bigint not null,
        turn_id uuid,
        role text not null,
        kind text not null default 'message',
        content text not null,
        metadata jsonb not null default '{}',
        created_at timestamptz not null default now(),
        constraint messages_pkey primary key (conversation_id, seq),
        constraint messages_conversation_fkey foreign key (conversation_id)
            references public.conversations (id) on delete cascade,
        constraint messages_role_check check (role in ('system', 'user', 'assistant', 'tool')),
        constraint messages_seq_check check (seq >= 1)
    )
    """,
    "public.turns": """
    create table public.turns (
        id uuid not null default gen_random_uuid(),
        conversation_id uuid not null,
        owner text not null,
        request_key text not null,
        request_hash text not null,
        tool text not null,
        state text not null,
        attempt integer not null default 1,
        claimed_by uuid not null,
        lease_until timestamptz not null,
        provider text,
        model text,
        input_tokens bigint,
        output_tokens bigint,
        cached_tokens bigint,
        reasoning_tokens bigint,
        cost numeric,
        error jsonb,
        metadata jsonb not null default '{}',
        first_seq bigint,
        last_seq bigint,
        revision bigint not null,
        reply_first_seq bigint,
        reply_last_seq bigint,
        reply_revision bigint,
        started_at timestamptz not null default now(),
        finished_at timestamptz,
        constraint turns_pkey primary key (id),
        constraint turns_owner_key unique (owner, request_key),
        constraint turns_conversation_fkey foreign key (conversation_id)
            references public.conversations (id) on delete cascade,
        constraint turns_state_check check (state in ('pending', 'finished', 'failed'))
    )
    """,
    "public.files": """
    create table public.files (
        id uuid not null default gen_random_uuid(),
        owner text not null default 'local',
        sha256 text,
        size_bytes bigint,
        media_type text,
        name text,
        storage_path text,
        created_at timestamptz not null default now(),
        constraint files_pkey primary key (id),
        constraint files_owner_sha256_key unique (owner, sha256),
        constraint files_sha256_check check (sha256 ~ '^[0-9a-f]{64}$'),
        constraint files_size_check check (size_bytes >= 0)
    )
    """,
    "public.conversation_files": """
    create table public.conversation_files (
        conversation_id uuid not null,
        file_id uuid not null,
        constraint conversation_files_pkey primary key (conversation_id, file_id),
        constraint conversation_files_conversation_fkey foreign key (conversation_id)
            references public.conversations (id) on delete cascade,
        constraint conversation_files_file_fkey foreign key (file_id)
            references public.files (id) on delete cascade
    )
    """,
    "exai.removed_conversations": """
    create table exai.removed_conversations (
        owner text not null,
        continuation_id text not null,
        changed_xid xid8 not null default pg_current_xact_id(),
        removed_at timestamptz not null default now(),
        constraint removed_conversations_pkey primary key (changed_xid, owner, continuation_id)
    )
    """,
    "exai.set_aside": """
    create table if not exists exai.set_aside (
        table_name text not null,
        reason text not null,
        row jsonb not null,
        set_aside_at timestamptz not null default now()
    )
    """,
}

RENAMED = ("public.turns",)
"""Ours alone: whatever has this name already is something else."""

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
        execute function exai.home_message_v1()
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
        execute function exai.keep_time_v1()
    """,
    ("conversation_files", "exai_set_aside"): """
        before insert on public.conversation_files for each row
        execute function exai.set_aside_link_v1({arguments})
    """,
}
"""On old tables only, in the order of their names, before the one that numbers; only `exai_adopt` stays in the end."""

FITTING = (
    "fitted_role_v1",
    "fitted_metadata_v1",
    "adopt_message_v1",
    "recover_conversation_v1",
    "home_message_v1",
    "name_conversation_v1",
    "keep_time_v1",
    "set_aside_link_v1",
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
insert into exai.set_aside (table_name, reason, row)
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
"""A published table without a key takes neither updates nor deletions."""

WITHDRAW = """
do $$
declare
  v_role text;
begin
  for v_role in select rolname from pg_catalog.pg_roles where rolname in ('anon', 'authenticated') loop
    execute format('revoke all on table {table} from %I', v_role);
  end loop;
end
$$
"""


def upgrade() -> None:
    bind = op.get_bind()
    old = old_tables(bind)
    for table in old:
        plan(table)
    for name in RENAMED:
        if bind.exec_driver_sql("select to_regclass($1::text) is not null", (name,)).scalar():
            raise CommandError(f"{name} is there already and is not EXAI's; rename it first")
    for table in old:
        prepare(table)
    if old:
        take_locks(*reversed(old))
    op.execute("select set_config('timezone', 'UTC', true)")
    op.execute("""
        create table exai.adopted_tables (
            name text not null primary key,
            replica_identity text,
            adopted_at timestamptz not null default now())
    """)
    op.execute("alter table exai.adopted_tables enable row level security")
    for name, statement in TABLES.items():
        if name.removeprefix("public.") in old:
            adopt(name.removeprefix("public."))
        else:
            op.execute(statement)
            op.execute(f"alter table {name} enable row level security")
            op.execute(WITHDRAW.format(table=name))
    if "messages" in old and "conversations" not in old:
        # The conversations that will be made for the messages are numbered later.
        op.execute("alter table public.conversations alter column next_seq drop not null")
    create_functions(["number_message_v1", "fill_conversation_v1"])
    op.execute("""
        create trigger exai_number before insert on public.messages for each row when (new.turn_id is null)
        execute function exai.number_message_v1()
    """)
    op.execute("""
        create trigger exai_fill before insert or update on public.conversations for each row
        when (new.continuation_id is null or new.metadata is null or new.created_at is null or new.updated_at is null)
        execute function exai.fill_conversation_v1()
    """)
    if old:
        create_functions(FITTING)
        fit(old)


def prepare(table: str) -> None:
    """Do what takes long before the locks are taken, without holding anybody back."""
    bind = op.get_bind()
    # What refers to it needs its key.
    if table in ("conversations", "files") and not bind.exec_driver_sql(HAS_KEY, (f"public.{table}",)).fetchall():
        with patiently() as bind:
            bad = bind.exec_driver_sql(BAD_IDS.format(table=table)).fetchall()
        if bad:
            raise CommandError(f"public.{table} has rows without an id or with the same one; give each its own first")
        create_index("public", f"{table}_id_key", f"public.{table} (id)", unique=True)
    columns = columns_of(op.get_bind(), table)
    changed = [name for name in WANTED[table] if name in columns and columns[name].type == TIMES[1]]
    for name, definition in op.get_bind().exec_driver_sql(INDEXES_ON, (f"public.{table}", changed)).fetchall():
        op.execute(TABLES["exai.set_aside"])
        op.get_bind().exec_driver_sql(REMEMBER_INDEX, (table, definition))
        drop_index("public", name)


def fit(old: tuple[str, ...]) -> None:
    """Let what older clients write fit, but keep refusing what their own rules refuse."""

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
            names.append((table, "exai_set_aside"))
    for table, name in names:
        if table in old:
            definition = DURING[table, name].format(arguments=", ".join(arguments), homeless=homeless)
            op.execute(f"create trigger {name} {definition}")


def plan(table: str) -> list[str]:
    if op.get_bind().exec_driver_sql(IS_HIDDEN, (f"public.{table}",)).scalar():
        raise CommandError(f"row level security hides rows of public.{table} from this role; migrate as one it spares")
    try:
        return statements_for(table, columns_of(op.get_bind(), table))
    except CannotAdopt as refusal:
        raise CommandError(str(refusal)) from refusal


def adopt(table: str) -> None:
    # Older rules about roles and contents would refuse what we write, and changing a type would prove them anew.
    for (name,) in op.get_bind().exec_driver_sql(OLD_CHECKS, (f"public.{table}",)).fetchall():
        op.execute(f'alter table public.{table} drop constraint "{name}"')
    for statement in plan(table):
        op.execute(statement)
    published = bool(op.get_bind().exec_driver_sql(NEEDS_IDENTITY, (table,)).fetchall())
    if published:
        op.execute(f"alter table public.{table} replica identity full")
    identity = "'default'" if published else "null"
    op.execute(f"insert into exai.adopted_tables (name, replica_identity) values ('{table}', {identity})")


def downgrade() -> None:
    bind = op.get_bind()
    adopted = bind.exec_driver_sql("select name from exai.adopted_tables").fetchall()
    if adopted:
        raise CommandError("the tables were here before EXAI; what was added to them can only be removed by hand")
    for name in TABLES:
        if bind.exec_driver_sql(f"select 1 from {name} limit 1").fetchall():
            raise CommandError(f"{name} holds rows, which would be lost; remove them first")
    op.execute("drop trigger exai_number on public.messages")
    op.execute("drop trigger exai_fill on public.conversations")
    for name in reversed(TABLES):
        op.execute(f"drop table {name}")
    op.execute("drop function exai.number_message_v1")
    op.execute("drop function exai.fill_conversation_v1")
    op.execute("drop table exai.adopted_tables")
