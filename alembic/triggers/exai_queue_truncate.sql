create or replace trigger exai_queue_truncate
    after truncate on public.messages for each statement
    execute function exai.queue_words_v1()
