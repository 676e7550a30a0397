"""Make the tables, or make those that an older system left behind take our rows.

What is there stays: columns are added, limits are lifted, values that only others know become optional. Rows are
numbered by the next revision; from here on whatever is written next to them is numbered at once.

Locks: on an old table one short exclusive lock; its rows are neither read nor written.
"""

from alembic import op
from alembic.util import CommandError

from exai.db.adoption import CannotAdopt, columns_of, old_tables, statements_for
from exai.db.migrate import create_functions, create_index, take_locks

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
}

RENAMED = ("public.turns",)
"""Ours alone: whatever has this name already is something else."""

KEYS = {
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
"""What an old table is held to from now on; its old rows are seen to before they are."""

HAS_CONSTRAINT = "select 1 from pg_catalog.pg_constraint where conrelid = $1::text::regclass and conname = $2::text"
HAS_KEY = """
select 1 from pg_catalog.pg_index i
  join pg_catalog.pg_attribute a on a.attrelid = i.indrelid and a.attnum = i.indkey[0]
 where i.indrelid = $1::text::regclass and i.indisunique and i.indnkeyatts = 1 and i.indpred is null
   and i.indisvalid and a.attname = 'id'
"""
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
    for table in old:
        # What refers to it needs its key; building one does not hold back writers.
        if table in ("conversations", "files") and not bind.exec_driver_sql(HAS_KEY, (f"public.{table}",)).fetchall():
            create_index("public", f"{table}_id_key", f"public.{table} (id)", unique=True)
    for name in RENAMED:
        if bind.exec_driver_sql("select to_regclass($1::text) is not null", (name,)).scalar():
            raise CommandError(f"{name} is there already and is not EXAI's; rename it first")
    if old:
        take_locks(*reversed(old))
    op.execute("select set_config('timezone', 'UTC', true)")
    op.execute(
        "create table exai.adopted_tables (name text not null primary key, adopted_at timestamptz default now())"
    )
    op.execute("alter table exai.adopted_tables enable row level security")
    for name, statement in TABLES.items():
        if name.removeprefix("public.") in old:
            adopt(name.removeprefix("public."))
        else:
            op.execute(statement)
            op.execute(f"alter table {name} enable row level security")
            op.execute(WITHDRAW.format(table=name))
    for (table, name), definition in KEYS.items():
        if table in old and not bind.exec_driver_sql(HAS_CONSTRAINT, (f"public.{table}", name)).fetchall():
            op.execute(f"alter table public.{table} add constraint {name} {definition} not valid")
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


def plan(table: str) -> list[str]:
    try:
        return statements_for(table, columns_of(op.get_bind(), table))
    except CannotAdopt as refusal:
        raise CommandError(str(refusal)) from refusal


def adopt(table: str) -> None:
    for statement in plan(table):
        op.execute(statement)
    op.execute(f"insert into exai.adopted_tables (name) values ('{table}')")


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
