-- Rejects a change of a message's number or conversation, by which caches, turns and forks refer to it.
create or replace function exai.forbid_renumbering_v1() returns trigger
language plpgsql security definer
set search_path = pg_catalog, pg_temp
as $$
begin
  raise exception 'a message keeps its number and its conversation'
    using hint = 'Insert it anew and delete the old one.', errcode = '23514';
end
$$
