-- name: store_metrics
-- repeat: keyed
-- described: at first use
-- Stores a batch of metrics once per batch id, in one transaction with its entry in the processing log.
select m.status::text as status, m.stored::int as stored, m.rejected::int as rejected, m.error::text as error
  from monitoring.aggregate_metrics($1::text::jsonb, $2::text::uuid, $3::text) m;

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
