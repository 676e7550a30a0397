-- Returns the part of a text around the first of the words (folded and without marks), or its beginning if none is
-- found in the examined part. The examined part is bounded, so the cost of a hit does not depend on the length of the
-- message.
create or replace function exai.excerpt_v1(p_text text, p_words text[], out o_excerpt text, out o_cut_before boolean, out o_cut_after boolean)
language plpgsql immutable
set search_path = pg_catalog, pg_temp
set standard_conforming_strings = on
as $$
declare
  c_window constant integer := 320;
  c_before constant integer := 80;
  c_step constant integer := 4000;
  c_overlap constant integer := 100;
  c_steps constant integer := 8;
  -- Occurrences of a word that are examined where it is also part of other words.
  c_tries constant integer := 8;
  v_text text collate "C" := p_text;
  v_length constant integer := length(p_text);
  v_start integer := 0;
  v_at integer;
  v_word text collate "C";
  v_first integer;
  v_from integer;
  v_found integer;
  v_slice text collate "C";
  v_folded text collate "C";
begin
  if v_length <= c_window then
    o_excerpt := p_text;
    o_cut_before := false;
    o_cut_after := false;
    return;
  end if;
  if v_length > c_step then
    -- A word that is written exactly as in the search is found by position().
    select min(f.at) into v_at
      from unnest(p_words) w
     cross join lateral (
       select coalesce(nullif(strpos(v_text, w), 0), nullif(strpos(lower(left(v_text, 100000)), w), 0)) as at) f;
    v_start := greatest(coalesce(v_at, 1) - c_before - 1, 0);
    if v_start < c_step then
      v_start := 0;
    end if;
  end if;
  v_at := null;
  for v_step in 0 .. c_steps - 1 loop
    exit when v_step > 0 and v_start + v_step * c_step >= v_length;
    v_slice := substr(v_text, v_start + v_step * c_step + 1, c_step + c_overlap);
    v_folded := case when octet_length(v_slice) = length(v_slice) then lower(v_slice)
                     else exai.strip_marks_v1(exai.fold_v1(v_slice)) end;
    foreach v_word in array coalesce(p_words, '{}') loop
      v_first := null;
      v_from := 1;
      for v_try in 1 .. c_tries loop
        v_found := strpos(substr(v_folded, v_from), v_word);
        exit when v_found = 0;
        v_found := v_from + v_found - 1;
        v_from := v_found + length(v_word);
        if substr(v_folded, v_found - 1, 1) !~ '[a-z0-9]' and substr(v_folded, v_from, 1) !~ '[a-z0-9]' then
          v_first := v_found;
          exit;
        end if;
        v_first := coalesce(v_first, v_found);
      end loop;
      v_at := least(v_at, v_first);
    end loop;
    if v_at is not null then
      -- Folding may have changed the length.
      v_at := v_start + v_step * c_step + (v_at::numeric * length(v_slice) / greatest(length(v_folded), 1))::integer;
      exit;
    end if;
  end loop;
  v_at := greatest(coalesce(v_at, 1) - c_before, 1);
  o_excerpt := substr(v_text, v_at, c_window);
  o_cut_before := v_at > 1;
  o_cut_after := v_at + c_window <= v_length;
end
$$
