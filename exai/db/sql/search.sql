-- name: search_messages
-- repeat: read
-- A page of the messages and titles that match, best first; by message_words_words_idx, then conversations_pkey.
select s.continuation_id::text as continuation_id, s.conversation_id::text as conversation_id, s.title::text as title,
       s.seq::bigint as seq, s.role::text as role, s.kind::text as kind, s.created_at::timestamptz as created_at,
       s.rank::text as rank, s.tool::text as tool, s.model::text as model, s.as_of::timestamptz as as_of,
       s.excerpt::text as excerpt, s.cut_before::boolean as cut_before, s.cut_after::boolean as cut_after,
       s.words::text[] as words, s.level::integer as level, s.missing::text[] as missing,
       s.unread::bigint as unread, s.rows_read::bigint as rows_read
  from exai.search_v1($1::text, $2::text, $3::text, $4::text, $5::timestamptz, $6::timestamptz, $7::text, $8::text,
                      $9::text[], $10::text::jsonb, $11::integer, $12::text::numeric, $13::text::uuid, $14::bigint,
                      $15::timestamptz, $16::integer, $17::integer) s;

-- name: index_messages
-- repeat: keyed
-- Indexes the words of a batch of queued messages; returns their number and the number still queued.
select i.o_indexed::integer as indexed, i.o_left::bigint as left_over
  from exai.index_messages_v1($1::integer, $2::text[]::uuid[], $3::bigint[], $4::text[], $5::boolean) i;

-- name: waiting_encrypted
-- repeat: read
-- The encrypted messages and titles (seq 0) among those that index_messages takes next, until their size exceeds a
-- number of bytes; by the primary keys.
select w.conversation_id::text as conversation_id, w.seq::bigint as seq, w.owner::text as owner,
       w.continuation_id::text as continuation_id, w.is_fork::boolean as is_fork, w.role::text as role, w.kind::text as kind, w.content::text as content
  from (
select m.conversation_id, m.seq, c.owner, c.continuation_id, c.parent_id is not null as is_fork, m.role, m.kind, m.content,
       pg_catalog.sum(pg_catalog.octet_length(m.content)) over (order by u.at, m.seq)
       operator(pg_catalog.-) pg_catalog.octet_length(m.content) as preceding
  from (select x.ctid as at, x.conversation_id, x.first_seq, x.last_seq from exai.unindexed_messages x limit $1::integer) u
  join public.conversations c on c.id = u.conversation_id
 cross join lateral (
   select c.id as conversation_id, 0::bigint as seq, null::text as role, null::text as kind, c.title as content
    where u.first_seq = 0 and c.title is not null
   union all
   (select x.conversation_id, x.seq, x.role, x.kind, x.content
      from public.messages x
     where x.conversation_id = u.conversation_id and x.seq between u.first_seq and u.last_seq
     order by x.seq
     limit $1::integer)) m
 where pg_catalog.starts_with(m.content, '$exai1$')) w
 where w.preceding < $2::bigint;
