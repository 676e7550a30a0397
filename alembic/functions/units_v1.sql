-- What a text is searched by, in its order. form says what a unit is: a word, or a part of one of several (fooBar, utf8); the
-- whole of such a word, at the places of its first and last part; of scripts that put no spaces between words each pair of
-- neighbouring letters, and the last letter alone (tail). chunk: the same for all units of one word.
-- A word is cut after 128 characters.
create or replace function exai.units_v1(p_text text)
returns table (place bigint, chunk bigint, word text, form text)
language sql immutable parallel safe rows 300
set search_path = pg_catalog, pg_temp
as $$
  select u.place, u.chunk, u.word, u.form from exai.spaced_units_v1(exai.spaced_v1(p_text)) u
$$
