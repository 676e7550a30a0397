-- Parses a search as users type it: words, "phrases", -excluded terms, `or` between alternatives, and prefixes with a
-- trailing asterisk. A word of several parts, such as a path or an address, becomes a phrase of these parts. or_group
-- numbers the alternatives; within one all terms are required. If only exclusions are given, they are treated as
-- words. needle: a substring, without marks, of every text with the term; its longest word, which the fewest texts
-- contain.
create or replace function exai.read_query_v1(p_key text, p_query text)
returns table (term tsquery, or_group integer, is_excluded boolean, label text, needle text, words text[])
language plpgsql immutable rows 3
set search_path = pg_catalog, pg_temp
set standard_conforming_strings = on
as $$
#variable_conflict use_variable
declare
  v_query text collate "C" := translate(
    p_query, E'\u201C\u201D\u201E\u201F\uFF02\u00A0\u1680\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200A'
    '\u2028\u2029\u202F\u205F\u3000', '"""""                  ');
  v_all_excluded constant boolean := regexp_replace(v_query, '-"[^"]*("|$)', '-x', 'g') !~ '(^|\s)(--|[^-\s])';
  v_part record;
  v_chunk record;
  v_last bigint;
begin
  or_group := 0;
  for v_part in
    select m[1] = '-' or m[3] = '-' as is_excluded, m[2] as quoted, m[4] as typed
      from regexp_matches(v_query, '(?:(-)(?!-))?"([^"]*)(?:"|$)|(?:(-)(?!-))?([^\s"]+)', 'g') m
  loop
    if v_part.typed ~ '^[oO][rR]$' then
      or_group := or_group + 1;
      continue;
    end if;
    is_excluded := coalesce(v_part.is_excluded, false) and not v_all_excluded;
    label := btrim(coalesce(v_part.quoted, v_part.typed));
    term := null;
    v_last := null;
    for v_chunk in
      with units as materialized (
        select u.place, u.chunk, u.word, u.form, count(*) filter (where u.form = 'pair') over (partition by u.chunk) as pairs
          from exai.units_v1(label) u),
      used as (
        select u.place, u.chunk, u.word,
               quote_literal(p_key || u.word) || case when u.form = 'tail' or v_part.typed ~ '\*$' and u.place = (
                 select max(x.place) from units x) then ':*' else '' end as lexeme,
               lag(u.place) over (partition by u.chunk order by u.place) as before
          from units u
         where u.form in ('word', 'pair') or u.form = 'tail' and u.pairs = 0)
      select min(u.place) as first, max(u.place) as last, array_agg(u.word order by u.place) as words,
             string_agg(case when u.before is null then '' else ' <' || u.place - u.before || '> ' end || u.lexeme, ''
                        order by u.place) as sequence,
             (select quote_literal(p_key || w.word) from units w where w.chunk = u.chunk and w.form = 'whole' limit 1)
             as whole
        from used u
       group by u.chunk
       order by 1
    loop
      if v_last is null then
        term := concat_ws(' | ', v_chunk.whole, '(' || v_chunk.sequence || ')')::tsquery;
        words := v_chunk.words;
      else
        term := tsquery_phrase(
          term, concat_ws(' | ', v_chunk.whole, '(' || v_chunk.sequence || ')')::tsquery, (v_chunk.first - v_last)::integer);
        words := words || v_chunk.words;
      end if;
      v_last := v_chunk.last;
    end loop;
    if term is not null then
      needle := exai.strip_marks_v1((select w from unnest(words) w order by length(w) desc limit 1));
      return next;
    end if;
  end loop;
end
$$
