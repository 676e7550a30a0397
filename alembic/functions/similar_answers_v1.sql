-- Returns the answers of an owner to the questions most similar to p_vector, the most similar first: those at least as
-- similar as p_least, given within p_age_s, to prompts that are equal but for the question (p_rest), of conversations that
-- are not deleted. Only the newest p_rows are compared. Vectors have the length 1, so that their product is the cosine.
--
-- Vectors are stored as arrays and compared by pgvector where it is installed, so that nothing depends on the extension
-- and it may come and go. Its type and operator are those that belong to the extension, in whichever schema it is;
-- others of the same name are not used.
create or replace function exai.similar_answers_v1(
  p_owner text, p_embedding text, p_rest text, p_vector real[], p_least double precision, p_age_s double precision,
  p_rows integer, p_limit integer)
returns table (
  o_similarity double precision, o_question text, o_content text, o_metadata text, o_turn_metadata text,
  o_created_at timestamptz, o_conversation_id uuid, o_turn_id uuid, o_question_seq bigint, o_question_kind text, o_seq bigint,
  o_kind text)
language plpgsql stable rows 5
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
declare
  v_schema name;
  v_product text := '(select sum(x.a::double precision * x.b) from unnest(n.vector, $4) x(a, b))';
begin
  select n.nspname into v_schema
    from pg_extension e
    join pg_depend d on d.refclassid = 'pg_extension'::regclass and d.refobjid = e.oid and d.deptype = 'e'
                        and d.classid = 'pg_type'::regclass
    join pg_type t on t.oid = d.objid and t.typname = 'vector'
    join pg_namespace n on n.oid = t.typnamespace
   where e.extname = 'vector' and has_schema_privilege(n.oid, 'usage') and has_type_privilege(t.oid, 'usage');
  if v_schema is not null then
    v_product := format('1 - (n.vector::%1$I.vector operator(%1$I.<=>) $4::%1$I.vector)', v_schema);
  end if;
  return query execute format($query$
    with newest as materialized (
      select a.conversation_id, a.question_seq, a.seq, a.vector
        from exai.answers a
        join public.conversations c on c.id = a.conversation_id and c.deleted_at is null
       where a.owner = $1 and a.embedding = $2 and a.rest = $3 and cardinality(a.vector) = cardinality($4)
         and a.created_at > clock_timestamp() - make_interval(secs => $6)
       order by a.created_at desc
       limit $7),
    measured as materialized (
      select n.conversation_id, n.question_seq, n.seq, %s as similarity from newest n)
    select s.similarity, q.content, m.content, m.metadata::text, t.metadata::text, m.created_at,
           s.conversation_id, m.turn_id, s.question_seq, q.kind, s.seq, m.kind
      from (select x.* from measured x where x.similarity >= $5 order by x.similarity desc limit $8) s
      -- An ordered range uses the primary key even if the planner estimates the conversation to be short.
      join lateral (
        select y.seq, y.content, y.kind
          from public.messages y
         where y.conversation_id = s.conversation_id and y.seq >= s.question_seq
         order by y.seq
         limit 1) q on q.seq = s.question_seq
      join lateral (
        select y.seq, y.turn_id, y.content, y.kind, y.metadata, y.created_at
          from public.messages y
         where y.conversation_id = s.conversation_id and y.seq >= s.seq
         order by y.seq
         limit 1) m on m.seq = s.seq
      left join public.turns t on t.id = m.turn_id
     order by s.similarity desc, m.created_at desc
  $query$, v_product)
  using p_owner, p_embedding, p_rest, p_vector, p_least, p_age_s, p_rows, p_limit;
end
$$
