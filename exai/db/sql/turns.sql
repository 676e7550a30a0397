-- name: begin_turn
-- repeat: keyed
-- Claims a turn, stores its question and brings the history the caller lacks; locks the conversation. On request a
-- last row has the turn's number among those of its tool.
select p.part::text, p.seq::bigint, p.role::text, p.content::text, p.created_at::timestamptz, p.kind::text,
       p.turn_id::text, p.data::text
  from exai.begin_turn_v1($1::text, $2::text, $3::text::uuid, $4::text::uuid, $5::text, $6::text, $7::text, $8::text,
                          $9::double precision, $10::text, $11::text, $12::text[], $13::text[], $14::text[],
                          $15::text[], $16::text[], $17::bigint, $18::bigint, $19::bigint, $20::bigint, $21::bigint,
                          $22::bigint, $24::text) p
union all
select 'step'::text, exai.count_steps_v1($1::text, $5::text)::bigint, null::text, null::text, null::timestamptz,
       null::text, null::text, null::text
 where $23::boolean;

-- name: begin_turn_with_files
-- repeat: keyed
-- As begin_turn, with files. First stores those that come along, each content once; see put_files_v1. At last notes
-- from where others were read from a disk.
select 'put'::text as part, f.place::bigint as seq, null::text as role, null::text as content,
       null::timestamptz as created_at, null::text as kind, null::text as turn_id, null::text as data
  from (select $27::text::jsonb as described where $27::text is not null) g
 cross join lateral exai.put_files_v1($1::text, $26::text, g.described, $28::bytea) f
union all
select p.part::text, p.seq::bigint, p.role::text, p.content::text, p.created_at::timestamptz, p.kind::text,
       p.turn_id::text, p.data::text
  from exai.begin_turn_v1($1::text, $2::text, $3::text::uuid, $4::text::uuid, $5::text, $6::text, $7::text, $8::text,
                          $9::double precision, $10::text, $11::text, $12::text[], $13::text[], $14::text[],
                          $15::text[], $16::text[], $17::bigint, $18::bigint, $19::bigint, $20::bigint, $21::bigint,
                          $22::bigint, $24::text) p
union all
select 'step'::text, exai.count_steps_v1($1::text, $5::text)::bigint, null::text, null::text, null::timestamptz,
       null::text, null::text, null::text
 where $23::boolean
union all
select 'linked'::text, exai.link_files_v1($1::text, $5::text, $25::text::jsonb)::bigint, null::text, null::text,
       null::timestamptz, null::text, null::text, null::text
 where $25::text is not null;

-- name: reserve_turn
-- repeat: keyed
-- Reserves the likely cost of a turn that was begun without; takes the owner's lock, and reads as begin_turn does.
select exai.reserve_v1($1::text, $2::text::uuid, $3::text::uuid, $4::text::jsonb, $5::bigint, $6::bigint)::text as reserved;

-- name: finish_turn
-- repeat: keyed
-- Writes the outcome of one attempt of a turn; locks the conversation, then the turn.
select p.part::text, p.seq::bigint, p.role::text, p.content::text, p.created_at::timestamptz, p.kind::text,
       p.turn_id::text, p.data::text
  from exai.finish_turn_v1($1::text, $2::text::uuid, $3::integer, $4::text, $5::text[], $6::text[], $7::text[],
                           $8::text[], $9::text, $10::bigint, $11::bigint, $12::bigint, $13::bigint,
                           $14::text::numeric, $15::text, $16::text, $17::boolean, $18::text, $19::text[]) p;

-- name: finish_turn_with_files
-- repeat: keyed
-- As finish_turn, with files. First stores those that come along, each content once; see put_files_v1.
select 'put'::text as part, f.place::bigint as seq, null::text as role, null::text as content,
       null::timestamptz as created_at, null::text as kind, null::text as turn_id, null::text as data
  from exai.put_files_v1($1::text, $20::text, $21::text::jsonb, $22::bytea) f
union all
select p.part::text, p.seq::bigint, p.role::text, p.content::text, p.created_at::timestamptz, p.kind::text,
       p.turn_id::text, p.data::text
  from exai.finish_turn_v1($1::text, $2::text::uuid, $3::integer, $4::text, $5::text[], $6::text[], $7::text[],
                           $8::text[], $9::text, $10::bigint, $11::bigint, $12::bigint, $13::bigint,
                           $14::text::numeric, $15::text, $16::text, $17::boolean, $18::text, $19::text[]) p;

-- name: turn_state
-- repeat: read
-- The state of the turn with a request key, and the remaining time of its lease; by turns_owner_key.
select t.state::text as state,
       extract(epoch from t.lease_until operator(pg_catalog.-) pg_catalog.clock_timestamp())::double precision
         as lease_left_s
  from public.turns t
 where t.owner = $1::text and t.request_key = $2::text;

-- name: renew_leases
-- repeat: keyed
-- Keeps pending turns from being taken over; returns those that still are pending. By turns_pkey.
update public.turns t
   set lease_until = pg_catalog.clock_timestamp() + pg_catalog.make_interval(secs => $2::double precision)
 where t.id = any($1::text[]::uuid[]) and t.state = 'pending'
returning t.id::text as id;

-- name: read_turn
-- repeat: read
-- One turn with the answer it ended with, by turns_pkey and the primary key of messages; none of a deleted conversation.
select exai.turn_v1(t)::text as turn, c.continuation_id::text as continuation_id,
       coalesce(t.reply_revision, t.revision)::bigint as revision, m.seq::bigint as seq, m.role::text as role,
       m.content::text as content, m.created_at::timestamptz as created_at, m.kind::text as kind,
       t.conversation_id::text as conversation_id
  from public.turns t
  join public.conversations c on c.id = t.conversation_id
  left join lateral (
    -- A range in its order is found by the primary key even where the planner takes the conversation for a short one.
    select x.seq, x.role, x.content, x.created_at, x.kind
      from public.messages x
     where x.conversation_id = t.conversation_id and x.seq >= t.reply_last_seq and t.state = 'finished'
     order by x.seq
     limit 1) m on true
 where t.id = $2::text::uuid and t.owner = $1::text and c.deleted_at is null;

-- name: cancel_turn
-- repeat: keyed
-- Ends a pending turn; the daemon that runs it notices at its next lease renewal. By turns_pkey.
with found as (
  select t.id, c.revision
    from public.turns t
    join public.conversations c on c.id = t.conversation_id
   where t.id = $2::text::uuid and t.owner = $1::text and c.deleted_at is null),
ended as (
  update public.turns t
     set state = 'failed', finished_at = pg_catalog.clock_timestamp(), error = $3::text::jsonb,
         reply_revision = f.revision
    from found f
   where t.id = f.id and t.state = 'pending')
select pg_catalog.count(*)::bigint as found from found;
