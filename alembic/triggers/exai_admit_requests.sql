create or replace trigger exai_admit_requests
    after insert on public.requests referencing new table as fresh for each statement
    execute function exai.admit_requests_v1()
