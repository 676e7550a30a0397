create or replace trigger exai_note_update
    after update on public.messages referencing new table as changed for each statement
    execute function exai.note_edit_v1()
