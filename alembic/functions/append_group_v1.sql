-- Stores several appends, each to a conversation of its own that exists, in one statement and one commit: what append_v1
-- does when nothing stands in its way. One row for each that was stored; an append without a row changed nothing and is
-- to be sent by itself, which waits and says why. Nobody waits for a conversation in here, so that one held elsewhere
-- delays no other; keys are claimed in their order, so that two groups never wait for each other.
--
-- Arrays from p_owners to p_counts have one element for each append, the others one for each message: p_of is the number
-- of its append, from 1, and p_places its place in there, from 0.
create or replace function exai.append_group_v1(
  p_owners text[], p_names text[], p_turn_ids uuid[], p_keys text[], p_hashes text[], p_tools text[],
  p_expected bigint[], p_counts bigint[], p_of integer[], p_places bigint[], p_roles text[], p_contents text[],
  p_kinds text[], p_metadata text[])
returns table (number integer, base_revision bigint, first_seq bigint, created_at timestamptz, header text, inc text)
language plpgsql rows 16
set lock_timeout = '2s'
-- Planned once, for whatever number of appends, and by the keys: estimates of arrays' lengths are guesses.
set plan_cache_mode = 'force_generic_plan'
set enable_seqscan = off
set enable_hashjoin = off
set enable_mergejoin = off
as $$
#variable_conflict use_column
declare
  v_numbers integer[];
  v_ids uuid[];
  v_nexts bigint[];
  v_bases bigint[];
  v_times timestamptz[];
begin
  -- A statement of its own: the next one's snapshot is younger than every lock, as in store_turn_v1.
  select array_agg(l.number), array_agg(l.id), array_agg(l.next_seq), array_agg(l.revision),
         array_agg(greatest(l.updated_at, clock_timestamp()))
    into v_numbers, v_ids, v_nexts, v_bases, v_times
    from (select a.number::integer as number, c.id, c.next_seq, c.revision, c.updated_at
            from unnest(p_owners, p_names, p_expected) with ordinality a(owner, name, expected, number)
            join public.conversations c on c.owner = a.owner and c.continuation_id = a.name
           where c.deleted_at is null and (a.expected is null or a.expected = c.revision)
             for no key update of c skip locked) l;
  return query
  with locked as (
    select l.number, l.id, l.next_seq, l.base, l.at
      from unnest(v_numbers, v_ids, v_nexts, v_bases, v_times) l(number, id, next_seq, base, at)),
  t as (
    insert into public.turns (id, conversation_id, owner, request_key, request_hash, tool, state, claimed_by,
                              lease_until, first_seq, last_seq, revision, started_at, finished_at)
    select p_turn_ids[l.number], l.id, p_owners[l.number], p_keys[l.number], p_hashes[l.number], p_tools[l.number],
           'finished', p_turn_ids[l.number], l.at, l.next_seq, l.next_seq + p_counts[l.number] - 1, l.base + 1, l.at, l.at
      from locked l
     order by p_keys[l.number]
    on conflict do nothing
    returning conversation_id as id),
  claimed as (
    select l.number, l.id, l.next_seq, l.base, l.at from t join locked l on l.id = t.id),
  m as (
    insert into public.messages (conversation_id, seq, turn_id, role, kind, content, metadata, created_at)
    select c.id, c.next_seq + u.place, p_turn_ids[c.number], u.role, u.kind, u.content,
           coalesce(u.metadata::jsonb, '{}'), c.at
      from claimed c
      join unnest(p_of, p_places, p_roles, p_kinds, p_contents, p_metadata)
           u(number, place, role, kind, content, metadata) on u.number = c.number)
  update public.conversations v
     set next_seq = c.next_seq + p_counts[c.number], revision = c.base + 1, changed_xid = pg_current_xact_id(),
         updated_at = c.at
    from claimed c
   where v.id = c.id
  returning c.number, c.base, c.next_seq, c.at, exai.header_v1(v)::text, exai.incarnation_v1()::text;
end
$$
