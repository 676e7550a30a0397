create or replace trigger exai_queue_title
    after insert on public.conversations for each row when (new.title is not null)
    execute function exai.queue_title_v1()
