-- name: similar_answers
-- repeat: read
-- The answers to the most similar questions of an owner; by answers_pkey, then the primary key of messages.
select s.o_similarity::double precision as similarity, s.o_question::text as question, s.o_content::text as content,
       s.o_metadata::text as metadata, s.o_turn_metadata::text as turn_metadata, s.o_created_at::timestamptz as created_at,
       s.o_conversation_id::text as conversation_id, s.o_turn_id::text as turn_id,
       s.o_question_seq::bigint as question_seq, s.o_question_kind::text as question_kind, s.o_seq::bigint as seq,
       s.o_kind::text as kind
  from exai.similar_answers_v1($1::text, $2::text, $3::text, $4::real[], $5::double precision, $6::double precision,
                               $7::integer, $8::integer) s;

-- name: keep_answer
-- repeat: keyed
-- Stores where the answer to a question is, in place of an earlier one, and removes the owner's expired and oldest ones;
-- by answers_pkey. A conversation that was purged meanwhile has no answer.
with removed as (
  delete from exai.answers a
   using (select b.embedding, b.rest, b.question
            from (select x.embedding, x.rest, x.question, x.created_at,
                         pg_catalog.row_number() over (order by x.created_at desc) as place
                    from exai.answers x where x.owner = $1::text) b
           where b.place >= $9::integer
              or b.created_at <= pg_catalog.clock_timestamp()
                                 operator(pg_catalog.-) pg_catalog.make_interval(secs => $10::double precision)) old
   where a.owner = $1::text and a.embedding = old.embedding and a.rest = old.rest and a.question = old.question
     and (a.embedding, a.rest, a.question) is distinct from ($2::text, $3::text, $4::text))
insert into exai.answers (owner, embedding, rest, question, vector, conversation_id, question_seq, seq, created_at)
select $1::text, $2::text, $3::text, $4::text, $5::real[], c.id, $7::bigint, $8::bigint, pg_catalog.clock_timestamp()
  from public.conversations c
 where c.id = $6::text::uuid and c.owner = $1::text
on conflict (owner, embedding, rest, question) do update
   set vector = excluded.vector, conversation_id = excluded.conversation_id, question_seq = excluded.question_seq,
       seq = excluded.seq, created_at = excluded.created_at
returning 1::integer as kept;

-- name: prune_answers
-- repeat: keyed
-- Removes expired answers of all owners; reads the table, of which each owner has a bounded number of rows.
with removed as (
  delete from exai.answers a
   where a.created_at <= pg_catalog.clock_timestamp()
                         operator(pg_catalog.-) pg_catalog.make_interval(secs => $1::double precision)
  returning 1)
select pg_catalog.count(*)::bigint as removed from removed;
