-- Returns a query for texts that contain at least p_level of the terms; null if it would need more than p_most
-- combinations, except for level 1.
create or replace function exai.combine_terms_v1(p_terms tsquery[], p_level integer, p_most integer) returns tsquery
language plpgsql immutable
set search_path = pg_catalog, pg_temp
as $$
declare
  v_number numeric := 1;
begin
  for i in 1 .. p_level loop
    v_number := v_number * (cardinality(p_terms) - p_level + i) / i;
  end loop;
  if v_number > p_most and p_level > 1 then
    return null;
  end if;
  return (
    with recursive chosen(last, number, term) as (
      select i, 1, '(' || p_terms[i]::text || ')' from generate_subscripts(p_terms, 1) i
       union all
      select i, c.number + 1, c.term || ' & (' || p_terms[i]::text || ')'
        from chosen c
       cross join generate_series(c.last + 1, cardinality(p_terms)) i
       where c.number < p_level)
    select string_agg('(' || c.term || ')', ' | ')::tsquery from chosen c where c.number = p_level);
end
$$
