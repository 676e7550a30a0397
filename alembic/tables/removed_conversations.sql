create table exai.removed_conversations (
    owner text not null,
    continuation_id text not null,
    changed_xid xid8 not null default pg_current_xact_id(),
    removed_at timestamptz not null default now(),
    revision bigint not null default 0,
    constraint removed_conversations_pkey primary key (changed_xid, owner, continuation_id)
)
