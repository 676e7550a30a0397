create or replace trigger exai_fix_number
    before update of conversation_id, seq on public.messages for each row
    when (old.seq is not null
          and (old.seq is distinct from new.seq or old.conversation_id is distinct from new.conversation_id))
    execute function exai.forbid_renumbering_v1()
