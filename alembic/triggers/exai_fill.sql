create or replace trigger exai_fill
    before insert or update on public.conversations for each row
    when (new.continuation_id is null or new.metadata is null or new.created_at is null or new.updated_at is null)
    execute function exai.fill_conversation_v1()
