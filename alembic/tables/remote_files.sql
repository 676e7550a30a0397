create table exai.remote_files (
    key_id text not null,
    file_id text not null,
    made_at timestamptz not null default now(),
    tried_at timestamptz not null default now(),
    constraint remote_files_pkey primary key (key_id, file_id)
)
