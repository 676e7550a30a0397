create table exai.removed_threads (
    owner text not null,
    thread_id text not null,
    changed_xid xid8 not null default pg_current_xact_id(),
    removed_at timestamptz not null default now(),
    constraint removed_threads_pkey primary key (changed_xid, owner, thread_id)
)
