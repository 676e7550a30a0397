-- Before a conversation is written with an updated_at in the future: replaces it by the present time. Lists, expiry
-- and change notices depend on updated_at, so imported data must not set it ahead of the clock.
create or replace function exai.clamp_updated_at_v1() returns trigger
language plpgsql security definer
set search_path = pg_catalog, pg_temp
as $$
begin
  new.updated_at := clock_timestamp();
  return new;
end
$$
