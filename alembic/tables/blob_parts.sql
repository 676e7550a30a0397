create table exai.blob_parts (
    blob_id uuid not null,
    number integer not null,
    characters integer not null,
    data bytea not null,
    constraint blob_parts_pkey primary key (blob_id, number),
    constraint blob_parts_blob_fkey foreign key (blob_id) references exai.blobs (id) on delete cascade,
    constraint blob_parts_size_check check (octet_length(data) between 1 and 1048576)
)
