-- name: claim_requests
-- repeat: keyed
-- described: at first use
-- Claims at most $2 requests for the claim $1: queued ones, in turn among the owners (an owner's requests that run count
-- as earlier ones), and running ones whose lease has expired. By requests_queue_idx and requests_running_idx; locks only
-- the rows it takes. A row for each request, or one with the depth of the queue alone.
with recursive owners(owner) as (
  (select r.owner from public.requests r where r.state = 'queued' order by r.owner limit 1)
   union all
  select (select r.owner from public.requests r where r.state = 'queued' and r.owner > o.owner order by r.owner limit 1)
    from owners o
   where o.owner is not null),
waiting as (
  select q.id, q.created_at,
         pg_catalog.row_number() over (partition by q.owner order by q.created_at, q.id)
           + (select pg_catalog.count(*) from public.requests b where b.owner = q.owner and b.state = 'running') as place
    from owners o
   cross join lateral (
     select r.id, r.owner, r.created_at
       from public.requests r
      where r.owner = o.owner and r.state = 'queued'
        and (r.not_before is null or r.not_before <= pg_catalog.clock_timestamp())
      order by r.created_at, r.id
      limit $2::integer) q
   union all
  select r.id, r.created_at, 0
    from public.requests r
   where r.state = 'running' and r.lease_until <= pg_catalog.clock_timestamp()),
picked as (
  select r.id
    from waiting w
    join public.requests r on r.id = w.id
   where r.state = 'queued' or (r.state = 'running' and r.lease_until <= pg_catalog.clock_timestamp())
   order by w.place, w.created_at, w.id
   limit $2::integer
     for update of r skip locked),
claimed as (
  update public.requests r
     set state = 'running', claimed_by = $1::text::uuid, attempt = r.attempt + 1, not_before = null, partial = null,
         progress = null, claimed_at = pg_catalog.clock_timestamp(), updated_at = pg_catalog.clock_timestamp(),
         lease_until = pg_catalog.clock_timestamp() + pg_catalog.make_interval(secs => $3::double precision)
    from picked p
   where r.id = p.id
  returning r.id, r.owner, r.tool, r.arguments, r.attempt, r.deadline_at),
given as (
  select c.id, c.owner, c.tool, c.arguments, c.attempt, c.deadline_at from claimed c
   union all
  select r.id, r.owner, r.tool, r.arguments, r.attempt, r.deadline_at
    from public.requests r
   where r.state = 'running' and r.claimed_by = $1::text::uuid)
select g.id::text as id, g.owner::text as owner, g.tool::text as tool, g.arguments::text as arguments,
       g.attempt::integer as attempt,
       extract(epoch from g.deadline_at operator(pg_catalog.-) pg_catalog.clock_timestamp())::double precision as left_s,
       d.waiting::bigint as waiting,
       extract(epoch from pg_catalog.clock_timestamp() operator(pg_catalog.-) d.oldest)::double precision as oldest_s
  from (select (select pg_catalog.count(*)
                  from (select from public.requests r where r.state = 'queued' limit 10000) q) as waiting,
               (select pg_catalog.min(w.created_at) from waiting w) as oldest) d
  left join given g on true;

-- name: touch_requests
-- repeat: keyed
-- described: at first use
-- Renews the leases of running requests and stores what there is of their answers; returns those that still run here.
-- By requests_pkey. Changes no indexed column.
update public.requests r
   set lease_until = pg_catalog.clock_timestamp() + pg_catalog.make_interval(secs => $1::double precision),
       progress = coalesce(u.progress, r.progress), partial = coalesce(u.partial, r.partial),
       updated_at = case when u.progress is null and u.partial is null then r.updated_at
                         else pg_catalog.clock_timestamp() end
  from unnest($2::text[], $3::text[], $4::text[], $5::text[]) u(id, claim, progress, partial)
 where r.id = u.id::uuid and r.claimed_by = u.claim::uuid and r.state = 'running'
returning r.id::text as id;

-- name: finish_request
-- repeat: keyed
-- described: at first use
-- Stores the outcome of a claim; false if the request was cancelled or claimed again meanwhile. By requests_pkey.
with done as (
  update public.requests r
     set state = $3::text, answer = $4::text, result = $5::text::jsonb, error = $6::text::jsonb,
         continuation_id = $7::text, progress = null, partial = case when $3::text = 'done' then null else r.partial end,
         lease_until = null, finished_at = pg_catalog.clock_timestamp(), updated_at = pg_catalog.clock_timestamp()
   where r.id = $1::text::uuid and r.claimed_by = $2::text::uuid and r.state = 'running'
  returning r.id)
select (exists (select from done)
        or exists (select from public.requests r
                    where r.id = $1::text::uuid and r.claimed_by = $2::text::uuid and r.state = $3::text))::boolean as stored;

-- name: release_request
-- repeat: keyed
-- described: at first use
-- Gives a claim back to the queue, after a pause; without $4 the claim does not count as an attempt. By requests_pkey.
update public.requests r
   set state = 'queued', claimed_by = null, lease_until = null, progress = null,
       attempt = r.attempt - case when $4::boolean then 0 else 1 end,
       not_before = pg_catalog.clock_timestamp() + pg_catalog.make_interval(secs => $3::double precision),
       updated_at = pg_catalog.clock_timestamp()
 where r.id = $1::text::uuid and r.claimed_by = $2::text::uuid and r.state = 'running'
returning r.id::text as id;

-- name: prune_requests
-- repeat: keyed
-- described: at first use
-- Removes requests whose answer was read $1 seconds ago, and those as old as $2 seconds, unless they run; at most 1,000.
-- By requests_read_idx and requests_aged_idx.
delete from public.requests r
 where r.id = any(array(
   (select x.id from public.requests x
     where x.read_at < pg_catalog.clock_timestamp() - pg_catalog.make_interval(secs => $1::double precision)
       and x.state <> 'running' limit 500)
    union
   (select x.id from public.requests x
     where x.created_at < pg_catalog.clock_timestamp() - pg_catalog.make_interval(secs => $2::double precision)
       and x.state <> 'running' limit 500)))
returning r.id::text as id;
