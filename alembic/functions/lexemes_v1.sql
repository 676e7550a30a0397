-- The words of a text and their places, in the text form of a tsvector. The words are folded, separated by one space and at most
-- 128 characters long; the text does not contain zq. The server's parser makes them, in a fraction of the time of a row for each
-- word. It receives ASCII only, because which other characters are letters depends on the locale: their bytes are encoded as
-- numbers, and a word that begins like a floating-point number (1e5) gets a prefix.
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
