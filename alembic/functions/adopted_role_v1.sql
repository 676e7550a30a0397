-- Maps a role of an older system to one of EXAI's; an unknown role becomes `user`.
create or replace function exai.adopted_role_v1(p_role text) returns text
language sql immutable parallel safe
set search_path = pg_catalog, pg_temp
as $$
select case when p_role in ('system', 'user', 'assistant', 'tool') then p_role
            when x.role in ('system', 'user', 'assistant', 'tool') then x.role
            when x.role in ('ai', 'agent', 'bot', 'model') then 'assistant'
            when x.role = 'developer' then 'system'
            when x.role in ('function', 'tool_result') then 'tool'
            else 'user' end
  from (select pg_catalog.lower(pg_catalog.btrim(p_role)) as role) x
$$
