-- The words of a text as they are indexed, each with its owner's key in front, so that no owner's words are another's.
-- Words with marks also without them. One part; more where the words would not fit into one (up to 8 for 50,000 characters).
-- The server knows places up to 16,383; beyond that they begin anew.
create or replace function exai.words_v1(p_key text, p_text text) returns table (part smallint, words tsvector)
language plpgsql immutable parallel safe rows 1
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
declare
  c_part_bytes constant integer := 800000;
  c_places constant integer := 16383;
  c_short_bytes constant integer := 100000;
begin
  if octet_length(p_text) < c_short_bytes then
    return query
    with units as materialized (
      select u.word, u.place from exai.units_v1(p_text) u),
    forms as (
      select u.word, u.place from units u
       union all
      select b.word, u.place
        from units u
       cross join lateral (select exai.bare_v1(u.word) as word offset 0) b
       where octet_length(u.word) > length(u.word) and b.word <> u.word and b.word <> '')
    select 0::smallint, string_agg('''' || p_key || f.word || ''':' || 1 + (f.place - 1) % c_places, ' ')::tsvector
      from forms f
    having count(*) > 0;
    return;
  end if;
  -- Each word once, for the server counts them before it joins them.
  return query
  with units as materialized (
    select u.word, u.chunk, 1 + (u.place - 1) % c_places as place from exai.units_v1(p_text) u),
  forms as materialized (
    select u.word, u.chunk, u.place from units u
     union all
    select b.word, u.chunk, u.place
      from (select x.word, x.chunk, x.place from units x where octet_length(x.word) > length(x.word)) u
     cross join lateral (select exai.bare_v1(u.word) as word offset 0) b
     where b.word <> u.word and b.word <> ''),
  size as materialized (
    select sum(w.bytes) > c_part_bytes as is_large
      from (select octet_length(f.word) + 16 + 2 * least(count(*), 256) as bytes from forms f group by f.word) w),
  parts as (
    select f.word, f.place,
           case when (select s.is_large from size s)
                then sum(octet_length(f.word) + 20) over (order by f.chunk) / c_part_bytes
                else 0 end as part
      from forms f),
  words as (
    select p.part, p.word, string_agg(p.place::text, ',') as places from parts p group by p.part, p.word)
  select w.part::smallint,
         string_agg('''' || p_key || w.word || ''':' || w.places, ' ')::tsvector
         || case when count(*) over () > 1 then exai.long_mark_v1(p_key) else '' end
    from words w
   group by w.part;
end
$$
