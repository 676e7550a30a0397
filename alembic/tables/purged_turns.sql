create table exai.purged_turns (
    owner text not null,
    started_at timestamptz not null,
    turn_id uuid not null,
    conversation_id uuid not null,
    continuation_id text not null,
    tool text not null,
    state text not null,
    provider text,
    model text not null,
    input_tokens bigint,
    output_tokens bigint,
    cached_tokens bigint,
    reasoning_tokens bigint,
    cost numeric,
    is_estimated boolean not null,
    constraint purged_turns_pkey primary key (owner, started_at, turn_id)
)
