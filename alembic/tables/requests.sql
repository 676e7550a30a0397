create table public.requests (
    id uuid not null default gen_random_uuid(),
    -- The API's claim and not a function of Supabase, so that the table is the same on every Postgres.
    owner text not null default (nullif(current_setting('request.jwt.claims', true), '')::jsonb ->> 'sub'),
    tool text not null,
    arguments jsonb not null default '{}',
    state text not null default 'queued',
    progress text,
    partial text,
    answer text,
    result jsonb,
    error jsonb,
    continuation_id text,
    attempt integer not null default 0,
    claimed_by uuid,
    lease_until timestamptz,
    not_before timestamptz,
    deadline_at timestamptz,
    created_at timestamptz not null default now(),
    updated_at timestamptz not null default now(),
    claimed_at timestamptz,
    finished_at timestamptz,
    read_at timestamptz,
    constraint requests_pkey primary key (id),
    constraint requests_owner_check check (length(owner) between 1 and 200),
    constraint requests_tool_check check (length(tool) between 1 and 100),
    constraint requests_arguments_check
        check (jsonb_typeof(arguments) = 'object' and octet_length(arguments::text) <= 1048576),
    constraint requests_state_check check (state in ('queued', 'running', 'done', 'failed', 'cancelled')),
    constraint requests_lease_check check (state <> 'running' or (claimed_by is not null and lease_until is not null)),
    -- A client may write the state but not the time, so it can only cancel a request, and only an unfinished one.
    constraint requests_end_check check ((state in ('done', 'failed')) = (finished_at is not null))
)
