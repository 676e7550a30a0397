-- Moves a link that the future keys would reject to exai.quarantine while an older system's tables are adopted: a
-- duplicate, or a link to a missing row. Its arguments name the violations that the older tables allow.
create or replace function exai.quarantine_link_v1() returns trigger
language plpgsql security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_reason text;
begin
  if 'nulls' = any(tg_argv::text[]) and (new.conversation_id is null or new.file_id is null) then
    v_reason := 'refers to nothing';
  elsif 'orphans' = any(tg_argv::text[])
     and (not exists (select from public.conversations c where c.id = new.conversation_id)
          or not exists (select from public.files f where f.id = new.file_id)) then
    v_reason := 'refers to nothing';
  elsif 'twice' = any(tg_argv::text[]) then
    perform pg_advisory_xact_lock(1702388073, hashtext(new.conversation_id::text || new.file_id::text));
    if exists (select from public.conversation_files l
                where l.conversation_id = new.conversation_id and l.file_id = new.file_id) then
      v_reason := 'there twice';
    end if;
  end if;
  if v_reason is null then
    return new;
  end if;
  insert into exai.quarantine (table_name, reason, row) values (tg_table_name, v_reason, to_jsonb(new));
  return null;
end
$$
