create table exai.adopted_tables (
    name text not null primary key,
    replica_identity text,
    adopted_at timestamptz not null default now()
)
