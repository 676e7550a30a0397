-- Stores a JSON array of metrics ({"type", "data", "timestamp"}; without "data" the other members are the data) in
-- one round trip, once per batch id, and returns the result. status: stored | duplicate (this batch was stored
-- before: the same counts) | refused (not an array, or too long) | failed (the database's error, in error).
--
-- Metrics with the label owner of an owner who was erased later are received and not stored: daemons hold the last
-- seconds of a history in memory. The lock makes an erasure wait for the calls that do not see its row yet.
--
-- Returns errors instead of raising them, because an exception would roll back the row of the processing log, and an
-- autonomous transaction needs an extension. So the log holds every failure.
create or replace function monitoring.aggregate_metrics(
  p_metrics jsonb, p_batch_id uuid default null, p_source text default null)
returns table (status text, batch_id uuid, received integer, stored integer, rejected integer, late integer,
               future integer, error text)
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
declare
  c_kept constant interval := '7 days';
  c_ahead constant interval := '5 minutes';
  c_clocks constant interval := '10 seconds';
  c_erasing constant bigint := 7311701100470826099;
  c_most constant integer := 10000;
  c_type_chars constant integer := 200;
  c_shown_chars constant integer := 80;
  v_id constant uuid := coalesce(p_batch_id, gen_random_uuid());
  v_now constant timestamptz := clock_timestamp();
  v_status text := 'stored';
  v_counts integer[] := '{0,0,0,0,0}';
  v_error text;
begin
  if p_metrics is null then
    v_error := 'the metrics must be a JSON array, not NULL';
  elsif jsonb_typeof(p_metrics) <> 'array' then
    v_error := format('the metrics must be a JSON array, not %s: %s', jsonb_typeof(p_metrics),
                      left(p_metrics::text, c_shown_chars));
  elsif jsonb_array_length(p_metrics) > c_most then
    v_error := format('a batch holds at most %s metrics, not %s', c_most, jsonb_array_length(p_metrics));
  end if;
  if v_error is not null then
    v_status := 'refused';
  else
    begin
      perform pg_advisory_xact_lock_shared(c_erasing);
      insert into monitoring.metrics_processing_log as l (batch_id, status, source, processed_at)
      values (v_id, 'stored', p_source, v_now)
      on conflict (batch_id) where status = 'stored' do nothing;
      if not found then
        return query
          select 'duplicate', l.batch_id, l.received, l.stored, l.rejected, l.late, l.future, l.error
            from monitoring.metrics_processing_log l
           where l.batch_id = v_id and l.status = 'stored';
        return;
      end if;
      with given as materialized (
        select e.ord - 1 as place, e.metric -> 'type' as type, e.metric,
               case when coalesce(jsonb_typeof(e.metric -> 'timestamp'), 'null') = 'null' then v_now
                    else monitoring.read_time_v1(e.metric -> 'timestamp') end as at
          from jsonb_array_elements(p_metrics) with ordinality e(metric, ord)),
      judged as materialized (
        select g.place, g.type #>> '{}' as type, g.metric, g.at,
               case when jsonb_typeof(g.metric) <> 'object' then 'is not an object'
                    when coalesce(jsonb_typeof(g.type), '') <> 'string' or g.type = '""' then 'has no type'
                    when length(g.type #>> '{}') > c_type_chars then 'has too long a type'
                    when g.at is null then 'has a timestamp that is no time' end as problem,
               exists (select from monitoring.erased_owners e
                        where e.digest = encode(sha256(convert_to(coalesce(g.metric #>> '{data,labels,owner}',
                                                                           g.metric #>> '{labels,owner}'), 'UTF8')), 'hex')
                          and g.at <= e.erased_at + c_clocks) as is_erased
          from given g),
      kept as (
        insert into monitoring.metrics_raw (type, data, "timestamp", created_at)
        select j.type, case when j.metric ? 'data' then coalesce(nullif(j.metric -> 'data', 'null'), '{}')
                            else j.metric - '{type,timestamp}'::text[] end,
               least(greatest(j.at, v_now - c_kept), v_now + c_ahead), v_now
          from judged j
         where j.problem is null and not j.is_erased)
      select array[count(*), count(*) filter (where j.problem is null and not j.is_erased), count(j.problem),
                   count(*) filter (where j.problem is null and j.at < v_now - c_kept),
                   count(*) filter (where j.problem is null and j.at > v_now + c_ahead)],
             (select format('metrics[%s] %s', x.place, x.problem) from judged x
               where x.problem is not null order by x.place limit 1)
        into v_counts, v_error
        from judged j;
      update monitoring.metrics_processing_log l
         set received = v_counts[1], stored = v_counts[2], rejected = v_counts[3], late = v_counts[4],
             future = v_counts[5], error = v_error
       where l.batch_id = v_id and l.status = 'stored';
    exception when others then
      v_status := 'failed';
      v_error := format('%s (%s)', sqlerrm, sqlstate);
    end;
  end if;
  if v_status <> 'stored' then
    v_counts := array[case when jsonb_typeof(p_metrics) = 'array' then jsonb_array_length(p_metrics) else 0 end, 0,
                      case when jsonb_typeof(p_metrics) = 'array' then jsonb_array_length(p_metrics) else 0 end, 0, 0];
    insert into monitoring.metrics_processing_log (batch_id, status, source, processed_at, received, rejected, error)
    values (v_id, v_status, p_source, v_now, v_counts[1], v_counts[3], v_error);
  end if;
  return query select v_status, v_id, v_counts[1], v_counts[2], v_counts[3], v_counts[4], v_counts[5], v_error;
end
$$
