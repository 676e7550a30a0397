-- The part of a text that is searched. The server's parser begins anew at many a character and looks ahead for the end of
-- a path, an address or a comment: a long text in which nothing ends one would keep it busy for minutes. So encoded data
-- is cut short, where nothing ends a path for long there is a space, and what begins like a comment is text. (Data first:
-- breaking up takes as long as the parser where there is much to break up.)
-- To be written into the statement that uses it, so it may have no settings of its own.
create or replace function exai.searchable_v1(p_text text) returns text
language sql immutable parallel safe
as $$
  select case when pg_catalog.octet_length(p_text) <= 2000 then p_text
              else pg_catalog.regexp_replace(
                pg_catalog.regexp_replace(
                  pg_catalog.replace(pg_catalog.left(p_text, 100000), '<!--', '<! --'),
                  '([A-Za-z0-9+/_=-]{250})[A-Za-z0-9+/_=-]+', E'\\1 ', 'g'),
                E'[^\\s"<>{|}，。]{250}', E'\\& ', 'g') end
$$
