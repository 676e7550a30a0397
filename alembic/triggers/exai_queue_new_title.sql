create or replace trigger exai_queue_new_title
    after update of title, owner on public.conversations for each row
    when (old.title is distinct from new.title or old.owner is distinct from new.owner)
    execute function exai.queue_title_v1()
