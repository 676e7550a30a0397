create table public.files (
    id uuid not null default gen_random_uuid(),
    owner text not null default 'local',
    sha256 text,
    size_bytes bigint,
    media_type text,
    name text,
    storage_path text,
    created_at timestamptz not null default now(),
    used_at timestamptz not null default now(),
    constraint files_pkey primary key (id),
    constraint files_sha256_check check (sha256 ~ '^[0-9a-f]{64}$'),
    constraint files_size_check check (size_bytes >= 0)
)
