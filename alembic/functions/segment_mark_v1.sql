-- What stands beside the words of an owner in each row of a message that has several: no letter, so that it is no word.
create or replace function exai.segment_mark_v1(p_key text) returns tsvector
language sql immutable parallel safe
as $$
  select pg_catalog.array_to_tsvector(array[p_key operator(pg_catalog.||) '+'])
$$
