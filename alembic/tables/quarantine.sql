create table if not exists exai.quarantine (
    table_name text not null,
    reason text not null,
    row jsonb not null,
    quarantined_at timestamptz not null default now()
)
