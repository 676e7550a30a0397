-- The keys with which rows are encrypted, by name; not the keys themselves. wrapped holds the key of the hashes, encrypted
-- under the key of the row. Of daemons that start at once with different keys only one makes it: is_first is true once.
create table exai.encryption_keys (
    name text not null,
    fingerprint text not null,
    wrapped bytea not null,
    is_first boolean,
    added_at timestamptz not null default now(),
    constraint encryption_keys_pkey primary key (name),
    constraint encryption_keys_first_key unique (is_first)
)
