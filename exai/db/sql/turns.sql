-- name: read_turn
-- repeat: read
-- One turn with the answer it ended with, by turns_pkey and the primary key of messages; none of a deleted conversation.
select exai.turn_v1(t)::text as turn, c.continuation_id::text as continuation_id,
       coalesce(t.reply_revision, t.revision)::bigint as revision, m.seq::bigint as seq, m.role::text as role,
       m.content::text as content, m.created_at::timestamptz as created_at
  from public.turns t
  join public.conversations c on c.id = t.conversation_id
  left join lateral (
    -- A range in its order is found by the primary key even where the planner takes the conversation for a short one.
    select x.seq, x.role, x.content, x.created_at
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
