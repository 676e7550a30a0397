create or replace trigger exai_number
    before insert on public.messages for each row when (new.turn_id is null)
    execute function exai.number_message_v1()
