-- Returns a page of a conversation for exai_page, with the messages that it shares with the conversations it was forked
-- from, which its owner may have deleted and whose rows the policies then hide. Checks the owner itself.
create or replace function exai.shared_page_v1(p_id uuid, p_before_seq bigint, p_limit integer)
returns setof public.messages
language plpgsql stable security definer rows 50
set search_path = pg_catalog, pg_temp
as $$
declare
  c_max_depth constant integer := 64;
  c_budget constant bigint := 4194304;
  v public.conversations;
  r public.messages;
  v_before bigint := p_before_seq;
  v_left integer := p_limit;
  v_bytes bigint := c_budget;
begin
  select c.* into v from public.conversations c
   where c.id = p_id and c.deleted_at is null
     and c.owner = nullif(current_setting('request.jwt.claims', true), '')::jsonb ->> 'sub';
  if not found then
    return;
  end if;
  v_before := least(v_before, v.next_seq);
  for v_depth in 0 .. c_max_depth loop
    for r in
      select m.* from public.messages m
       where m.conversation_id = v.id and m.seq < v_before
       order by m.seq desc
       limit v_left
    loop
      v_bytes := v_bytes - octet_length(r.content) - coalesce(octet_length(r.metadata::text), 0);
      exit when v_bytes < 0 and v_left < p_limit;
      return next r;
      v_left := v_left - 1;
    end loop;
    exit when v_left <= 0 or v_bytes < 0 or v.parent_id is null;
    v_before := least(v_before, v.parent_seq + 1);
    select c.* into v from public.conversations c where c.id = v.parent_id;
  end loop;
end
$$
