create or replace trigger exai_note_request
    before update of state, read_at on public.requests for each row
    when (new.state is distinct from old.state or new.read_at is distinct from old.read_at)
    execute function exai.note_request_v1()
