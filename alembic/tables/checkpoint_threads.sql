-- Threads of agents' checkpoints. A deleted one keeps its row for a while, so that its revisions only grow. Contents that
-- were encrypted in the threads named by copied_from are part of this one, too.
create table exai.checkpoint_threads (
    id uuid not null default gen_random_uuid(),
    owner text not null default 'local',
    thread_id text not null,
    revision bigint not null default 0,
    copied_from text[] not null default '{}',
    ttl_s double precision,
    changed_xid xid8 not null default pg_current_xact_id(),
    deleted_at timestamptz,
    expires_at timestamptz,
    created_at timestamptz not null default now(),
    updated_at timestamptz not null default now(),
    constraint checkpoint_threads_pkey primary key (id),
    constraint checkpoint_threads_owner_thread_key unique (owner, thread_id),
    constraint checkpoint_threads_ttl_check check (ttl_s > 0)
)
