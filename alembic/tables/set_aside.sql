create table if not exists exai.set_aside (
    table_name text not null,
    reason text not null,
    row jsonb not null,
    set_aside_at timestamptz not null default now()
)
