-- Returns whether these terms, given by number, satisfy a search: for one of its alternatives, no excluded term, and
-- all others but p_missing, at least one.
create or replace function exai.has_terms_v1(
  p_which integer[], p_groups integer[], p_excluded boolean[], p_missing integer) returns boolean
language sql immutable parallel safe
set search_path = pg_catalog, pg_temp
as $$
  select exists (
    select from unnest(p_groups, p_excluded) with ordinality t(or_group, is_excluded, i)
     group by t.or_group
    having not bool_or(t.is_excluded and t.i = any(p_which))
       and count(*) filter (where not t.is_excluded and t.i = any(p_which))
           >= greatest(count(*) filter (where not t.is_excluded) - p_missing, 1))
$$
