-- What all migrations together make: generated, read for review, never run.

create table exai.adopted_tables (
    name text not null,
    adopted_at timestamp with time zone default now(),
    constraint adopted_tables_pkey PRIMARY KEY (name)
);
alter table exai.adopted_tables enable row level security;

create table exai.removed_conversations (
    owner text not null,
    continuation_id text not null,
    changed_xid xid8 not null default pg_current_xact_id(),
    removed_at timestamp with time zone not null default now(),
    constraint removed_conversations_pkey PRIMARY KEY (changed_xid, owner, continuation_id)
);
alter table exai.removed_conversations enable row level security;

create table exai.set_aside (
    table_name text not null,
    reason text not null,
    row jsonb not null,
    set_aside_at timestamp with time zone not null default now()
);
alter table exai.set_aside enable row level security;

create table public.conversation_files (
    conversation_id uuid not null,
    file_id uuid not null,
    constraint conversation_files_pkey PRIMARY KEY (conversation_id, file_id),
    constraint conversation_files_conversation_fkey FOREIGN KEY (conversation_id) REFERENCES public.conversations(id) ON DELETE CASCADE,
    constraint conversation_files_file_fkey FOREIGN KEY (file_id) REFERENCES public.files(id) ON DELETE CASCADE
);
alter table public.conversation_files enable row level security;

CREATE INDEX conversation_files_file_idx ON public.conversation_files USING btree (file_id);

create table public.conversations (
    id uuid not null default gen_random_uuid(),
    owner text not null default 'local'::text,
    continuation_id text not null default (gen_random_uuid())::text,
    title text,
    metadata jsonb not null default '{}'::jsonb,
    tags text[] not null default '{}'::text[],
    parent_id uuid,
    parent_seq bigint,
    next_seq bigint not null default 1,
    revision bigint not null default 0,
    edited_revision bigint not null default 0,
    changed_xid xid8 not null default pg_current_xact_id(),
    deleted_at timestamp with time zone,
    created_at timestamp with time zone not null default now(),
    updated_at timestamp with time zone not null default now(),
    constraint conversations_pkey PRIMARY KEY (id),
    constraint conversations_owner_continuation_key UNIQUE (owner, continuation_id),
    constraint conversations_parent_fkey FOREIGN KEY (parent_id) REFERENCES public.conversations(id),
    constraint conversations_numbers_check CHECK (((next_seq >= 1) AND (revision >= edited_revision))),
    constraint conversations_parent_check CHECK (((parent_id IS NULL) = (parent_seq IS NULL)))
);
alter table public.conversations enable row level security;

CREATE INDEX conversations_changed_idx ON public.conversations USING btree (changed_xid);

CREATE INDEX conversations_deleted_idx ON public.conversations USING btree (deleted_at) WHERE (deleted_at IS NOT NULL);

CREATE INDEX conversations_parent_idx ON public.conversations USING btree (parent_id) WHERE (parent_id IS NOT NULL);

CREATE INDEX conversations_recent_idx ON public.conversations USING btree (owner, updated_at DESC, id DESC);

CREATE TRIGGER exai_fill BEFORE INSERT OR UPDATE ON public.conversations FOR EACH ROW WHEN (((new.continuation_id IS NULL) OR (new.metadata IS NULL) OR (new.created_at IS NULL) OR (new.updated_at IS NULL))) EXECUTE FUNCTION exai.fill_conversation_v1();

CREATE TRIGGER exai_note_change BEFORE UPDATE ON public.conversations FOR EACH ROW WHEN (((new.revision = old.revision) AND ((new.owner IS DISTINCT FROM old.owner) OR (new.continuation_id IS DISTINCT FROM old.continuation_id) OR (new.title IS DISTINCT FROM old.title) OR (new.metadata IS DISTINCT FROM old.metadata) OR (new.tags IS DISTINCT FROM old.tags) OR (new.deleted_at IS DISTINCT FROM old.deleted_at) OR (new.parent_id IS DISTINCT FROM old.parent_id) OR (new.parent_seq IS DISTINCT FROM old.parent_seq)))) EXECUTE FUNCTION exai.note_change_v1();

CREATE TRIGGER exai_note_removal AFTER DELETE ON public.conversations FOR EACH ROW EXECUTE FUNCTION exai.note_removal_v1();

create table public.files (
    id uuid not null default gen_random_uuid(),
    owner text not null default 'local'::text,
    sha256 text,
    size_bytes bigint,
    media_type text,
    name text,
    storage_path text,
    created_at timestamp with time zone not null default now(),
    used_at timestamp with time zone not null default now(),
    constraint files_pkey PRIMARY KEY (id),
    constraint files_owner_sha256_key UNIQUE (owner, sha256),
    constraint files_sha256_check CHECK ((sha256 ~ '^[0-9a-f]{64}$'::text)),
    constraint files_size_check CHECK ((size_bytes >= 0))
);
alter table public.files enable row level security;

CREATE INDEX files_recent_idx ON public.files USING btree (owner, created_at DESC, id DESC);

CREATE INDEX files_storage_path_idx ON public.files USING btree (storage_path);

create table public.messages (
    conversation_id uuid not null,
    seq bigint not null,
    turn_id uuid,
    role text not null,
    kind text not null default 'message'::text,
    content text not null,
    metadata jsonb not null default '{}'::jsonb,
    created_at timestamp with time zone not null default now(),
    constraint messages_pkey PRIMARY KEY (conversation_id, seq),
    constraint messages_conversation_fkey FOREIGN KEY (conversation_id) REFERENCES public.conversations(id) ON DELETE CASCADE,
    constraint messages_role_check CHECK ((role = ANY (ARRAY['system'::text, 'user'::text, 'assistant'::text, 'tool'::text]))),
    constraint messages_seq_check CHECK ((seq >= 1))
);
alter table public.messages enable row level security;

CREATE INDEX messages_created_idx ON public.messages USING btree (conversation_id, created_at DESC);

CREATE INDEX messages_system_idx ON public.messages USING btree (conversation_id, seq DESC) WHERE (role = 'system'::text);

CREATE INDEX messages_text_idx ON public.messages USING gin (to_tsvector('simple'::regconfig, "left"(content, 100000)));

CREATE TRIGGER exai_fix_number BEFORE UPDATE OF conversation_id, seq ON public.messages FOR EACH ROW WHEN (((old.seq IS NOT NULL) AND ((old.seq IS DISTINCT FROM new.seq) OR (old.conversation_id IS DISTINCT FROM new.conversation_id)))) EXECUTE FUNCTION exai.fix_number_v1();

CREATE TRIGGER exai_note_delete AFTER DELETE ON public.messages REFERENCING OLD TABLE AS changed FOR EACH STATEMENT EXECUTE FUNCTION exai.note_edit_v1();

CREATE TRIGGER exai_note_update AFTER UPDATE ON public.messages REFERENCING NEW TABLE AS changed FOR EACH STATEMENT EXECUTE FUNCTION exai.note_edit_v1();

CREATE TRIGGER exai_number BEFORE INSERT ON public.messages FOR EACH ROW WHEN ((new.turn_id IS NULL)) EXECUTE FUNCTION exai.number_message_v1();

create table public.turns (
    id uuid not null default gen_random_uuid(),
    conversation_id uuid not null,
    owner text not null,
    request_key text not null,
    request_hash text not null,
    tool text not null,
    state text not null,
    attempt integer not null default 1,
    claimed_by uuid not null,
    lease_until timestamp with time zone not null,
    provider text,
    model text,
    input_tokens bigint,
    output_tokens bigint,
    cached_tokens bigint,
    reasoning_tokens bigint,
    cost numeric,
    error jsonb,
    metadata jsonb not null default '{}'::jsonb,
    first_seq bigint,
    last_seq bigint,
    revision bigint not null,
    reply_first_seq bigint,
    reply_last_seq bigint,
    reply_revision bigint,
    started_at timestamp with time zone not null default now(),
    finished_at timestamp with time zone,
    constraint turns_pkey PRIMARY KEY (id),
    constraint turns_owner_key UNIQUE (owner, request_key),
    constraint turns_conversation_fkey FOREIGN KEY (conversation_id) REFERENCES public.conversations(id) ON DELETE CASCADE,
    constraint turns_state_check CHECK ((state = ANY (ARRAY['pending'::text, 'finished'::text, 'failed'::text])))
);
alter table public.turns enable row level security;

CREATE INDEX turns_conversation_idx ON public.turns USING btree (conversation_id);

CREATE OR REPLACE FUNCTION exai.append_v1(p_owner text, p_continuation_id text, p_new_id uuid, p_turn_id uuid, p_key text, p_hash text, p_tool text, p_title text, p_roles text[], p_contents text[], p_kinds text[], p_metadata text[], p_files text[], p_expected bigint)
 RETURNS TABLE(part text, seq bigint, role text, content text, created_at timestamp with time zone, kind text, turn_id text, data text)
 LANGUAGE plpgsql
 ROWS 1
 SET lock_timeout TO '2s'
AS $function$
#variable_conflict use_column
declare
  s record;
  v public.conversations;
  t public.turns;
begin
  s := exai.store_turn_v1(p_owner, p_continuation_id, p_new_id, p_turn_id, p_key, p_hash, p_tool, p_title, 'finished',
                          0, null, null, p_roles, p_contents, p_kinds, p_metadata, p_files, p_expected);
  if s.o_conversation_id is not null then
    select c.* into v from public.conversations c where c.id = s.o_conversation_id;
  end if;
  if s.o_status = 'old' then
    select x.* into t from public.turns x where x.id = s.o_turn_id;
    return query select 'head', null::bigint, null, null, null::timestamptz, null, null, json_build_object(
      'status', case when v.deleted_at is null then 'duplicate' else 'deleted' end, 'turn_id', t.id,
      'base_revision', t.revision - 1, 'revision', t.revision, 'first_seq', t.first_seq, 'last_seq', t.last_seq,
      'inc', exai.incarnation_v1(), 'conversation', exai.header_v1(v))::text;
    return query
      select 'stored', m.seq, m.role, m.content, m.created_at, m.kind, m.turn_id::text, nullif(m.metadata, '{}')::text
        from public.messages m
       where m.conversation_id = t.conversation_id and m.seq between t.first_seq and t.last_seq
       order by m.seq;
    return;
  end if;
  return query select 'head', null::bigint, null, null, s.o_now, null, null, json_build_object(
    'status', case s.o_status when 'new' then 'appended' else s.o_status end, 'turn_id', s.o_turn_id,
    'base_revision', s.o_base, 'revision', s.o_revision, 'first_seq', s.o_first, 'last_seq', s.o_last,
    'inc', exai.incarnation_v1(), 'detail', s.o_detail,
    'conversation', case when v.id is not null then exai.header_v1(v) end)::text;
end
$function$
;

CREATE OR REPLACE FUNCTION exai.begin_turn_v1(p_owner text, p_continuation_id text, p_new_id uuid, p_turn_id uuid, p_key text, p_hash text, p_tool text, p_title text, p_lease_s double precision, p_provider text, p_model text, p_roles text[], p_contents text[], p_kinds text[], p_metadata text[], p_files text[], p_expected bigint, p_budget bigint, p_known_revision bigint, p_known_low bigint, p_known_high bigint, p_known_size bigint)
 RETURNS TABLE(part text, seq bigint, role text, content text, created_at timestamp with time zone, kind text, turn_id text, data text)
 LANGUAGE plpgsql
 ROWS 10
 SET lock_timeout TO '2s'
AS $function$
#variable_conflict use_column
declare
  c_max_depth constant integer := 64;
  c_message_overhead constant integer := 16;
  c_batch constant integer := 50;
  s record;
  m record;
  v public.conversations;
  w public.conversations;
  t public.turns;
  v_status text;
  v_full boolean;
  v_floor bigint := 0;
  v_before bigint;
  v_left bigint := p_budget;
  v_found integer;
begin
  s := exai.store_turn_v1(p_owner, p_continuation_id, p_new_id, p_turn_id, p_key, p_hash, p_tool, p_title, 'pending',
                          p_lease_s, p_provider, p_model, p_roles, p_contents, p_kinds, p_metadata, p_files, p_expected);
  v_status := case s.o_status when 'new' then 'started' when 'deleted' then 'not_found' else s.o_status end;
  if s.o_status = 'old' then
    -- The conversation first, as everywhere; a new one was not locked by the claim.
    perform 1 from public.conversations c where c.id = s.o_conversation_id for no key update;
    update public.turns x
       set state = 'pending', attempt = x.attempt + 1, claimed_by = p_turn_id, finished_at = null,
           lease_until = clock_timestamp() + make_interval(secs => p_lease_s), provider = p_provider, model = p_model
     where x.id = s.o_turn_id
       and (x.state = 'failed'
            or (x.state = 'pending' and x.claimed_by <> p_turn_id and x.lease_until <= clock_timestamp()));
    select x.* into t from public.turns x where x.id = s.o_turn_id;
    -- The same claimant again did not hear the first answer; it is told again, with all that it may have missed.
    v_status := case when t.state = 'finished' then 'finished'
                     when t.claimed_by <> p_turn_id then 'pending'
                     when t.attempt = 1 then 'started'
                     else 'resumed' end;
  end if;
  if s.o_conversation_id is not null and v_status <> 'not_found' then
    select c.* into v from public.conversations c where c.id = s.o_conversation_id;
    if v.deleted_at is not null then
      v_status := 'not_found';
    end if;
  end if;

  if v_status in ('started', 'resumed') and coalesce(v.next_seq > 1, false) then
    v_full := not (s.o_status = 'new' and coalesce(
      p_known_high > 0 and p_known_revision between v.edited_revision and s.o_base, false));
    v_before := coalesce(s.o_first, t.first_seq, v.next_seq);
    if not v_full then
      v_floor := p_known_high;
    end if;
    w := v;
    <<walk>>
    for v_depth in 0 .. c_max_depth loop
      loop
        -- In batches, because without a limit the planner may sort the whole conversation first.
        v_found := 0;
        for m in
          select x.seq, x.role, x.content, x.created_at, x.kind, x.turn_id, x.metadata
            from public.messages x
           where x.conversation_id = w.id and x.seq < v_before and x.seq > v_floor
           order by x.seq desc
           limit c_batch
        loop
          v_left := v_left - octet_length(m.content) - c_message_overhead;
          if v_left < 0 then
            -- What the caller knows would be cut off from what is newer, so it is of no use.
            v_full := v_full or v_floor > 0;
            exit walk;
          end if;
          part := 'message'; seq := m.seq; role := m.role; content := m.content; created_at := m.created_at;
          kind := m.kind; turn_id := m.turn_id; data := nullif(m.metadata, '{}');
          return next;
          v_before := m.seq;
          v_found := v_found + 1;
        end loop;
        continue when v_found = c_batch;
        exit when v_floor = 0 or v_before <> v_floor + 1;
        v_left := v_left - p_known_size;
        v_before := p_known_low;
        v_floor := 0;
        exit walk when v_left <= 0;
      end loop;
      exit walk when w.parent_id is null or v_before <= 1;
      v_before := least(v_before, w.parent_seq + 1);
      select c.* into w from public.conversations c where c.id = w.parent_id;
    end loop;

    w := v;
    for v_depth in 0 .. c_max_depth loop
      return query
        select 'system', x.seq, x.role, x.content, x.created_at, x.kind, x.turn_id::text, nullif(x.metadata, '{}')::text
          from public.messages x
         where x.conversation_id = w.id and x.role = 'system' and x.seq < v_before
         order by x.seq desc
         limit 1;
      exit when found or w.parent_id is null;
      v_before := least(v_before, w.parent_seq + 1);
      select c.* into w from public.conversations c where c.id = w.parent_id;
    end loop;
  end if;

  if t.id is not null and v_status in ('started', 'resumed') then
    return query
      select 'stored', x.seq, x.role, x.content, x.created_at, x.kind, x.turn_id::text, nullif(x.metadata, '{}')::text
        from public.messages x
       where x.conversation_id = t.conversation_id and x.seq between t.first_seq and t.last_seq
       order by x.seq;
  elsif v_status = 'finished' then
    return query
      select 'reply', x.seq, x.role, x.content, x.created_at, x.kind, x.turn_id::text, nullif(x.metadata, '{}')::text
        from public.messages x
       where x.conversation_id = t.conversation_id and x.seq between t.reply_first_seq and t.reply_last_seq
       order by x.seq;
  end if;

  return query select 'head', null::bigint, null, null, s.o_now, null, null, json_build_object(
    'status', v_status, 'turn_id', coalesce(t.id, s.o_turn_id), 'attempt', coalesce(t.attempt, 1),
    'base_revision', case when s.o_status = 'new' then s.o_base when v_status = 'started' then t.revision - 1
                          else v.revision end,
    'revision', case when s.o_status <> 'new' and v_status = 'started' then t.revision
                     else coalesce(v.revision, s.o_revision) end,
    'first_seq', coalesce(t.first_seq, s.o_first), 'last_seq', coalesce(t.last_seq, s.o_last),
    'full', coalesce(v_full, true), 'inc', exai.incarnation_v1(), 'detail', s.o_detail,
    'conversation', case when v.id is not null then exai.header_v1(v) end,
    'turn', case when t.id is not null then exai.turn_v1(t) end)::text;
end
$function$
;

CREATE OR REPLACE FUNCTION exai.change_conversation_v1(p_owner text, p_continuation_id text, p_change jsonb, p_expected bigint)
 RETURNS TABLE(part text, data text)
 LANGUAGE plpgsql
 ROWS 1
 SET lock_timeout TO '2s'
AS $function$
#variable_conflict use_column
declare
  v public.conversations;
  n public.conversations;
  v_now timestamptz;
  v_status text;
begin
  select c.* into v from public.conversations c
   where c.owner = p_owner and c.continuation_id = p_continuation_id
     for no key update;
  if not found or (v.deleted_at is not null and not p_change ? 'deleted') then
    return query select 'head', json_build_object('status', 'not_found', 'inc', exai.incarnation_v1())::text;
    return;
  end if;
  n := v;
  v_now := greatest(v.updated_at, clock_timestamp());
  if p_change ? 'title' then
    n.title := p_change ->> 'title';
  end if;
  if p_change ? 'metadata' then
    n.metadata := p_change -> 'metadata';
  end if;
  if p_change ? 'tags' then
    n.tags := array(select jsonb_array_elements_text(p_change -> 'tags'));
  end if;
  if p_change ? 'deleted' then
    n.deleted_at := case when (p_change ->> 'deleted')::boolean then coalesce(v.deleted_at, v_now) end;
  end if;
  if n is not distinct from v then
    v_status := 'unchanged';
  elsif p_expected is not null and p_expected <> v.revision then
    v_status := 'conflict_revision';
    n := v;
  else
    v_status := 'changed';
    update public.conversations c
       set title = n.title, metadata = n.metadata, tags = n.tags, deleted_at = n.deleted_at,
           revision = v.revision + 1, edited_revision = v.revision + 1, changed_xid = pg_current_xact_id(),
           updated_at = v_now
     where c.id = v.id
    returning c.* into n;
  end if;
  return query select 'head', json_build_object(
    'status', v_status, 'base_revision', v.revision, 'revision', n.revision, 'inc', exai.incarnation_v1(),
    'conversation', exai.header_v1(n))::text;
end
$function$
;

CREATE OR REPLACE FUNCTION exai.fill_conversation_v1()
 RETURNS trigger
 LANGUAGE plpgsql
 SECURITY DEFINER
 SET search_path TO 'pg_catalog', 'pg_temp'
AS $function$
begin
  new.continuation_id := coalesce(new.continuation_id, new.id::text);
  new.metadata := coalesce(new.metadata, '{}');
  new.created_at := coalesce(new.created_at, now());
  new.updated_at := coalesce(new.updated_at, new.created_at);
  return new;
end
$function$
;

CREATE OR REPLACE FUNCTION exai.finish_turn_v1(p_owner text, p_turn_id uuid, p_attempt integer, p_state text, p_roles text[], p_contents text[], p_kinds text[], p_metadata text[], p_model text, p_input_tokens bigint, p_output_tokens bigint, p_cached_tokens bigint, p_reasoning_tokens bigint, p_cost numeric, p_error text, p_turn_metadata text)
 RETURNS TABLE(part text, seq bigint, role text, content text, created_at timestamp with time zone, kind text, turn_id text, data text)
 LANGUAGE plpgsql
 ROWS 1
 SET lock_timeout TO '2s'
AS $function$
#variable_conflict use_column
declare
  v_count constant bigint := cardinality(p_roles);
  v public.conversations;
  t public.turns;
  v_now timestamptz;
  v_base bigint;
  v_status text;
begin
  select c.* into v from public.conversations c
   where c.id = (select x.conversation_id from public.turns x where x.id = p_turn_id and x.owner = p_owner)
     for no key update;
  select x.* into t from public.turns x where x.id = p_turn_id and x.owner = p_owner for update;
  if t.id is null or t.attempt <> p_attempt or t.state not in ('pending', p_state) then
    v_status := 'superseded';
  elsif t.state = p_state then
    v_status := 'duplicate';
  else
    v_status := 'finished';
    v_now := greatest(v.updated_at, clock_timestamp());
    v_base := v.revision;
    if v_count > 0 then
      v.next_seq := v.next_seq + v_count;
      v.revision := v.revision + 1;
      v.updated_at := v_now;
      with c as (
        update public.conversations c
           set next_seq = v.next_seq, revision = v.revision, changed_xid = pg_current_xact_id(), updated_at = v_now
         where c.id = v.id)
      insert into public.messages (conversation_id, seq, turn_id, role, kind, content, metadata, created_at)
      select v.id, v.next_seq - v_count + u.ord - 1, p_turn_id, u.role, u.kind, u.content,
             coalesce(u.metadata::jsonb, '{}'), v_now
        from unnest(p_roles, p_kinds, p_contents, p_metadata) with ordinality u(role, kind, content, metadata, ord);
      t.reply_first_seq := v.next_seq - v_count;
      t.reply_last_seq := v.next_seq - 1;
    else
      t.reply_first_seq := null;
      t.reply_last_seq := null;
    end if;
    update public.turns x
       set state = p_state, finished_at = v_now, model = coalesce(p_model, x.model), input_tokens = p_input_tokens,
           output_tokens = p_output_tokens, cached_tokens = p_cached_tokens, reasoning_tokens = p_reasoning_tokens,
           cost = p_cost, error = p_error::jsonb, metadata = coalesce(p_turn_metadata::jsonb, '{}'),
           reply_first_seq = t.reply_first_seq, reply_last_seq = t.reply_last_seq, reply_revision = v.revision
     where x.id = p_turn_id;
  end if;
  if v_status = 'duplicate' then
    return query
      select 'stored', x.seq, x.role, x.content, x.created_at, x.kind, x.turn_id::text, nullif(x.metadata, '{}')::text
        from public.messages x
       where x.conversation_id = t.conversation_id and x.seq between t.reply_first_seq and t.reply_last_seq
       order by x.seq;
    v_base := t.reply_revision - case when t.reply_first_seq is null then 0 else 1 end;
    v.revision := t.reply_revision;
  end if;
  return query select 'head', null::bigint, null, null, v_now, null, null, json_build_object(
    'status', v_status, 'first_seq', case when v_status <> 'superseded' then t.reply_first_seq end,
    'seq', case when v_status <> 'superseded' then t.reply_last_seq end,
    'base_revision', coalesce(v_base, v.revision), 'revision', v.revision, 'inc', exai.incarnation_v1(),
    'conversation', case when v.id is not null then exai.header_v1(v) end)::text;
end
$function$
;

CREATE OR REPLACE FUNCTION exai.fix_number_v1()
 RETURNS trigger
 LANGUAGE plpgsql
 SECURITY DEFINER
 SET search_path TO 'pg_catalog', 'pg_temp'
AS $function$
begin
  raise exception 'a message keeps its number and its conversation'
    using hint = 'Insert it anew and delete the old one.', errcode = '23514';
end
$function$
;

CREATE OR REPLACE FUNCTION exai.fork_v1(p_owner text, p_continuation_id text, p_new_id uuid, p_at_seq bigint, p_title text)
 RETURNS TABLE(part text, data text)
 LANGUAGE plpgsql
 ROWS 1
 SET lock_timeout TO '2s'
AS $function$
#variable_conflict use_column
declare
  c_max_depth constant integer := 64;
  v public.conversations;
  w public.conversations;
  n public.conversations;
  v_at bigint;
  v_depth integer := 0;
  v_status text := 'forked';
begin
  select c.* into v from public.conversations c
   where c.owner = p_owner and c.continuation_id = p_continuation_id and c.deleted_at is null
     for key share;
  if not found then
    v_status := 'not_found';
  else
    v_at := coalesce(p_at_seq, v.next_seq - 1);
    if v_at < 0 or v_at >= v.next_seq then
      v_status := 'out_of_range';
    end if;
  end if;
  if v_status = 'forked' then
    w := v;
    while w.parent_id is not null and v_at <= w.parent_seq loop
      select c.* into w from public.conversations c where c.id = w.parent_id;
    end loop;
    n := w;
    while n.parent_id is not null loop
      v_depth := v_depth + 1;
      select c.* into n from public.conversations c where c.id = n.parent_id;
    end loop;
    if v_depth >= c_max_depth then
      v_status := 'too_deep';
    end if;
  end if;
  if v_status = 'forked' then
    insert into public.conversations (id, owner, continuation_id, title, metadata, tags, parent_id, parent_seq,
                                      next_seq, revision)
    values (p_new_id, p_owner, p_new_id::text, coalesce(p_title, v.title), v.metadata, v.tags, w.id, v_at, v_at + 1, 1)
    on conflict (id) do nothing;
    insert into public.conversation_files (conversation_id, file_id)
    select p_new_id, f.file_id from public.conversation_files f where f.conversation_id = v.id order by f.file_id
    on conflict do nothing;
    select c.* into n from public.conversations c where c.id = p_new_id and c.owner = p_owner;
  end if;
  return query select 'head', json_build_object(
    'status', v_status, 'last_seq', v.next_seq - 1, 'inc', exai.incarnation_v1(),
    'conversation', case when v_status = 'forked' then exai.header_v1(n) end)::text;
end
$function$
;

CREATE OR REPLACE FUNCTION exai.header_v1(v public.conversations)
 RETURNS json
 LANGUAGE sql
 STABLE
AS $function$
select json_build_object(
  'id', v.id, 'continuation_id', v.continuation_id, 'owner', v.owner, 'title', v.title, 'metadata', v.metadata,
  'tags', v.tags, 'parent_id', v.parent_id, 'parent_seq', v.parent_seq, 'last_seq', v.next_seq - 1,
  'revision', v.revision, 'created_at', v.created_at, 'updated_at', v.updated_at)
$function$
;

CREATE OR REPLACE FUNCTION exai.import_v1(p_owner text, p_continuation_id text, p_new_id uuid, p_turn_id uuid, p_key text, p_hash text, p_header jsonb, p_first_seq bigint, p_roles text[], p_contents text[], p_kinds text[], p_metadata text[], p_times text[])
 RETURNS TABLE(part text, data text)
 LANGUAGE plpgsql
 ROWS 1
 SET lock_timeout TO '2s'
AS $function$
#variable_conflict use_column
declare
  v_count constant bigint := cardinality(p_roles);
  v public.conversations;
  t public.turns;
  v_now timestamptz := clock_timestamp();
  v_status text;
begin
  if p_first_seq = 1 then
    insert into public.conversations (id, owner, continuation_id, title, metadata, tags, created_at, updated_at)
    values (p_new_id, p_owner, p_continuation_id, p_header ->> 'title', coalesce(p_header -> 'metadata', '{}'),
            array(select jsonb_array_elements_text(coalesce(p_header -> 'tags', '[]'))),
            coalesce((p_header ->> 'created_at')::timestamptz, v_now),
            coalesce((p_header ->> 'updated_at')::timestamptz, v_now))
    on conflict do nothing;
  end if;
  select c.* into v from public.conversations c
   where c.owner = p_owner and c.continuation_id = p_continuation_id
     for no key update;
  select x.* into t from public.turns x where x.owner = p_owner and x.request_key = p_key;
  v_status := case
    when v.id is null then 'gap'
    when t.id is not null and (t.request_hash <> p_hash or t.conversation_id <> v.id) then 'conflict_key'
    when t.id is not null then 'duplicate'
    when v.deleted_at is not null then 'deleted'
    when v.next_seq < p_first_seq then 'gap'
    when v.next_seq > p_first_seq then 'exists'
    else 'stored' end;
  if v_status = 'stored' then
    insert into public.turns (id, conversation_id, owner, request_key, request_hash, tool, state, claimed_by,
                              lease_until, first_seq, last_seq, revision, finished_at)
    values (p_turn_id, v.id, p_owner, p_key, p_hash, 'import', 'finished', p_turn_id, v_now,
            case when v_count > 0 then p_first_seq end, case when v_count > 0 then p_first_seq + v_count - 1 end,
            v.revision + 1, v_now);
    insert into public.messages (conversation_id, seq, turn_id, role, kind, content, metadata, created_at)
    select v.id, p_first_seq + u.ord - 1, p_turn_id, u.role, u.kind, u.content, coalesce(u.metadata::jsonb, '{}'),
           coalesce(u.at::timestamptz, v_now)
      from unnest(p_roles, p_kinds, p_contents, p_metadata, p_times) with ordinality u(role, kind, content, metadata, at, ord);
    update public.conversations c
       set next_seq = v.next_seq + v_count, revision = v.revision + 1, changed_xid = pg_current_xact_id()
     where c.id = v.id
    returning c.* into v;
  end if;
  return query select 'head', json_build_object(
    'status', v_status, 'base_revision', v.revision - 1, 'revision', v.revision, 'inc', exai.incarnation_v1(),
    'conversation', case when v.id is not null then exai.header_v1(v) end)::text;
end
$function$
;

CREATE OR REPLACE FUNCTION exai.incarnation_v1()
 RETURNS text
 LANGUAGE sql
 STABLE
AS $function$
select extract(epoch from pg_catalog.pg_postmaster_start_time())::text
$function$
;

CREATE OR REPLACE FUNCTION exai.note_change_v1()
 RETURNS trigger
 LANGUAGE plpgsql
 SECURITY DEFINER
 SET search_path TO 'pg_catalog', 'pg_temp'
AS $function$
begin
  new.revision := old.revision + 1;
  new.edited_revision := new.revision;
  new.changed_xid := pg_current_xact_id();
  new.updated_at := greatest(new.updated_at, clock_timestamp());
  if (new.owner, new.continuation_id) is distinct from (old.owner, old.continuation_id) then
    insert into exai.removed_conversations (owner, continuation_id)
    values (old.owner, old.continuation_id)
    on conflict do nothing;
  end if;
  return new;
end
$function$
;

CREATE OR REPLACE FUNCTION exai.note_edit_v1()
 RETURNS trigger
 LANGUAGE plpgsql
 SECURITY DEFINER
 SET search_path TO 'pg_catalog', 'pg_temp'
AS $function$
begin
  with recursive touched(id) as (
    select distinct x.conversation_id from changed x
    union
    select c.id from public.conversations c join touched on c.parent_id = touched.id),
  locked as (
    select c.id from public.conversations c where c.id in (select t.id from touched t) order by c.id for no key update)
  update public.conversations c
     set revision = c.revision + 1, edited_revision = c.revision + 1, changed_xid = pg_current_xact_id(),
         updated_at = greatest(c.updated_at, clock_timestamp())
    from locked
   where c.id = locked.id;
  return null;
end
$function$
;

CREATE OR REPLACE FUNCTION exai.note_removal_v1()
 RETURNS trigger
 LANGUAGE plpgsql
 SECURITY DEFINER
 SET search_path TO 'pg_catalog', 'pg_temp'
AS $function$
begin
  insert into exai.removed_conversations (owner, continuation_id)
  values (old.owner, old.continuation_id)
  on conflict do nothing;
  return null;
end
$function$
;

CREATE OR REPLACE FUNCTION exai.number_message_v1()
 RETURNS trigger
 LANGUAGE plpgsql
 SECURITY DEFINER
 SET search_path TO 'pg_catalog', 'pg_temp'
AS $function$
declare
  v_next bigint;
begin
  new.role := coalesce(new.role, 'user');
  new.content := coalesce(new.content, '');
  new.metadata := coalesce(new.metadata, '{}');
  new.created_at := coalesce(new.created_at, now());
  select c.next_seq into v_next from public.conversations c where c.id = new.conversation_id for no key update;
  if v_next is null then
    return new;
  end if;
  if new.seq >= v_next then
    raise exception 'messages are numbered by the database' using hint = 'Leave seq out.', errcode = '23514';
  end if;
  update public.conversations c
     set next_seq = case when new.seq is null then v_next + 1 else v_next end,
         revision = c.revision + 1,
         edited_revision = case when new.seq is null then c.edited_revision else c.revision + 1 end,
         changed_xid = pg_current_xact_id(),
         updated_at = greatest(c.updated_at, clock_timestamp())
   where c.id = new.conversation_id;
  new.seq := coalesce(new.seq, v_next);
  return new;
end
$function$
;

CREATE OR REPLACE FUNCTION exai.read_forward_v1(p_owner text, p_continuation_id text, p_after_seq bigint, p_up_to_seq bigint, p_limit integer, p_budget bigint)
 RETURNS TABLE(part text, seq bigint, role text, content text, created_at timestamp with time zone, kind text, turn_id text, data text)
 LANGUAGE plpgsql
 STABLE ROWS 100
AS $function$
#variable_conflict use_column
declare
  c_max_depth constant integer := 64;
  c_batch constant integer := 50;
  v public.conversations;
  v_ids uuid[];
  v_ends bigint[];
  v_after bigint := p_after_seq;
  v_end bigint;
  v_left integer := p_limit;
  v_bytes bigint := p_budget;
  v_found integer;
  m record;
begin
  select c.* into v from public.conversations c
   where c.owner = p_owner and c.continuation_id = p_continuation_id and c.deleted_at is null;
  if not found then
    return;
  end if;
  return query select 'head', null::bigint, null, null, null::timestamptz, null, null,
    json_build_object('conversation', exai.header_v1(v), 'inc', exai.incarnation_v1())::text;
  -- From the root down: which conversation holds the numbers up to which end.
  v_end := least(coalesce(p_up_to_seq, v.next_seq - 1), v.next_seq - 1);
  for v_depth in 0 .. c_max_depth loop
    v_ids := v.id || v_ids;
    v_ends := v_end || v_ends;
    exit when v.parent_id is null or v.parent_seq <= v_after;
    v_end := least(v_end, v.parent_seq);
    select c.* into v from public.conversations c where c.id = v.parent_id;
  end loop;
  for v_at in 1 .. cardinality(v_ids) loop
    loop
      v_found := 0;
      for m in
        select x.seq, x.role, x.content, x.created_at, x.kind, x.turn_id, x.metadata
          from public.messages x
         where x.conversation_id = v_ids[v_at] and x.seq > v_after and x.seq <= v_ends[v_at]
         order by x.seq
         limit least(c_batch, v_left)
      loop
        v_bytes := v_bytes - octet_length(m.content);
        if v_bytes < 0 and v_left < p_limit then
          return;
        end if;
        part := 'message'; seq := m.seq; role := m.role; content := m.content; created_at := m.created_at;
        kind := m.kind; turn_id := m.turn_id; data := nullif(m.metadata, '{}');
        return next;
        v_after := m.seq;
        v_left := v_left - 1;
        v_found := v_found + 1;
      end loop;
      exit when v_found < c_batch or v_left = 0;
    end loop;
    exit when v_left = 0;
  end loop;
end
$function$
;

CREATE OR REPLACE FUNCTION exai.read_page_v1(p_owner text, p_continuation_id text, p_before_seq bigint, p_limit integer)
 RETURNS TABLE(part text, seq bigint, role text, content text, created_at timestamp with time zone, kind text, turn_id text, data text)
 LANGUAGE plpgsql
 STABLE ROWS 50
AS $function$
#variable_conflict use_column
declare
  c_max_depth constant integer := 64;
  v public.conversations;
  v_id uuid;
  v_before bigint := coalesce(p_before_seq, 9223372036854775807);
  v_left bigint := p_limit;
  v_found bigint;
begin
  select c.* into v from public.conversations c
   where c.owner = p_owner and c.continuation_id = p_continuation_id and c.deleted_at is null;
  if not found then
    return;
  end if;
  return query select 'head', null::bigint, null, null, null::timestamptz, null, null,
    json_build_object('conversation', exai.header_v1(v), 'inc', exai.incarnation_v1())::text;
  v_id := v.id;
  for v_depth in 0 .. c_max_depth loop
    return query
      select 'message', m.seq, m.role, m.content, m.created_at, m.kind, m.turn_id::text, nullif(m.metadata, '{}')::text
        from public.messages m
       where m.conversation_id = v_id and m.seq < v_before
       order by m.seq desc
       limit v_left;
    get diagnostics v_found = row_count;
    v_left := v_left - v_found;
    exit when v_left <= 0 or v.parent_id is null;
    v_before := least(v_before, v.parent_seq + 1);
    select c.* into v from public.conversations c where c.id = v.parent_id;
    v_id := v.id;
  end loop;
end
$function$
;

CREATE OR REPLACE FUNCTION exai.store_turn_v1(p_owner text, p_continuation_id text, p_new_id uuid, p_turn_id uuid, p_key text, p_hash text, p_tool text, p_title text, p_state text, p_lease_s double precision, p_provider text, p_model text, p_roles text[], p_contents text[], p_kinds text[], p_metadata text[], p_files text[], p_expected bigint, OUT o_status text, OUT o_conversation_id uuid, OUT o_turn_id uuid, OUT o_base bigint, OUT o_revision bigint, OUT o_first bigint, OUT o_last bigint, OUT o_now timestamp with time zone, OUT o_detail text)
 RETURNS record
 LANGUAGE plpgsql
AS $function$
declare
  v_count constant bigint := cardinality(p_roles);
  v_next bigint;
  v_updated timestamptz;
  v_deleted timestamptz;
  v_claimed boolean := false;
  v_hash text;
  v_owned uuid;
begin
  if cardinality(p_files) > 0 then
    select string_agg(w.id, ', ') into o_detail from unnest(p_files) w(id)
     where not exists (select from public.files f where f.id = w.id::uuid and f.owner = p_owner);
    if o_detail is not null then
      o_status := 'file_not_found';
      return;
    end if;
  end if;

  if p_continuation_id is null then
    o_conversation_id := p_new_id;
    o_base := 0;
    v_next := 1;
    o_now := clock_timestamp();
    with t as (
      insert into public.turns (id, conversation_id, owner, request_key, request_hash, tool, state, claimed_by,
                                lease_until, provider, model, first_seq, last_seq, revision, started_at, finished_at)
      values (p_turn_id, p_new_id, p_owner, p_key, p_hash, p_tool, p_state, p_turn_id,
              o_now + make_interval(secs => p_lease_s), p_provider, p_model,
              case when v_count > 0 then 1 end, nullif(v_count, 0), 1, o_now,
              case when p_state = 'finished' then o_now end)
      on conflict do nothing
      returning 1),
    c as (
      insert into public.conversations (id, owner, continuation_id, title, next_seq, revision, created_at, updated_at)
      select p_new_id, p_owner, p_new_id::text, p_title, 1 + v_count, 1, o_now, o_now from t
      returning 1),
    m as (
      insert into public.messages (conversation_id, seq, turn_id, role, kind, content, metadata, created_at)
      select p_new_id, u.ord, p_turn_id, u.role, u.kind, u.content, coalesce(u.metadata::jsonb, '{}'), o_now
        from c cross join unnest(p_roles, p_kinds, p_contents, p_metadata)
             with ordinality u(role, kind, content, metadata, ord)),
    f as (
      insert into public.conversation_files (conversation_id, file_id)
      select p_new_id, w.id::uuid from c cross join unnest(p_files) w(id) order by 2
      on conflict do nothing)
    select exists (select from t) into v_claimed;
  else
    select c.id, c.next_seq, c.revision, c.updated_at, c.deleted_at
      into o_conversation_id, v_next, o_base, v_updated, v_deleted
      from public.conversations c
     where c.owner = p_owner and c.continuation_id = p_continuation_id
       for no key update;
    if not found then
      o_status := 'not_found';
      return;
    end if;
    if v_deleted is not null then
      o_status := 'deleted';
      return;
    end if;
    if p_expected is null or p_expected = o_base then
      o_now := greatest(v_updated, clock_timestamp());
      with t as (
        insert into public.turns (id, conversation_id, owner, request_key, request_hash, tool, state, claimed_by,
                                  lease_until, provider, model, first_seq, last_seq, revision, started_at, finished_at)
        values (p_turn_id, o_conversation_id, p_owner, p_key, p_hash, p_tool, p_state, p_turn_id,
                o_now + make_interval(secs => p_lease_s), p_provider, p_model,
                case when v_count > 0 then v_next end, case when v_count > 0 then v_next + v_count - 1 end,
                o_base + 1, o_now, case when p_state = 'finished' then o_now end)
        on conflict do nothing
        returning 1),
      c as (
        update public.conversations c
           set next_seq = v_next + v_count, revision = o_base + 1, changed_xid = pg_current_xact_id(),
               updated_at = o_now
          from t
         where c.id = o_conversation_id),
      m as (
        insert into public.messages (conversation_id, seq, turn_id, role, kind, content, metadata, created_at)
        select o_conversation_id, v_next + u.ord - 1, p_turn_id, u.role, u.kind, u.content,
               coalesce(u.metadata::jsonb, '{}'), o_now
          from t cross join unnest(p_roles, p_kinds, p_contents, p_metadata)
               with ordinality u(role, kind, content, metadata, ord)),
      f as (
        insert into public.conversation_files (conversation_id, file_id)
        select o_conversation_id, w.id::uuid from t cross join unnest(p_files) w(id) order by 2
        on conflict do nothing)
      select exists (select from t) into v_claimed;
    end if;
  end if;

  if v_claimed then
    o_status := 'new';
    o_turn_id := p_turn_id;
    o_revision := o_base + 1;
    if v_count > 0 then
      o_first := v_next;
      o_last := v_next + v_count - 1;
    end if;
    return;
  end if;

  select t.id, t.conversation_id, t.request_hash into o_turn_id, v_owned, v_hash
    from public.turns t where t.owner = p_owner and t.request_key = p_key;
  if not found then
    o_status := 'conflict_revision';
    o_revision := o_base;
  elsif v_hash <> p_hash or (p_continuation_id is not null and v_owned <> o_conversation_id) then
    o_status := 'conflict_key';
  else
    o_status := 'old';
    o_conversation_id := v_owned;
  end if;
end
$function$
;

CREATE OR REPLACE FUNCTION exai.turn_state_v1(p_owner text, p_key text)
 RETURNS TABLE(part text, seq bigint, role text, content text, created_at timestamp with time zone, kind text, turn_id text, data text)
 LANGUAGE plpgsql
 STABLE ROWS 2
AS $function$
#variable_conflict use_column
declare
  t public.turns;
  v public.conversations;
begin
  select x.* into t from public.turns x where x.owner = p_owner and x.request_key = p_key;
  if not found then
    return;
  end if;
  select c.* into v from public.conversations c where c.id = t.conversation_id;
  return query select 'head', null::bigint, null, null, null::timestamptz, null, null, json_build_object(
    'turn', exai.turn_v1(t), 'conversation', exai.header_v1(v), 'inc', exai.incarnation_v1())::text;
  return query
    select 'reply', x.seq, x.role, x.content, x.created_at, x.kind, x.turn_id::text, nullif(x.metadata, '{}')::text
      from public.messages x
     where x.conversation_id = t.conversation_id and x.seq between t.reply_first_seq and t.reply_last_seq
     order by x.seq;
end
$function$
;

CREATE OR REPLACE FUNCTION exai.turn_v1(t public.turns)
 RETURNS json
 LANGUAGE sql
 STABLE
AS $function$
select json_build_object(
  'id', t.id, 'state', t.state, 'attempt', t.attempt, 'tool', t.tool, 'provider', t.provider, 'model', t.model,
  'input_tokens', t.input_tokens, 'output_tokens', t.output_tokens, 'cached_tokens', t.cached_tokens,
  'reasoning_tokens', t.reasoning_tokens, 'cost', t.cost, 'error', t.error, 'metadata', t.metadata,
  'first_seq', t.first_seq, 'last_seq', t.last_seq, 'reply_last_seq', t.reply_last_seq, 'revision', t.revision,
  'started_at', t.started_at, 'finished_at', t.finished_at,
  'lease_left_s', extract(epoch from t.lease_until - clock_timestamp()))
$function$
;

CREATE OR REPLACE FUNCTION public.cleanup_orphaned_files(p_grace interval DEFAULT '01:00:00'::interval, p_limit integer DEFAULT 1000)
 RETURNS TABLE(id uuid, owner text, sha256 text, storage_path text)
 LANGUAGE plpgsql
 SET lock_timeout TO '2s'
AS $function$
#variable_conflict use_column
declare
  v_ids uuid[];
begin
  v_ids := array(
    select f.id
      from public.files f
     where f.used_at < clock_timestamp() - p_grace
       and not exists (select from public.conversation_files l where l.file_id = f.id)
     limit p_limit
       for update skip locked);
  return query
    delete from public.files f
     where f.id = any(v_ids)
       and not exists (select from public.conversation_files l where l.file_id = f.id)
    returning f.id, f.owner, f.sha256, f.storage_path;
end
$function$
;
