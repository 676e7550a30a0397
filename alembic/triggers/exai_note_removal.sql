create or replace trigger exai_note_removal
    after delete on public.conversations for each row
    execute function exai.note_removal_v1()
