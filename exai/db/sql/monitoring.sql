-- name: store_metrics
-- repeat: keyed
-- described: at first use
-- Stores a batch of metrics once per batch id, in one transaction with its entry in the processing log.
select m.status::text as status, m.stored::int as stored, m.rejected::int as rejected, m.error::text as error
  from monitoring.aggregate_metrics($1::text::jsonb, $2::text::uuid, $3::text) m;

-- name: insert_metric
-- repeat: never
-- described: at first use
-- Stores one metric of a process that sends no batches.
select monitoring.insert_metric($1::text, $2::text::jsonb)::bigint as id;

-- name: recent_events
-- repeat: read
-- described: at first use
-- The newest changes of health, runs of commands, and batches of metrics that were not stored as they came, of so many
-- minutes, by metrics_raw_recent_idx and metrics_processing_log_time_idx.
select e.type::text as type, e.data::text as data, e.at::timestamptz as at
  from (select r.type, r.data, r."timestamp" as at
          from pg_catalog.unnest(array['health_change', 'command_run']) t(type)
         cross join lateral monitoring.get_recent_metrics(t.type, $1::int, $2::int) r
         union all
        (select 'metrics_batch',
                pg_catalog.jsonb_build_object('status', l.status, 'source', l.source, 'error', l.error,
                                              'received', l.received, 'stored', l.stored),
                l.processed_at
           from monitoring.metrics_processing_log l
          where l.processed_at > pg_catalog.now() - pg_catalog.make_interval(mins => $1::int)
            and (l.status <> 'stored' or l.rejected > 0)
          order by l.processed_at desc
          limit $2::int)) e
 order by e.at desc
 limit $2::int;

-- name: metrics_history
-- repeat: read
-- described: at first use
-- The sums of one metric by step, by the key of metrics_1min or metrics_1hour.
select h.at::timestamptz as at, h.labels::text as labels, h.count::bigint as count, h.sum::float8 as sum,
       h.min::float8 as min, h.max::float8 as max, h.buckets::text as buckets
  from monitoring.history_v1($1::text, $2::timestamptz, $3::timestamptz, $4::interval, $5::text[], $6::text::jsonb,
                             $7::text, $8::int) h;

-- name: recent_metrics
-- repeat: read
-- described: at first use
-- The newest raw metrics of one type, or of all.
select r.type::text as type, r.data::text as data, r."timestamp"::timestamptz as at
  from monitoring.get_recent_metrics($1::text, $2::int, $3::int) r;

-- name: create_metrics_partitions
-- repeat: keyed
-- described: at first use
-- Creates the partitions of the coming days, unless another daemon is at it.
select monitoring.create_partitions()::int as made;

-- name: apply_metrics_retention
-- repeat: keyed
-- described: at first use
-- Removes expired metrics, at most so many rows of each kind; no rows if another daemon is at it.
select r.what::text as what, r.removed::bigint as removed, r.remaining::bigint as remaining
  from monitoring.apply_retention(p_limit => $1::int) r;
