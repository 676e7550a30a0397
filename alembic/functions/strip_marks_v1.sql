-- Returns a folded text without the marks that are often omitted in typing: accents, the vowel points of Hebrew and
-- Arabic. Marks of scripts that cannot be read without them (Indic, Thai, Japanese) are kept.
create or replace function exai.strip_marks_v1(p_text text) returns text
language plpgsql immutable parallel safe
set search_path = pg_catalog, pg_temp
set standard_conforming_strings = on
as $$
declare
  v_text text collate "C" := p_text;
begin
  if octet_length(v_text) = length(v_text)
     or v_text !~ E'[\u00C0-\u024F\u0300-\u036F\u0370-\u052F\u0590-\u06FF\u1E00-\u1FFF]' then
    return v_text;
  end if;
  v_text := normalize(v_text, NFD);
  v_text := regexp_replace(
    v_text,
    E'[\u0300-\u036F\u0591-\u05BD\u05BF\u05C1\u05C2\u05C4\u05C5\u05C7\u064B-\u065F\u0670\u06D6-\u06DC]+', '', 'g');
  v_text := normalize(v_text, NFC);
  v_text := replace(replace(v_text, E'\u00E6', 'ae'), E'\u0153', 'oe');
  -- o, d, h, l and t with a stroke, eth, dotless i.
  return translate(v_text, E'\u00F8\u0111\u0127\u0142\u0167\u00F0\u0131', 'odhltdi');
end
$$
