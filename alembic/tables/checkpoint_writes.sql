-- What the tasks of a step have written. They may be stored before the checkpoint to which they belong.
create table exai.checkpoint_writes (
    thread uuid not null,
    namespace text collate "C" not null,
    checkpoint_id text collate "C" not null,
    task_id text collate "C" not null,
    place integer not null,
    task_path text not null default '',
    channel text not null,
    value_type text not null,
    value bytea not null,
    key_name text,
    bound_to text,
    created_at timestamptz not null default now(),
    constraint checkpoint_writes_pkey primary key (thread, namespace, checkpoint_id, task_id, place),
    constraint checkpoint_writes_thread_fkey foreign key (thread)
        references exai.checkpoint_threads (id) on delete cascade
)
