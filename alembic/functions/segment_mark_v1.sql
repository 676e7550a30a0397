-- Returns the lexeme that marks each row of a message with several rows; it contains no letter, so it equals no word.
create or replace function exai.segment_mark_v1(p_key text) returns tsvector
language sql immutable parallel safe
set search_path = pg_catalog, pg_temp
as $$
  select pg_catalog.array_to_tsvector(array[p_key operator(pg_catalog.||) '+'])
$$
