create table exai.blobs (
    id uuid not null,
    size_bytes bigint not null,
    begun_at timestamptz not null default now(),
    constraint blobs_pkey primary key (id),
    constraint blobs_size_check check (size_bytes >= 0)
)
