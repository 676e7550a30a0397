-- A page of the messages that match, and of the titles (seq 0) of conversations of which no message does, best first, with
-- the matching words in context. The newest p_ranked matches up to p_as_of (null: up to now, by this server's clock) are
-- ranked. (A title counts as no newer than its conversation's messages, so those are among them if it is.) In one
-- conversation what it shares with those it was forked from is searched too.
-- Stable: all of it is read from the caller's one snapshot, in which each message is either indexed or waiting, and
-- nothing is written. Planned once: that would take as long as the search itself.
-- The indexes know no order and no owner. Where there are few matches all of them are ranked, and only those on the page
-- are looked up; else the newest are looked up, and only if some of them are not to be seen, one after the other.
create or replace function exai.search_v1(
  p_owner text, p_query text, p_continuation_id text, p_role text, p_since timestamptz, p_until timestamptz, p_tool text,
  p_model text, p_rank numeric, p_after_id uuid, p_after_seq bigint, p_as_of timestamptz, p_ranked integer, p_limit integer)
returns table (
  continuation_id text, conversation_id uuid, title text, seq bigint, role text, kind text, created_at timestamptz,
  rank numeric, tool text, model text, as_of timestamptz, snippet text)
language plpgsql stable rows 20
set search_path = pg_catalog, pg_temp
set plan_cache_mode = 'force_generic_plan'
set jit = off
as $$
#variable_conflict use_column
declare
  c_headline constant text :=
    'MaxFragments=2, MaxWords=30, MinWords=10, StartSel=**, StopSel=**, FragmentDelimiter=" … "';
  v_query constant tsquery := websearch_to_tsquery('simple', p_query);
  v_ids uuid[];
  v_up_to bigint[];
begin
  if p_continuation_id is not null then
    with recursive lineage(id, parent_id, parent_seq, up_to, depth) as (
      select c.id, c.parent_id, c.parent_seq, c.next_seq, 0
        from public.conversations c
       where c.owner = p_owner and c.continuation_id = p_continuation_id and c.deleted_at is null
      union all
      select c.id, c.parent_id, c.parent_seq, least(l.up_to, l.parent_seq), l.depth + 1
        from lineage l
        join public.conversations c on c.id = l.parent_id)
    select array_agg(l.id order by l.depth), array_agg(l.up_to order by l.depth) into v_ids, v_up_to from lineage l;
    if v_ids is null then
      return;
    end if;
  end if;
  return query
  with newest as materialized (
    select m.conversation_id, m.seq, m.created_at, m.at, m.words
      from exai.matches_v1(p_owner, v_query, v_ids, v_up_to, p_since, p_until, p_as_of) m
     order by m.created_at desc, m.conversation_id desc, m.seq desc
     limit p_ranked + 1),
  titles as materialized (
    select c.id, c.created_at, c.title
      from public.conversations c
     where to_tsvector('simple', left(c.title, 100000)) @@ v_query and c.title is not null
       and c.owner = p_owner and c.deleted_at is null
       and (p_continuation_id is null or c.continuation_id = p_continuation_id)
       and p_role is null and p_tool is null and p_model is null
       and (p_since is null or c.created_at >= p_since)
       and (p_until is null or c.created_at < p_until)
       and (p_as_of is null or c.created_at <= p_as_of)
     order by c.created_at desc, c.id desc
     limit p_ranked),
  counted as materialized (
    select n.messages <= p_ranked as are_all, n.messages + (select count(*) from titles) <= p_ranked as are_few
      from (select count(*) as messages from newest) n),
  seen as materialized (
    select n.conversation_id, n.seq, n.created_at, n.at, n.words
      from (select w.* from newest w order by w.created_at desc, w.conversation_id desc, w.seq desc limit p_ranked) n
     cross join lateral exai.searched_v1(
       n.conversation_id, n.seq, p_owner, v_ids is not null, p_role, p_tool, p_model) s
     where not (select c.are_few from counted c)),
  found as materialized (
    (select n.conversation_id, n.seq, n.created_at, n.at, n.words, coalesce(v_ids[1], n.conversation_id) as shown_id,
            null::text as title
       from newest n
      where (select c.are_few from counted c)
     union all
     select s.conversation_id, s.seq, s.created_at, s.at, s.words, coalesce(v_ids[1], s.conversation_id), null
       from seen s
      where (select c.are_all from counted c) or (select count(*) from seen) = p_ranked
     union all
     (select m.conversation_id, m.seq, m.created_at, m.at, m.words, coalesce(v_ids[1], m.conversation_id), null
        from (
          select m.conversation_id, m.seq, m.created_at, m.at, m.words
            from exai.matches_v1(p_owner, v_query, v_ids, v_up_to, p_since, p_until, p_as_of) m
           order by m.created_at desc, m.conversation_id desc, m.seq desc) m
       cross join lateral exai.searched_v1(
         m.conversation_id, m.seq, p_owner, v_ids is not null, p_role, p_tool, p_model) s
       where not (select c.are_all from counted c) and (select count(*) from seen) < p_ranked
       order by m.created_at desc, m.conversation_id desc, m.seq desc
       limit p_ranked)
     union all
     select t.id, 0, t.created_at, null, to_tsvector('simple', left(t.title, 100000)), t.id, t.title from titles t)
    order by 3 desc, 1 desc, 2 desc
    limit p_ranked),
  ranked as materialized (
    select f.conversation_id, f.seq, f.created_at, f.shown_id, f.title,
           round(ts_rank(coalesce(f.words, (
             select w.words from exai.message_words w where w.ctid = f.at
           )), v_query, 1)::numeric, 6) as rank
      from found f
     where f.seq > 0 or f.conversation_id not in (select m.shown_id from found m where m.seq > 0)),
  page as (
    select r.conversation_id, r.seq, r.created_at, r.shown_id, r.title, r.rank
      from (
        select x.conversation_id, x.seq, x.created_at, x.shown_id, x.title, x.rank
          from ranked x
         where p_rank is null or (x.rank, x.conversation_id, x.seq) < (p_rank, p_after_id, p_after_seq)
         order by x.rank desc, x.conversation_id desc, x.seq desc) r
     cross join lateral exai.searched_v1(
       r.conversation_id, r.seq, p_owner, v_ids is not null, p_role, p_tool, p_model) s
     order by r.rank desc, r.conversation_id desc, r.seq desc
     limit p_limit)
  select c.continuation_id, p.conversation_id, c.title, p.seq, m.role,
         case when p.seq = 0 then 'title' else m.kind end, p.created_at, p.rank, t.tool, t.model,
         coalesce(p_as_of, greatest(statement_timestamp(), (select max(f.created_at) from found f))),
         ts_headline('simple', exai.searchable_v1(coalesce(m.content, p.title)), v_query, c_headline)
    from page p
    join public.conversations c on c.id = p.shown_id
    left join lateral (
      select x.seq, x.role, x.kind, x.content, x.turn_id
        from public.messages x
       where x.conversation_id = p.conversation_id and x.seq >= p.seq and p.seq > 0
       order by x.seq
       limit 1) m on m.seq = p.seq
    left join public.turns t on t.id = m.turn_id
   where p.seq = 0 or m.seq is not null
   order by p.rank desc, p.conversation_id desc, p.seq desc;
end
$$
