-- Stores several appends, each to a conversation of its own, in one statement and one commit, as append_v1 stores
-- one. Returns one row for each stored append. An append without a row changed nothing; the caller sends it in a
-- statement of its own, which waits for locks and returns the reason. No append waits for a conversation's row lock
-- here, so a conversation that is locked elsewhere delays no other append. Keys are claimed in order, so two batches
-- cannot deadlock.
--
-- The arrays from p_owners to p_counts have one element for each append (p_names is null for a new conversation,
-- whose id is in p_new_ids), those from p_of to p_metadata one for each message, and the last two one for each file.
-- p_of and p_file_of hold the numbers of appends, from 1; p_places holds the position of a message in its append,
-- from 0.
create or replace function exai.append_batch_v1(
  p_owners text[], p_names text[], p_new_ids uuid[], p_turn_ids uuid[], p_keys text[], p_hashes text[], p_tools text[],
  p_titles text[], p_expected bigint[], p_counts bigint[], p_of integer[], p_places bigint[], p_roles text[],
  p_contents text[], p_kinds text[], p_metadata text[], p_file_of integer[], p_files uuid[])
returns table (number integer, base_revision bigint, first_seq bigint, created_at timestamptz, header text, server_epoch text)
language plpgsql rows 16
set search_path = "$user", public, extensions, pg_temp
set lock_timeout = '2s'
-- A generic plan by the keys, for any number of appends: the planner cannot estimate the lengths of the arrays.
set plan_cache_mode = 'force_generic_plan'
set enable_seqscan = off
set enable_hashjoin = off
set enable_mergejoin = off
as $$
#variable_conflict use_column
declare
  v_lacking integer[] := '{}';
  v_numbers integer[];
  v_ids uuid[];
  v_nexts bigint[];
  v_bases bigint[];
  v_times timestamptz[];
begin
  if pg_catalog.cardinality(p_files) > 0 then
    v_lacking := array(
      select w.number from unnest(p_file_of, p_files) w(number, id)
       where not exists (select from public.files f where f.id = w.id and f.owner = p_owners[w.number]));
  end if;
  -- A separate statement, so that the snapshot of the next one is newer than every lock, as in store_turn_v1.
  select pg_catalog.array_agg(l.number), pg_catalog.array_agg(l.id), pg_catalog.array_agg(l.next_seq), pg_catalog.array_agg(l.revision),
         pg_catalog.array_agg(pg_catalog.clock_timestamp())
    into v_numbers, v_ids, v_nexts, v_bases, v_times
    from (select a.number::integer as number, c.id, c.next_seq, c.revision
            from unnest(p_owners, p_names, p_expected) with ordinality a(owner, name, expected, number)
            join public.conversations c on c.owner = a.owner and c.continuation_id = a.name
           where c.deleted_at is null and (a.expected is null or a.expected = c.revision)
             for no key update of c skip locked) l;
  with ready as (
    select l.number, l.id, l.next_seq, l.base, l.at
      from unnest(v_numbers, v_ids, v_nexts, v_bases, v_times) l(number, id, next_seq, base, at)
     where l.number <> all(v_lacking)
    union all
    select a.number::integer, a.id, 1, 0, pg_catalog.clock_timestamp()
      from unnest(p_names, p_new_ids) with ordinality a(name, id, number)
     where a.name is null and a.number <> all(v_lacking)),
  t as (
    insert into public.turns (id, conversation_id, owner, request_key, request_hash, tool, state, claimed_by,
                              lease_until, first_seq, last_seq, revision, started_at, finished_at)
    select p_turn_ids[r.number], r.id, p_owners[r.number], p_keys[r.number], p_hashes[r.number], p_tools[r.number],
           'finished', p_turn_ids[r.number], r.at, r.next_seq, r.next_seq + p_counts[r.number] - 1, r.base + 1, r.at, r.at
      from ready r
     order by p_keys[r.number], p_owners[r.number]
    on conflict do nothing
    returning conversation_id as id),
  claimed as (
    select r.number, r.id, r.next_seq, r.base, r.at from t join ready r on r.id = t.id),
  made as (
    insert into public.conversations (id, owner, continuation_id, title, next_seq, revision, created_at, updated_at)
    select c.id, p_owners[c.number], c.id::text, p_titles[c.number], 1 + p_counts[c.number], 1, c.at, c.at
      from claimed c
     where p_names[c.number] is null),
  grown as (
    update public.conversations v
       set next_seq = c.next_seq + p_counts[c.number], revision = c.base + 1, changed_xid = pg_catalog.pg_current_xact_id(),
           updated_at = c.at
      from claimed c
     where v.id = c.id and p_names[c.number] is not null),
  m as (
    insert into public.messages (conversation_id, seq, turn_id, role, kind, content, metadata, created_at)
    select c.id, c.next_seq + u.place, p_turn_ids[c.number], u.role, u.kind,
           case when pg_catalog.starts_with(u.content, E'\x01$exai1$')
             then exai.place_v1(u.content, c.id, c.next_seq + u.place) else u.content end,
           coalesce(u.metadata::jsonb, '{}'), c.at
      from claimed c
      join unnest(p_of, p_places, p_roles, p_kinds, p_contents, p_metadata)
           u(number, place, role, kind, content, metadata) on u.number = c.number),
  f as (
    insert into public.conversation_files (conversation_id, file_id)
    select c.id, w.id from claimed c join unnest(p_file_of, p_files) w(number, id) on w.number = c.number order by 2
    on conflict do nothing)
  select pg_catalog.array_agg(c.number), pg_catalog.array_agg(c.id), pg_catalog.array_agg(c.next_seq), pg_catalog.array_agg(c.base), pg_catalog.array_agg(c.at)
    into v_numbers, v_ids, v_nexts, v_bases, v_times
    from claimed c;
  -- Again a separate statement: triggers of other programs on messages may change the conversations after it.
  return query
  select c.number, c.base, c.next_seq, c.at, exai.live_header_v1(v)::text, exai.server_epoch_v1()::text
    from unnest(v_numbers, v_ids, v_nexts, v_bases, v_times) c(number, id, next_seq, base, at)
    join public.conversations v on v.id = c.id;
end
$$
