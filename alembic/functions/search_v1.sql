-- A page of the messages that match, and of the titles (seq 0) of conversations of which no message does, best first, with
-- the matching words in context. The newest p_ranked matches up to p_as_of (null: up to now, by this server's clock) are
-- ranked. (A title counts as no newer than its conversation's messages, so those are among them if it is.) In one
-- conversation what it shares with those it was forked from is searched too.
-- message_words_words_idx and conversations_title_idx find matches but know no order. What was stored and not yet indexed
-- is looked through itself, so that what was acknowledged is found. Stable: all of it is read from the caller's one
-- snapshot, in which each message is either indexed or waiting. Planned once: that takes as long as the search itself.
create or replace function exai.search_v1(
  p_owner text, p_query text, p_continuation_id text, p_role text, p_since timestamptz, p_until timestamptz, p_tool text,
  p_model text, p_rank numeric, p_after_id uuid, p_after_seq bigint, p_as_of timestamptz, p_ranked integer, p_limit integer)
returns table (
  continuation_id text, conversation_id uuid, title text, seq bigint, role text, kind text, created_at timestamptz,
  rank numeric, tool text, model text, as_of timestamptz, snippet text)
language plpgsql stable rows 20
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
  with found as (
    (select n.conversation_id, n.seq, n.created_at, n.at, n.words, coalesce(v_ids[1], n.conversation_id) as shown_id,
            null::text as title
       from (
         select w.conversation_id, w.seq, w.created_at, w.ctid as at, null::tsvector as words
           from exai.message_words w
          where w.words @@ v_query
            and (v_ids is null or w.conversation_id = any(v_ids))
            -- Out of date. Most conversations have nothing that waits, which one look into a hash tells.
            and (w.conversation_id not in (select u.conversation_id from exai.unindexed_messages u)
                 or not exists (
                   select from exai.unindexed_messages u
                    where u.conversation_id = w.conversation_id and w.seq between u.first_seq and u.last_seq))
          union all
         select l.conversation_id, l.seq, l.created_at, null, l.words
           from (
             select distinct on (u.conversation_id, m.seq) u.conversation_id, m.seq, m.created_at, i.words
               from exai.unindexed_messages u
               join public.conversations c on c.id = u.conversation_id and c.owner = p_owner
              cross join lateral (
                -- A range in its order is found by the primary key even where the planner takes it for a short one.
                select x.seq, x.created_at, x.content
                  from public.messages x
                 where x.conversation_id = u.conversation_id and x.seq between u.first_seq and u.last_seq
                 order by x.seq
                 limit u.last_seq - u.first_seq + 1) m
              cross join lateral (select to_tsvector('simple', left(m.content, 100000)) as words offset 0) i
              where v_ids is null or u.conversation_id = any(v_ids)
              order by u.conversation_id, m.seq) l
          where l.words @@ v_query
          order by created_at desc, conversation_id desc, seq desc) n
       join public.conversations c on c.id = n.conversation_id
      where c.owner = p_owner
        and case when v_ids is null then c.deleted_at is null
                 else n.seq <= v_up_to[array_position(v_ids, n.conversation_id)] end
        and (p_since is null or n.created_at >= p_since)
        and (p_until is null or n.created_at < p_until)
        and (p_as_of is null or n.created_at <= p_as_of)
        and ((p_role is null and p_tool is null and p_model is null) or exists (
          select from (
            select x.seq, x.role, x.turn_id from public.messages x
             where x.conversation_id = n.conversation_id and x.seq >= n.seq
             order by x.seq
             limit 1) m
            left join public.turns t on t.id = m.turn_id
           where m.seq = n.seq and (p_role is null or m.role = p_role)
             and (p_tool is null or t.tool = p_tool) and (p_model is null or t.model = p_model)))
      order by n.created_at desc, n.conversation_id desc, n.seq desc
      limit p_ranked)
    union all
    (select c.id, 0::bigint, c.created_at, null, to_tsvector('simple', left(c.title, 100000)), c.id, c.title
       from public.conversations c
      where to_tsvector('simple', left(c.title, 100000)) @@ v_query and c.title is not null
        and c.owner = p_owner and c.deleted_at is null
        and (p_continuation_id is null or c.continuation_id = p_continuation_id)
        and p_role is null and p_tool is null and p_model is null
        and (p_since is null or c.created_at >= p_since)
        and (p_until is null or c.created_at < p_until)
        and (p_as_of is null or c.created_at <= p_as_of)
      order by c.created_at desc, c.id desc
      limit p_ranked)
    order by 3 desc, 1 desc, 2 desc
    limit p_ranked),
  ranked as (
    select f.conversation_id, f.seq, f.created_at, f.shown_id, f.title,
           round(ts_rank(coalesce(f.words, (
             select w.words from exai.message_words w where w.ctid = f.at
           )), v_query, 1)::numeric, 6) as rank
      from found f
     where f.seq > 0 or f.conversation_id not in (select m.shown_id from found m where m.seq > 0)),
  page as (
    select r.conversation_id, r.seq, r.created_at, r.shown_id, r.title, r.rank
      from ranked r
     where p_rank is null or (r.rank, r.conversation_id, r.seq) < (p_rank, p_after_id, p_after_seq)
     order by r.rank desc, r.conversation_id desc, r.seq desc
     limit p_limit)
  select c.continuation_id, p.conversation_id, c.title, p.seq, m.role,
         case when p.seq = 0 then 'title' else m.kind end, p.created_at, p.rank, t.tool, t.model,
         coalesce(p_as_of, greatest(statement_timestamp(), (select max(f.created_at) from found f))),
         ts_headline('simple', left(coalesce(m.content, p.title), 100000), v_query, c_headline)
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
