-- The words of a text and their places, as a tsvector is written; the words are folded, have one space between them and at
-- most 128 characters, and the text does not hold zq. The server's parser makes them, in a fraction of the time that a row
-- for each word takes. It sees ASCII only, for what it takes for letters depends on the locale: the bytes of other letters
-- are written as numbers, and what would begin a number (1e5) as part of a word.
create or replace function exai.lexemes_v1(p_text text) returns text
language plpgsql immutable parallel safe
set search_path = pg_catalog, pg_temp
set standard_conforming_strings = on
as $$
declare
  c_number constant text := '\m[0-9]+e[0-9]+[a-z]';
  v_is_ascii constant boolean := octet_length(p_text) = length(p_text);
  v_text text collate "C" := p_text;
begin
  if not v_is_ascii then
    v_text := replace(encode(convert_to(v_text, 'UTF8'), 'escape'), '\', 'zq');
  end if;
  if v_text ~ c_number then
    v_text := replace(to_tsvector('pg_catalog.simple', regexp_replace(v_text, c_number, 'zqx\&', 'g'))::text, 'zqx', '');
  else
    v_text := to_tsvector('pg_catalog.simple', v_text)::text;
  end if;
  if not v_is_ascii then
    v_text := convert_from(decode(replace(v_text, 'zq', '\'), 'escape'), 'UTF8');
  end if;
  return v_text;
end
$$
