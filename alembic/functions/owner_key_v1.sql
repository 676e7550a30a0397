-- Returns the prefix of an owner's words in the index.
create or replace function exai.owner_key_v1(p_owner text) returns text
language sql immutable parallel safe
set search_path = pg_catalog, pg_temp
as $$
  select pg_catalog.left(
    pg_catalog.encode(pg_catalog.sha256(pg_catalog.convert_to(p_owner, 'UTF8')), 'base64'), 8)
$$
