-- A queue: autovacuum runs after every thousand deleted rows, regardless of the size of the table.
create table exai.unindexed_messages (
    conversation_id uuid not null,
    first_seq bigint not null,
    last_seq bigint not null,
    done bigint not null default 0
) with (autovacuum_vacuum_threshold = 1000, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_cost_delay = 0)
