-- Binds an encrypted message to its place: replaces the secret at its end by the id of its conversation and a hash of
-- that id and its number under the secret, which is also inside the ciphertext. Any other text is returned unchanged.
-- The format is that of exai/encryption/envelope.py.
create or replace function exai.place_v1(p_content text, p_conversation_id uuid, p_seq bigint) returns text
language sql immutable
set search_path = pg_catalog, pg_temp
as $$
select case when p_content ~ E'^\x01\\$exai1\\$[a-z0-9_-]{1,32}\\$[A-Za-z0-9+/]+={0,2}\\$[A-Za-z0-9+/]{22}==$'
  then substr(p_content, 2, length(p_content) - 25) || p_conversation_id::text || '$' || encode(
    substring(sha256(decode(right(p_content, 24), 'base64') || uuid_send(p_conversation_id) || int8send(p_seq))
              from 1 for 16), 'base64')
  else p_content end
$$
