-- Returns a message as one line of JSON in the format of exai/pages.py; times are in the session's time zone, which
-- must be UTC. A time written by another program that Python cannot represent becomes the first or last one that it
-- can; metadata that is not an object becomes the value of one.
create or replace function exai.message_line_v1(m public.messages) returns text
language sql stable
set search_path = pg_catalog, pg_temp
as $$
select {{message_line}}
$$
