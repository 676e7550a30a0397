-- name: search_messages
-- repeat: read
-- A page of the messages that match, and of the titles (seq 0) of conversations of which no message does, best first, with
-- the matching words in context. The newest $13 matches up to $12 (null: up to now, by this server's clock) are ranked:
-- messages_text_idx and conversations_title_idx find matches but know no order, and ranking has to read each text. (A title
-- counts as no newer than its conversation's messages, so those are among them if it is.) In one conversation ($3) what it
-- shares with those it was forked from is searched too. The text is carried along and never looked up again: where most
-- conversations are short, the planner would look for one message by reading all of a long one.
with recursive lineage(id, parent_id, parent_seq, up_to) as (
  select c.id, c.parent_id, c.parent_seq, c.next_seq
    from public.conversations c
   where c.owner = $1::text and c.continuation_id = $3::text and c.deleted_at is null
  union all
  select c.id, c.parent_id, c.parent_seq, least(l.up_to, l.parent_seq)
    from lineage l
    join public.conversations c on c.id = l.parent_id),
found as (
  (select m.conversation_id, m.seq, m.created_at, m.role, m.kind, m.turn_id,
          coalesce($3::text, c.continuation_id) as continuation_id,
          case when $3::text is null then c.title else (
            select x.title from public.conversations x where x.owner = $1::text and x.continuation_id = $3::text
          ) end as title,
          m.content
     from public.messages m
     join public.conversations c on c.id = m.conversation_id
    where to_tsvector('simple', left(m.content, 100000)) @@ websearch_to_tsquery('simple', $2::text)
      and c.owner = $1::text
      and case when $3::text is null then c.deleted_at is null
               else exists (select from lineage l where l.id = m.conversation_id and m.seq <= l.up_to) end
      and ($4::text is null or m.role = $4::text)
      and ($5::timestamptz is null or m.created_at >= $5::timestamptz)
      and ($6::timestamptz is null or m.created_at < $6::timestamptz)
      and (($7::text is null and $8::text is null) or exists (
        select from public.turns t
         where t.id = m.turn_id and ($7::text is null or t.tool = $7::text) and ($8::text is null or t.model = $8::text)))
      and ($12::timestamptz is null or m.created_at <= $12::timestamptz)
    order by m.created_at desc, m.conversation_id desc, m.seq desc
    limit $13::integer)
  union all
  (select c.id, 0::bigint, c.created_at, null::text, 'title'::text, null::uuid, c.continuation_id, c.title, c.title
     from public.conversations c
    where to_tsvector('simple', left(c.title, 100000)) @@ websearch_to_tsquery('simple', $2::text) and c.title is not null
      and c.owner = $1::text and c.deleted_at is null
      and ($3::text is null or c.continuation_id = $3::text)
      and $4::text is null and $7::text is null and $8::text is null
      and ($5::timestamptz is null or c.created_at >= $5::timestamptz)
      and ($6::timestamptz is null or c.created_at < $6::timestamptz)
      and ($12::timestamptz is null or c.created_at <= $12::timestamptz)
    order by c.created_at desc, c.id desc
    limit $13::integer)
  order by 3 desc, 1 desc, 2 desc
  limit $13::integer),
ranked as (
  select f.conversation_id, f.seq, f.created_at, f.role, f.kind, f.turn_id, f.continuation_id, f.title,
         f.content, round(ts_rank(to_tsvector('simple', left(f.content, 100000)),
                                  websearch_to_tsquery('simple', $2::text), 1)::numeric, 6) as rank
    from found f
   where f.seq > 0 or not exists (select from found m where m.continuation_id = f.continuation_id and m.seq > 0)),
page as (
  select r.conversation_id, r.seq, r.created_at, r.role, r.kind, r.turn_id, r.continuation_id, r.title, r.content, r.rank
    from ranked r
   where $9::text is null
      or (r.rank, r.conversation_id, r.seq) < ($9::text::numeric, $10::text::uuid, $11::bigint)
   order by r.rank desc, r.conversation_id desc, r.seq desc
   limit $14::integer)
select p.continuation_id::text as continuation_id, p.conversation_id::text as conversation_id, p.title::text as title,
       p.seq::bigint as seq, p.role::text as role, p.kind::text as kind, p.created_at::timestamptz as created_at,
       p.rank::text as rank, t.tool::text as tool, t.model::text as model,
       coalesce($12::timestamptz, greatest(statement_timestamp(), (select max(f.created_at) from found f)))::timestamptz
         as as_of,
       ts_headline('simple', left(p.content, 100000), websearch_to_tsquery('simple', $2::text),
                   'MaxFragments=2, MaxWords=30, MinWords=10, StartSel=**, StopSel=**, FragmentDelimiter=" … "'
       )::text as snippet
  from page p
  left join public.turns t on t.id = p.turn_id
 order by p.rank desc, p.conversation_id desc, p.seq desc;
