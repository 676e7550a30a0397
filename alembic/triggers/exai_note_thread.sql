create or replace trigger exai_note_thread after delete on exai.checkpoint_threads for each row
execute function exai.note_thread_v1()
