create table exai.contents (
    owner text not null,
    sha256 text not null,
    size_bytes bigint not null,
    store text not null,
    storage_path text,
    blob_id uuid,
    encoding text,
    used_at timestamptz not null default now(),
    lost_at timestamptz,
    constraint contents_pkey primary key (owner, sha256),
    constraint contents_blob_fkey foreign key (blob_id) references exai.blobs (id),
    constraint contents_sha256_check check (sha256 ~ '^[0-9a-f]{64}$'),
    constraint contents_place_check check (
        (store = 'postgres') = (blob_id is not null) and (store = 'postgres') = (storage_path is null))
)
