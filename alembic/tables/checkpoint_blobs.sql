-- The value of a channel in one of its versions, stored once for all checkpoints that have it.
create table exai.checkpoint_blobs (
    thread uuid not null,
    namespace text collate "C" not null,
    channel text collate "C" not null,
    version text collate "C" not null,
    value_type text not null,
    value bytea not null,
    key_name text,
    bound_to text,
    created_at timestamptz not null default now(),
    constraint checkpoint_blobs_pkey primary key (thread, namespace, channel, version),
    constraint checkpoint_blobs_thread_fkey foreign key (thread)
        references exai.checkpoint_threads (id) on delete cascade
)
