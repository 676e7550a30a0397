-- The units (units_v1) of a text that spaced_v1 has separated.
create or replace function exai.spaced_units_v1(p_spaced text)
returns table (place bigint, chunk bigint, word text, form text)
language plpgsql immutable parallel safe rows 300
set search_path = pg_catalog, pg_temp
set standard_conforming_strings = on
as $$
declare
  c_together constant text collate "C" :=
    E'[\u0E01-\u0E3A\u0E40-\u0E4E\u0E81-\u0EBD\u0EC0-\u0ECE\u0EDC-\u0EDF\u1000-\u103F\u1050-\u108F\u109A-'
    '\u109D\u1100-\u11FF\u1780-\u17D3\u17D7\u17DC-\u17DD\u1950-\u19C9\u1A20-\u1A7C\u1B00-\u1B4C\u3005-\u3007'
    '\u3021-\u302F\u3031-\u3035\u3038-\u303C\u3041-\u309A\u309D-\u309F\u30A1-\u30FA\u30FC-\u318E\u31A0-\u31BF'
    '\u31F0-\u31FF\u3400-\u4DBF\u4E00-\u9FFF\uA960-\uA97C\uA980-\uA9C0\uA9E0-\uA9EF\uA9FA-\uA9FE\uAA60-\uAA76'
    '\uAA7A-\uAA7F\uAC00-\uD7FB\uF900-\uFAFF\U00016FE0-\U00018CFF\U0001AFF0-\U0001B2FF\U00020000-\U0003FFFD]';
  v_text text collate "C" := p_spaced;
  v_has_together boolean;
begin
  v_has_together := octet_length(v_text) > length(v_text) and v_text ~ c_together;
  if v_has_together then
    v_text := regexp_replace(v_text, '(' || c_together || '+)', ' \1 ', 'g');
  elsif position(E'\x01' in v_text) = 0 then
    return query
    select w.n, w.n, left(w.word, 128), 'word'
      from string_to_table(v_text, ' ') with ordinality w(word, n)
     where w.word <> '';
    return;
  end if;
  return query
  with chunks as (
    select w.n, v_has_together and w.word ~ c_together as is_together,
           case when w.word ~ E'(?:\x01[^\x01]+){10}' or w.word ~ E'^[0-9a-f\x01]{20,}$'
                then replace(w.word, E'\x01', '') else w.word end as word
      from string_to_table(v_text, ' ') with ordinality w(word, n)
     where w.word <> ''),
  letters as (
    select c.n, p.i, c.is_together, p.word,
           case when c.is_together then lead(p.word) over (partition by c.n order by p.i) end as next
      from chunks c
     cross join lateral string_to_table(c.word, case when c.is_together then null else E'\x01' end)
           with ordinality p(word, i)
     where p.word <> ''),
  pieces as (
    select row_number() over (order by l.n, l.i) as place, l.n, left(l.word || coalesce(l.next, ''), 128) as word,
           case when not l.is_together then 'word' when l.next is null then 'tail' else 'pair' end as form
      from letters l)
  select p.place, p.n, p.word, p.form from pieces p
   union all
  select p.place, c.n, left(replace(c.word, E'\x01', ''), 128), 'whole'
    from chunks c
    join (select x.n, min(x.place) as first, max(x.place) as last from pieces x group by x.n) e on e.n = c.n
   cross join lateral (values (e.first), (e.last)) p(place)
   where not c.is_together and c.word ~ E'[^\x01]\x01[^\x01]';
end
$$
