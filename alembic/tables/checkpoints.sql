-- The checkpoints of a thread, in the order of their ids. body and metadata are what a serializer made; facts are the
-- metadata by which lists are filtered. versions names the version of each channel, whose value is in checkpoint_blobs.
-- key_name: the key with which body, metadata and facts are encrypted; bound_to: the thread for which, null: this one.
create table exai.checkpoints (
    thread uuid not null,
    namespace text collate "C" not null,
    checkpoint_id text collate "C" not null,
    owner text not null,
    parent_id text collate "C",
    run_id text,
    body_type text not null,
    body bytea not null,
    metadata_type text not null,
    metadata bytea not null,
    facts jsonb not null default '{}',
    versions jsonb not null default '{}',
    delta_channels text[] not null default '{}',
    key_name text,
    bound_to text,
    created_at timestamptz not null default now(),
    constraint checkpoints_pkey primary key (thread, namespace, checkpoint_id),
    constraint checkpoints_thread_fkey foreign key (thread)
        references exai.checkpoint_threads (id) on delete cascade,
    constraint checkpoints_facts_check check (jsonb_typeof(facts) = 'object'),
    constraint checkpoints_versions_check check (jsonb_typeof(versions) = 'object')
)
