create or replace trigger exai_queue_update
    after update on public.messages for each row
    when (new.seq is not null
          and (old.content is distinct from new.content or old.created_at is distinct from new.created_at
               or old.seq is null))
    execute function exai.requeue_words_v1()
