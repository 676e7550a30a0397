create or replace trigger exai_queue_insert
    after insert on public.messages referencing new table as changed for each statement
    execute function exai.queue_words_v1()
