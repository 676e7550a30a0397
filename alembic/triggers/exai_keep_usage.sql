create or replace trigger exai_keep_usage
    before delete on public.conversations for each row
    execute function exai.keep_usage_v1()
