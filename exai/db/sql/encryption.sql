-- name: encryption_keys
-- repeat: read
-- The keys in use, with the key of the hashes encrypted under each.
select k.name::text as name, k.fingerprint::text as fingerprint, k.wrapped::bytea as wrapped
  from exai.encryption_keys k
 order by k.name;

-- name: add_encryption_key
-- repeat: keyed
-- Stores the name of a key that is in use from now on; by encryption_keys_pkey, the first one by encryption_keys_first_key.
insert into exai.encryption_keys (name, fingerprint, wrapped, is_first)
values ($1::text, $2::text, $3::bytea, nullif($4::boolean, false))
on conflict do nothing
returning 1::integer as added;
