-- The words of a text as they are indexed, each with its owner's key in front, so that no owner's words are another's.
-- Words with marks also without them. One part; more where the server could not keep the places of a word in one: it knows
-- 256 of each, up to 16,383. Parts overlap, so that a phrase is in one of them.
create or replace function exai.words_v1(p_key text, p_text text) returns table (part smallint, words tsvector)
language plpgsql immutable parallel safe rows 1
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
declare
  c_long_bytes constant integer := 100000;
  c_places constant integer := 16000;
  c_long_places constant integer := 4000;
  c_least_places constant integer := 300;
  c_overlap constant integer := 32;
  c_same constant integer := 220;
  c_most_parts constant integer := 32;
  v_text text collate "C";
  v_words text[];
  v_places bigint[];
  v_places_of_part integer;
begin
  v_text := exai.spaced_v1(p_text);
  if octet_length(p_text) < c_long_bytes then
    part := 0;
    words := exai.spaced_words_v1(p_key, v_text);
    if words is not null then
      return next;
      return;
    end if;
  end if;
  with units as materialized (
    select u.word, u.place from exai.spaced_units_v1(v_text) u),
  forms as (
    select u.word, u.place from units u
     union all
    select b.word, u.place
      from units u
     cross join lateral (select exai.strip_marks_v1(u.word) as word offset 0) b
     where octet_length(u.word) > length(u.word) and b.word <> u.word and b.word <> '')
  select array_agg(f.word), array_agg(f.place) into v_words, v_places from forms f;
  if v_words is null then
    return;
  end if;
  v_places_of_part := case when octet_length(p_text) < c_long_bytes then c_places else c_long_places end;
  if cardinality(v_words) > c_same then
    while v_places_of_part > c_least_places and exists (
      select from unnest(v_words, v_places) u(word, place)
       group by u.word, (u.place - 1) / v_places_of_part
      having count(*) > c_same)
    loop
      v_places_of_part := v_places_of_part * 3 / 4;
    end loop;
  end if;
  if octet_length(p_text) < c_long_bytes and v_places_of_part = c_places and cardinality(v_words) <= c_places then
    return query
    select 0::smallint, string_agg('''' || p_key || u.word || ''':' || u.place, ' ')::tsvector
      from unnest(v_words, v_places) u(word, place);
    return;
  end if;
  -- Each word once, for the server counts them before it joins them.
  return query
  with places as (
    select u.word, u.place - 1 as place, least((u.place - 1) / v_places_of_part, c_most_parts - 1) as part
      from unnest(v_words, v_places) u(word, place)),
  parts as (
    select p.part, p.word, p.place from places p
     union all
    select p.part - 1, p.word, p.place
      from places p
     where p.part > 0 and p.place - p.part * v_places_of_part < c_overlap),
  words as (
    select p.part, p.word, string_agg((1 + (p.place - p.part * v_places_of_part) % c_places)::text, ',') as places
      from parts p
     group by p.part, p.word)
  select w.part::smallint,
         string_agg('''' || p_key || w.word || ''':' || w.places, ' ')::tsvector
         || case when count(*) over () > 1 then exai.segment_mark_v1(p_key) else '' end
    from words w
   group by w.part;
end
$$
