create or replace trigger exai_note_delete
    after delete on public.messages referencing old table as changed for each statement
    execute function exai.note_edit_v1()
