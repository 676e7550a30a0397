create or replace trigger exai_queue_delete
    after delete on public.messages referencing old table as changed for each statement
    execute function exai.queue_words_v1()
