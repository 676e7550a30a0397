-- Returns a page of the matching messages, and of the titles (seq 0) of conversations without a matching message,
-- best first, with an excerpt around the first match. The newest p_ranked matches up to p_as_of (null: now, by this
-- server's clock) are ranked; a title counts as no newer than its conversation's messages. A search of one
-- conversation includes the messages that it shares with its ancestors. p_tags, p_metadata: only conversations with
-- all of these tags and with this metadata.
--
-- If no message contains all terms, messages with most of them are returned: all but one, all but two, and so on.
-- level is the number of terms in every hit, and p_level continues the same search on the next page (null: first
-- page). The last row is no hit: unread is how many messages that wait to be indexed were not examined within the
-- limits, and rows_read how many rows the search has read.
--
-- Stable: everything is read from the caller's snapshot, in which each message is either indexed or waiting, and
-- nothing is written.
create or replace function exai.search_v1(
  p_owner text, p_query text, p_continuation_id text, p_role text, p_since timestamptz, p_until timestamptz, p_tool text,
  p_model text, p_tags text[], p_metadata jsonb, p_level integer, p_rank numeric, p_after_id uuid, p_after_seq bigint, p_as_of timestamptz,
  p_ranked integer, p_limit integer)
returns table (
  continuation_id text, conversation_id uuid, title text, seq bigint, role text, kind text, created_at timestamptz,
  rank numeric, tool text, model text, as_of timestamptz, excerpt text, cut_before boolean, cut_after boolean,
  words text[], level integer, missing text[], unread bigint, rows_read bigint)
language plpgsql stable rows 20
set search_path = pg_catalog, pg_temp
set plan_cache_mode = 'force_generic_plan'
set jit = off
as $$
#variable_conflict use_column
declare
  c_most_queries constant integer := 70;
  -- Work that the second pass may do after the first one has reached the limits. Small messages are read first.
  c_least_work constant bigint := 200000;
  c_least_time constant interval := '300 ms';
  -- Largest encrypted message that is returned for its excerpt.
  c_shown_bytes constant integer := 131072;
  v_terms tsquery[];
  v_groups integer[];
  v_excluded boolean[];
  v_labels text[];
  v_needles text[];
  v_words text[];
  v_wanted tsquery[];
  v_unwanted tsquery;
  v_query tsquery;
  v_long tsquery;
  v_alternatives integer;
  v_count integer;
  v_level integer;
  v_ids uuid[];
  v_up_to bigint[];
  v_waiting record;
  v_is_any boolean;
  v_unread bigint := 0;
  -- Limit on the time for messages that wait to be indexed.
  v_work bigint := 1500000;
  -- The time is a setting, so that a server that is busy for other reasons can be given more.
  v_time constant interval := coalesce(nullif(current_setting('exai.search_time', true), '')::interval, interval '2.5 s');
  v_stop constant timestamptz := clock_timestamp() + v_time;
  v_read_before constant bigint := exai.rows_read_v1();
begin
  with terms as materialized (
    select t.* from exai.read_query_v1(exai.owner_key_v1(p_owner), p_query) with ordinality t(
      term, or_group, is_excluded, label, needle, words, i)),
  groups as (
    select t.or_group, string_agg('(' || case when t.is_excluded then '!' else '' end || '(' || t.term::text || '))', ' & ') as term
      from terms t
     group by t.or_group
    having bool_or(not t.is_excluded))
  select (select string_agg('(' || g.term || ')', ' | ')::tsquery from groups g),
         (select count(*) from groups g),
         array_agg(t.term order by t.i), array_agg(t.or_group order by t.i), array_agg(t.is_excluded order by t.i),
         array_agg(t.label order by t.i), array_agg(t.needle order by t.i),
         (select array_agg(distinct exai.strip_marks_v1(w)) from terms t cross join unnest(t.words) w where not t.is_excluded),
         array_agg(t.term order by t.i) filter (where not t.is_excluded),
         string_agg('!(' || t.term::text || ')', ' & ') filter (where t.is_excluded)::tsquery
    into v_query, v_alternatives, v_terms, v_groups, v_excluded, v_labels, v_needles, v_words, v_wanted, v_unwanted
    from terms t;
  if v_query is null then
    return;
  end if;
  if p_continuation_id is not null then
    with recursive lineage(id, parent_id, parent_seq, up_to, depth) as (
      select c.id, c.parent_id, c.parent_seq, c.next_seq, 0
        from public.conversations c
       where c.owner = p_owner and c.continuation_id = p_continuation_id and c.deleted_at is null
         and (p_tags is null or c.tags @> p_tags) and (p_metadata is null or c.metadata @> p_metadata)
      union all
      select c.id, c.parent_id, c.parent_seq, least(l.up_to, l.parent_seq), l.depth + 1
        from lineage l
        join public.conversations c on c.id = l.parent_id)
    select array_agg(l.id order by l.depth), array_agg(l.up_to order by l.depth) into v_ids, v_up_to from lineage l;
    if v_ids is null then
      return;
    end if;
  end if;
  if cardinality(v_terms) > 1 then
    v_long := exai.segment_mark_v1(exai.owner_key_v1(p_owner));
  end if;
  v_count := case when v_alternatives = 1 then cardinality(v_wanted) else 1 end;
  v_level := coalesce(p_level, v_count);
  while v_level > 0 loop
    if v_level < v_count then
      v_query := exai.combine_terms_v1(v_wanted, v_level, c_most_queries);
      if v_unwanted is not null then
        v_query := v_query && v_unwanted;
      end if;
    end if;
    if v_query is not null then
      -- One pass for all terms, one for any number of them.
      if v_is_any is distinct from (v_level < v_count) then
        v_is_any := v_level < v_count;
        select w.* into v_waiting
          from exai.search_unindexed_v1(
            p_owner, v_terms, v_groups, v_excluded, v_needles, case when v_is_any then v_count else 0 end, v_ids, v_up_to,
            p_since, p_until, p_as_of, v_work, greatest(v_stop, clock_timestamp() + least(c_least_time, v_time))) w;
        v_work := greatest(v_work - v_waiting.o_work, c_least_work);
        v_unread := greatest(v_unread, v_waiting.o_unread);
      end if;
      return query
      select s.continuation_id, s.conversation_id, s.title, s.seq, s.role, s.kind, s.created_at, s.rank, s.tool, s.model,
             s.as_of,
             case when not starts_with(s.content, '$exai1$') then e.o_excerpt
                  when octet_length(s.content) <= c_shown_bytes then s.content end, e.o_cut_before, e.o_cut_after, v_words, v_level,
             case when v_level < v_count then (
               select coalesce(array_agg(v_labels[t.i] order by t.i), '{}')
                 from unnest(s.has) with ordinality t(has, i) where not t.has and not v_excluded[t.i]) end,
             null::bigint, null::bigint
        from exai.search_page_v1(
               p_owner, v_query,
               case when v_long is null then v_query else v_query && !! v_long end,
               v_long, v_terms, v_groups, v_excluded, v_count - v_level, v_waiting.o_ids, v_waiting.o_seqs,
               v_waiting.o_ats, v_waiting.o_words, v_waiting.o_which, v_ids, v_up_to, p_role, p_since, p_until, p_tool,
               p_model,
               -- The searched conversation itself, which was checked before; messages shared with ancestors count as its own.
               case when p_continuation_id is null then p_tags end,
               case when p_continuation_id is null then p_metadata end, p_rank, p_after_id, p_after_seq, p_as_of, p_ranked,
               p_limit) s
       -- An encrypted message has no excerpt here; the caller makes it.
       cross join lateral exai.excerpt_v1(case when starts_with(s.content, '$exai1$') then '' else s.content end, v_words) e
       order by s.rank desc, s.conversation_id desc, s.seq desc;
      exit when found;
    end if;
    exit when p_level is not null;
    v_level := v_level - 1;
  end loop;
  unread := v_unread;
  rows_read := exai.rows_read_v1() - v_read_before;
  return next;
end
$$
