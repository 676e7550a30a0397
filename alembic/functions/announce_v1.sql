-- Connects EXAI to Supabase's Realtime where it is, or with p_on = false disconnects it; returns what is connected. The
-- tables that clients read are published; each change of a conversation is sent to exai:<owner>, where that owner may
-- listen. What belongs to another role is left as it is, with a warning. Can be repeated.
create or replace function exai.announce_v1(p_on boolean default true) returns text[]
language plpgsql
set search_path = pg_catalog, pg_temp
set lock_timeout = '4s'
as $$
declare
  c_published constant text[] := array['conversations', 'messages', 'requests'];
  v_is_open constant boolean := coalesce(has_schema_privilege(to_regnamespace('realtime')::oid, 'usage'), false);
  v_has_send constant boolean := case when v_is_open
    then to_regprocedure('realtime.send(jsonb,text,text,boolean)') is not null else false end;
  v_has_topic constant boolean := case when v_is_open
    then to_regprocedure('realtime.topic()') is not null and to_regclass('realtime.messages') is not null
         and to_regrole('authenticated') is not null
    else false end;
  v_done text[] := '{}';
  v_table text;
begin
  begin
    for v_table in
      select t from unnest(c_published) t
        join pg_publication p on p.pubname = 'supabase_realtime' and not p.puballtables
       where p_on <> exists (select from pg_publication_tables x
                              where (x.pubname, x.schemaname, x.tablename) = ('supabase_realtime', 'public', t))
    loop
      execute format('alter publication supabase_realtime %s table public.%I',
                     case when p_on then 'add' else 'drop' end, v_table);
    end loop;
    if p_on and exists (select from pg_publication p where p.pubname = 'supabase_realtime') then
      v_done := v_done || 'publication supabase_realtime'::text;
    end if;
  exception when insufficient_privilege then
    raise warning 'the publication supabase_realtime belongs to another role: %', sqlerrm;
  end;

  if p_on and v_has_send then
    if not exists (select from pg_trigger g where g.tgrelid = 'public.conversations'::regclass
                      and g.tgname = 'exai_announce') then
      create trigger exai_announce after insert on public.conversations for each row
        execute function exai.announce_change_v1();
      create trigger exai_announce_change after update on public.conversations for each row
        when (new.revision is distinct from old.revision)
        execute function exai.announce_change_v1();
    end if;
    v_done := v_done || 'broadcast'::text;
  else
    drop trigger if exists exai_announce on public.conversations;
    drop trigger if exists exai_announce_change on public.conversations;
  end if;

  begin
    if v_has_topic then
      drop policy if exists exai_own on realtime.messages;
      if p_on then
        create policy exai_own on realtime.messages for select to authenticated
          using ((select realtime.topic()) = 'exai:' || (
            select nullif(nullif((select current_setting('request.jwt.claims', true)), '')::jsonb ->> 'sub', 'local')));
        v_done := v_done || 'topic exai:<owner>'::text;
      end if;
    end if;
  exception when insufficient_privilege then
    raise warning 'a policy on realtime.messages cannot be made by this role: %', sqlerrm;
  end;
  return v_done;
end
$$
