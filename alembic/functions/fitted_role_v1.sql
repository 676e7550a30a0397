-- The role of a message that an older system knew by another name; of what is unknown, somebody's words to the model.
create or replace function exai.fitted_role_v1(p_role text) returns text
language sql immutable parallel safe
as $$
select case when p_role in ('system', 'user', 'assistant', 'tool') then p_role
            when lower(btrim(p_role)) in ('system', 'user', 'assistant', 'tool') then lower(btrim(p_role))
            when lower(btrim(p_role)) in ('ai', 'agent', 'bot', 'model') then 'assistant'
            when lower(btrim(p_role)) = 'developer' then 'system'
            when lower(btrim(p_role)) in ('function', 'tool_result') then 'tool'
            else 'user' end
$$
