-- The statements of EXAI read the clock before this comparison, so they never call the function.
create or replace trigger exai_clock
    before insert or update of updated_at on public.conversations for each row
    when (new.updated_at > clock_timestamp())
    execute function exai.clamp_updated_at_v1()
