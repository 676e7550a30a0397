-- A text, or of a long one what is near these words (folded and without marks) wherever each of them is first, as a word and
-- at all. So that a search for what is not indexed yet costs little however long it is. p_folded: the text in that form.
create or replace function exai.near_v1(p_text text, p_folded text, p_words text[]) returns text
language plpgsql immutable
set search_path = pg_catalog, pg_temp
as $$
declare
  c_short constant integer := 4000;
  c_before constant integer := 100;
  c_window constant integer := 400 + 2 * coalesce((select max(length(w)) from unnest(p_words) w), 0);
  v_folded constant text collate "C" := p_folded;
  v_length constant integer := length(p_text);
  v_scale constant numeric := v_length::numeric / greatest(length(p_folded), 1);
  v_spaced text collate "C";
  v_ats integer[];
  v_word text collate "C";
  v_at integer;
begin
  if v_length <= c_short then
    return p_text;
  end if;
  foreach v_word in array p_words loop
    v_at := strpos(v_folded, v_word);
    continue when v_at = 0;
    -- Folding may have changed the length.
    v_ats := v_ats || (v_at * v_scale)::integer;
    if substr(v_folded, v_at + length(v_word), 1) ~ '[a-z0-9]' or (v_at > 1 and substr(v_folded, v_at - 1, 1) ~ '[a-z0-9]') then
      v_spaced := coalesce(
        v_spaced, ' ' || translate(v_folded, E'\n\t.,:;!?()[]{}<>/\\|"''`_-=+*&#@~', repeat(' ', 34)) || ' ');
      v_at := strpos(v_spaced, ' ' || v_word || ' ');
      if v_at > 0 then
        v_ats := v_ats || (v_at * v_scale)::integer;
      end if;
    end if;
  end loop;
  -- A word that is cut is none, unless it is as long as that.
  return (
    select string_agg(
      case when length(x.near) < c_window then regexp_replace(x.near, x.head, '')
           else regexp_replace(regexp_replace(x.near, x.head, ''), x.tail, '') end, E'\n')
      from (
        select substr(p_text, greatest(a - c_before, 1), c_window) as near,
               case when a > c_before then '^[A-Za-z0-9_]{1,99}(?![A-Za-z0-9_])' else '^(?!.)' end as head,
               '(?<![A-Za-z0-9_])[A-Za-z0-9_]{1,99}$' as tail
          from unnest(v_ats) a) x);
end
$$
