-- Which life of the server answers: changes at restart, failover and restore. Seconds, because the text of a time
-- depends on session settings.
create or replace function exai.incarnation_v1() returns text
language sql stable
as $$
select extract(epoch from pg_catalog.pg_postmaster_start_time())::text
$$
