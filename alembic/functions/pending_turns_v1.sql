-- Returns the running turns of a conversation, oldest first: tool, model and start of each; null if there is none. A turn
-- whose lease has expired is not running. By turns_pending_idx.
create or replace function exai.pending_turns_v1(p_conversation_id uuid) returns json
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
declare
  c_most constant integer := 20;
begin
  return (
    select json_agg(json_build_object('tool', t.tool, 'model', t.model, 'since', t.started_at) order by t.started_at, t.id)
      from (select x.id, x.tool, x.model, x.started_at
              from public.turns x
             where x.conversation_id = p_conversation_id and x.state = 'pending' and x.lease_until > clock_timestamp()
             order by x.started_at, x.id
             limit c_most) t);
end
$$
