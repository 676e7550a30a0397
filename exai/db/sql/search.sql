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
  from exai.index_messages_v1($1::integer) i;
