-- Before a conversation gets a time of its last change that is still to come: it gets the present one. Lists, expiry and
-- notices go by that time, so a time that somebody's data brought must not go ahead of the clock.
create or replace function exai.clamp_updated_at_v1() returns trigger
language plpgsql security definer
set search_path = pg_catalog, pg_temp
as $$
begin
  new.updated_at := clock_timestamp();
  return new;
end
$$
