-- The words of a text that spaced_v1 has separated, as one tsvector, with a key before each; null if a row for each word is
-- needed, which takes several times as long: for scripts without spaces, for very long words, and if one tsvector cannot hold
-- all places.
create or replace function exai.spaced_words_v1(p_key text, p_spaced text) returns tsvector
language plpgsql immutable parallel safe
set search_path = pg_catalog, pg_temp
as $$
declare
  c_places constant integer := 16000;
  c_same constant integer := 220;
  -- A script without spaces, an empty part of a word, a word that is cut.
  c_others constant text collate "C" :=
    E'[\u0E01-\u1DFF\u2000-\U0010FFFF]|(?:^| )\x01|\x01(?:[\x01 ]|$)|[^ ]{129}';
  c_unsplit constant text collate "C" := E'(?:\x01[^\x01 ]+){10}|(?:^| )[0-9a-f\x01]{20,}(?: |$)';
  v_text text collate "C" := p_spaced;
  v_bare text collate "C";
  v_wholes text collate "C";
  v_lexemes text collate "C";
  v_words tsvector;
  v_gaps integer;
begin
  if v_text = '' or v_text ~ c_others
     or position('zq' in v_text) > 0 and (octet_length(v_text) > length(v_text) or v_text ~ '[0-9]e[0-9]')
  then
    return null;
  end if;
  if position(E'\x01' in v_text) > 0 then
    if v_text ~ c_unsplit then
      select string_agg(case when w.word ~ c_unsplit then replace(w.word, E'\x01', '') else w.word end, ' ' order by w.n)
        into v_text
        from string_to_table(v_text, ' ') with ordinality w(word, n);
    end if;
    -- Each piece but the first begins with a word of several parts; its place is one more than the gaps before it.
    select string_agg(
             ' ''' || replace(p.word, E'\x01', '') || ''':' || p.gaps + 1 || ','
             || p.gaps + 1 + length(p.word) - length(replace(p.word, E'\x01', '')), '')
      into v_wholes
      from (
        select split_part(x.piece, ' ', 1) as word, x.i,
               sum(length(x.piece) - length(translate(x.piece, E' \x01', ''))) over (
                 order by x.i rows between unbounded preceding and 1 preceding) as gaps
          from string_to_table(regexp_replace(v_text, E'[^\x01 ]+\x01[^ ]+', E'\x02\\&', 'g'), E'\x02')
               with ordinality x(piece, i)) p
     where p.i > 1;
    v_text := replace(v_text, E'\x01', ' ');
  end if;
  v_gaps := length(v_text) - length(replace(v_text, ' ', ''));
  if v_gaps >= c_places then
    return null;
  end if;
  v_lexemes := concat(exai.lexemes_v1(v_text), v_wholes);
  if octet_length(v_text) > length(v_text) then
    v_bare := exai.strip_marks_v1(v_text);
    if v_bare <> v_text then
      if v_bare ~ '^ |  | $' or position('zq' in v_bare) > 0 then
        return null;
      end if;
      v_lexemes := concat(v_lexemes, ' ', exai.lexemes_v1(v_bare), exai.strip_marks_v1(v_wholes));
    end if;
  end if;
  v_words := replace(' ' || v_lexemes, ' ''', ' ''' || p_key)::tsvector;
  if v_gaps >= c_same and exists (select from unnest(v_words) w where cardinality(w.positions) > c_same) then
    return null;
  end if;
  return v_words;
end
$$
