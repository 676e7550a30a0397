-- Returns the messages (and titles: seq 0) of the owner that wait to be indexed and match, with the numbers of the
-- terms each contains (o_which) and its words, or those of the first segment of a long message that contains a term.
-- Words are made as for the index, segment by segment, only from texts that contain a term's substring (p_needles).
--
-- Small messages come first, and the work is bounded by about p_work microseconds and by p_stop. o_unread: how many
-- were not examined, or not completely.
create or replace function exai.search_unindexed_v1(
  p_owner text, p_terms tsquery[], p_groups integer[], p_excluded boolean[], p_needles text[], p_missing integer,
  p_ids uuid[], p_up_to bigint[], p_since timestamptz, p_until timestamptz, p_as_of timestamptz,
  p_work bigint, p_stop timestamptz,
  out o_ids uuid[], out o_seqs bigint[], out o_ats timestamptz[], out o_words tsvector[], out o_which text[], out o_unread bigint,
  out o_work bigint)
language plpgsql stable
set search_path = pg_catalog, pg_temp
set plan_cache_mode = 'force_generic_plan'
as $$
declare
  c_segment constant integer := 50000;
  c_overlap constant integer := 500;
  v_key constant text := exai.owner_key_v1(p_owner);
  v_are_any_excluded constant boolean := true = any(p_excluded);
  v_work bigint := 0;
  v_row record;
  v_part record;
  v_text text collate "C";
  v_folded text collate "C";
  v_bytes bytea;
  v_size bigint;
  v_last integer;
  v_segment integer;
  v_is_ascii boolean;
  v_is_held boolean;
  v_is_found boolean;
  v_is_cut boolean;
  v_segments integer[];
  v_present integer[];
  v_which integer[];
  v_words tsvector;
begin
  o_unread := 0;
  for v_row in
    select l.conversation_id, l.seq, l.created_at, l.content
      from (
        select distinct on (u.conversation_id, m.seq) u.conversation_id, m.seq, m.created_at, m.content
          from exai.unindexed_messages u
          join public.conversations c on c.id = u.conversation_id and c.owner = p_owner
         cross join lateral (
           select 0 as seq, c.created_at, c.title as content where u.first_seq = 0 and c.title is not null
            union all
           -- An ordered range uses the primary key even if the planner estimates the conversation to be short.
           (select x.seq, x.created_at, x.content
              from public.messages x
             where x.conversation_id = u.conversation_id and x.seq between u.first_seq and u.last_seq
             order by x.seq
             limit u.last_seq - u.first_seq + 1)) m
         where p_ids is null or u.conversation_id = any(p_ids)
         order by u.conversation_id, m.seq) l
     where (p_ids is null or (l.seq > 0 and l.seq <= p_up_to[array_position(p_ids, l.conversation_id)])
            or (l.seq = 0 and l.conversation_id = p_ids[1]))
       and (p_since is null or l.created_at >= p_since)
       and (p_until is null or l.created_at < p_until)
       and (p_as_of is null or l.created_at <= p_as_of)
     order by octet_length(l.content), l.created_at desc
  loop
    -- The caller alone can read it.
    if starts_with(v_row.content, '$exai1$') then
      o_unread := o_unread + 1;
      continue;
    end if;
    v_size := octet_length(v_row.content);
    if v_work + v_size / 32 > p_work or clock_timestamp() > p_stop then
      o_unread := o_unread + 1;
      continue;
    end if;
    -- Detoasts the content once, not at each use.
    v_text := v_row.content || '';
    v_is_ascii := length(v_text) = v_size;
    v_last := greatest(length(v_text) - 1, 0) / c_segment;
    v_bytes := case when v_is_ascii and v_last > 0 then convert_to(v_text, 'UTF8') end;
    v_work := v_work + 30;
    v_is_cut := false;
    v_segments := '{}';
    v_present := '{}';
    for v_segment in 0 .. v_last loop
      v_folded := case when v_last = 0 then v_text
                       when v_is_ascii then convert_from(
                         substring(v_bytes from v_segment * c_segment + 1 for c_segment + c_overlap), 'UTF8')
                       else substr(v_text, v_segment * c_segment + 1, c_segment + c_overlap) end;
      v_work := v_work + case when v_is_ascii then length(v_folded) / 32 else length(v_folded) / 2 end;
      v_is_cut := v_segment > 0 and (v_work > p_work or clock_timestamp() > p_stop);
      exit when v_is_cut;
      v_folded := case when v_is_ascii then lower(v_folded) else exai.strip_marks_v1(exai.fold_v1(v_folded)) end;
      v_is_held := false;
      for i in 1 .. cardinality(p_needles) loop
        if strpos(v_folded, p_needles[i]) > 0 then
          v_is_held := true;
          if not p_excluded[i] and not i = any(v_present) then
            v_present := v_present || i;
          end if;
        end if;
      end loop;
      if v_is_held then
        v_segments := v_segments || v_segment;
      end if;
    end loop;
    if v_is_cut then
      o_unread := o_unread + 1;
      continue;
    end if;
    continue when v_present = '{}' or not exai.has_terms_v1(v_present, p_groups, p_excluded, p_missing);
    v_which := '{}';
    v_words := null;
    v_is_found := false;
    foreach v_segment in array v_segments loop
      v_folded := case when v_last = 0 then v_text
                       when v_is_ascii then convert_from(
                         substring(v_bytes from v_segment * c_segment + 1 for c_segment + c_overlap), 'UTF8')
                       else substr(v_text, v_segment * c_segment + 1, c_segment + c_overlap) end;
      v_work := v_work + case when v_is_ascii then length(v_folded) / 3 else length(v_folded) * 2 end;
      v_is_cut := v_work > p_work or clock_timestamp() > p_stop;
      exit when v_is_cut;
      for v_part in select w.words from exai.words_v1(v_key, v_folded) w loop
        for i in 1 .. cardinality(p_terms) loop
          if not i = any(v_which) and v_part.words @@ p_terms[i] then
            v_which := v_which || i;
            if v_words is null and not p_excluded[i] then
              v_words := v_part.words;
            end if;
          end if;
        end loop;
      end loop;
      v_is_found := exai.has_terms_v1(v_which, p_groups, p_excluded, p_missing);
      exit when v_is_found and p_missing = 0 and not v_are_any_excluded;
    end loop;
    v_is_found := v_is_found and not (v_is_cut and v_are_any_excluded);
    if v_is_cut and not (v_is_found and p_missing = 0) then
      o_unread := o_unread + 1;
    end if;
    if v_is_found then
      o_ids := o_ids || v_row.conversation_id;
      o_seqs := o_seqs || v_row.seq;
      o_ats := o_ats || v_row.created_at;
      o_words := o_words || v_words;
      o_which := o_which || array_to_string(v_which, ',');
    end if;
  end loop;
  o_work := v_work;
end
$$
