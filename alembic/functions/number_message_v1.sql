-- Numbers a message written by another program (a dashboard, an older client) and fills the columns it left empty.
-- EXAI's own messages always have a turn.
--
-- A conversation whose next_seq is null has not been numbered yet; its messages get no number until it is. The lock
-- makes the numbering wait for messages in flight, and the other way round.
create or replace function exai.number_message_v1() returns trigger
language plpgsql security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_next bigint;
begin
  new.role := coalesce(new.role, 'user');
  new.content := coalesce(new.content, '');
  new.metadata := coalesce(new.metadata, '{}');
  new.created_at := coalesce(new.created_at, now());
  select c.next_seq into v_next from public.conversations c where c.id = new.conversation_id for no key update;
  if v_next is null then
    return new;
  end if;
  if new.seq >= v_next then
    raise exception 'messages are numbered by the database' using hint = 'Leave seq out.', errcode = '23514';
  end if;
  update public.conversations c
     set next_seq = case when new.seq is null then v_next + 1 else v_next end,
         revision = c.revision + 1,
         edited_revision = case when new.seq is null then c.edited_revision else c.revision + 1 end,
         changed_xid = pg_current_xact_id(),
         updated_at = clock_timestamp()
   where c.id = new.conversation_id;
  if new.seq is not null then
    -- A deleted message is inserted again, which also concerns the forks that read it.
    with recursive touched(id) as (
      select c.id from public.conversations c where c.parent_id = new.conversation_id and c.parent_seq >= new.seq
      union
      select c.id from public.conversations c join touched t on c.parent_id = t.id where c.parent_seq >= new.seq),
    locked as (
      select c.id from public.conversations c where c.id in (select t.id from touched t) order by c.id for no key update)
    update public.conversations c
       set revision = c.revision + 1, edited_revision = c.revision + 1, changed_xid = pg_current_xact_id(),
           updated_at = clock_timestamp()
      from locked
     where c.id = locked.id;
  end if;
  new.seq := coalesce(new.seq, v_next);
  return new;
end
$$
