"""Make the tables.

Locks: none on an empty database.
"""

from alembic import op

revision = "0001"
down_revision = None

TABLES = (
    """
    create table if not exists public.conversations (
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
    """
    create table if not exists public.messages (
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
    """
    create table if not exists public.turns (
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
    """
    create table if not exists public.files (
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
    """
    create table if not exists public.conversation_files (
        conversation_id uuid not null,
        file_id uuid not null,
        constraint conversation_files_pkey primary key (conversation_id, file_id),
        constraint conversation_files_conversation_fkey foreign key (conversation_id)
            references public.conversations (id) on delete cascade,
        constraint conversation_files_file_fkey foreign key (file_id)
            references public.files (id) on delete cascade
    )
    """,
    """
    create table exai.removed_conversations (
        owner text not null,
        continuation_id text not null,
        changed_xid xid8 not null default pg_current_xact_id(),
        removed_at timestamptz not null default now(),
        constraint removed_conversations_pkey primary key (changed_xid, owner, continuation_id)
    )
    """,
)


def upgrade() -> None:
    for statement in TABLES:
        op.execute(statement)
    for table in ("conversations", "messages", "turns", "files", "conversation_files"):
        op.execute(f"alter table public.{table} enable row level security")
    op.execute("alter table exai.removed_conversations enable row level security")


def downgrade() -> None:
    op.execute("drop table exai.removed_conversations")
    for table in ("conversation_files", "files", "turns", "messages", "conversations"):
        op.execute(f"drop table public.{table}")
