create or replace trigger exai_note_truncate
    after truncate on public.messages for each statement
    execute function exai.note_truncation_v1()
