-- What all migrations together make: generated, read for review, never run.

create table exai.adopted_tables (
    name text not null,
    replica_identity text,
    adopted_at timestamp with time zone not null default now(),
    constraint adopted_tables_pkey PRIMARY KEY (name)
);
alter table exai.adopted_tables enable row level security;

create table exai.answers (
    owner text not null,
    rest text not null,
    embedding text not null,
    question text not null,
    vector real[] not null,
    conversation_id uuid not null,
    question_seq bigint not null,
    seq bigint not null,
    created_at timestamp with time zone not null,
    constraint answers_pkey PRIMARY KEY (owner, embedding, rest, question),
    constraint answers_conversation_fkey FOREIGN KEY (conversation_id) REFERENCES public.conversations(id) ON DELETE CASCADE
);
alter table exai.answers enable row level security;

CREATE INDEX answers_conversation_idx ON exai.answers USING btree (conversation_id);

create table exai.blob_parts (
    blob_id uuid not null,
    number integer not null,
    characters integer not null,
    data bytea not null,
    constraint blob_parts_pkey PRIMARY KEY (blob_id, number),
    constraint blob_parts_blob_fkey FOREIGN KEY (blob_id) REFERENCES exai.blobs(id) ON DELETE CASCADE,
    constraint blob_parts_size_check CHECK (((octet_length(data) >= 1) AND (octet_length(data) <= 1048576)))
);
alter table exai.blob_parts enable row level security;

create table exai.blobs (
    id uuid not null,
    size_bytes bigint not null,
    begun_at timestamp with time zone not null default now(),
    constraint blobs_pkey PRIMARY KEY (id),
    constraint blobs_size_check CHECK ((size_bytes >= 0))
);
alter table exai.blobs enable row level security;

create table exai.checkpoint_blobs (
    thread uuid not null,
    namespace text not null,
    channel text not null,
    version text not null,
    value_type text not null,
    value bytea not null,
    key_name text,
    bound_to text,
    created_at timestamp with time zone not null default now(),
    constraint checkpoint_blobs_pkey PRIMARY KEY (thread, namespace, channel, version),
    constraint checkpoint_blobs_thread_fkey FOREIGN KEY (thread) REFERENCES exai.checkpoint_threads(id) ON DELETE CASCADE
);
alter table exai.checkpoint_blobs enable row level security;

create table exai.checkpoint_threads (
    id uuid not null default gen_random_uuid(),
    owner text not null default 'local'::text,
    thread_id text not null,
    revision bigint not null default 0,
    copied_from text[] not null default '{}'::text[],
    ttl_s double precision,
    changed_xid xid8 not null default pg_current_xact_id(),
    deleted_at timestamp with time zone,
    expires_at timestamp with time zone,
    created_at timestamp with time zone not null default now(),
    updated_at timestamp with time zone not null default now(),
    constraint checkpoint_threads_pkey PRIMARY KEY (id),
    constraint checkpoint_threads_owner_thread_key UNIQUE (owner, thread_id),
    constraint checkpoint_threads_ttl_check CHECK ((ttl_s > (0)::double precision))
);
alter table exai.checkpoint_threads enable row level security;

CREATE INDEX checkpoint_threads_changed_idx ON exai.checkpoint_threads USING btree (changed_xid);

CREATE INDEX checkpoint_threads_deleted_idx ON exai.checkpoint_threads USING btree (deleted_at) WHERE (deleted_at IS NOT NULL);

CREATE INDEX checkpoint_threads_expires_idx ON exai.checkpoint_threads USING btree (expires_at) WHERE (expires_at IS NOT NULL);

CREATE INDEX checkpoint_threads_idle_idx ON exai.checkpoint_threads USING btree (updated_at) WHERE ((expires_at IS NULL) AND (deleted_at IS NULL));

CREATE INDEX checkpoint_threads_recent_idx ON exai.checkpoint_threads USING btree (owner, updated_at DESC, id DESC);

CREATE TRIGGER exai_note_thread AFTER DELETE ON exai.checkpoint_threads FOR EACH ROW EXECUTE FUNCTION exai.note_thread_v1();
-- It fires always.

create table exai.checkpoint_writes (
    thread uuid not null,
    namespace text not null,
    checkpoint_id text not null,
    task_id text not null,
    place integer not null,
    task_path text not null default ''::text,
    channel text not null,
    value_type text not null,
    value bytea not null,
    key_name text,
    bound_to text,
    created_at timestamp with time zone not null default now(),
    constraint checkpoint_writes_pkey PRIMARY KEY (thread, namespace, checkpoint_id, task_id, place),
    constraint checkpoint_writes_thread_fkey FOREIGN KEY (thread) REFERENCES exai.checkpoint_threads(id) ON DELETE CASCADE
);
alter table exai.checkpoint_writes enable row level security;

create table exai.checkpoints (
    thread uuid not null,
    namespace text not null,
    checkpoint_id text not null,
    owner text not null,
    parent_id text,
    run_id text,
    body_type text not null,
    body bytea not null,
    metadata_type text not null,
    metadata bytea not null,
    facts jsonb not null default '{}'::jsonb,
    versions jsonb not null default '{}'::jsonb,
    delta_channels text[] not null default '{}'::text[],
    key_name text,
    bound_to text,
    created_at timestamp with time zone not null default now(),
    constraint checkpoints_pkey PRIMARY KEY (thread, namespace, checkpoint_id),
    constraint checkpoints_thread_fkey FOREIGN KEY (thread) REFERENCES exai.checkpoint_threads(id) ON DELETE CASCADE,
    constraint checkpoints_facts_check CHECK ((jsonb_typeof(facts) = 'object'::text)),
    constraint checkpoints_versions_check CHECK ((jsonb_typeof(versions) = 'object'::text))
);
alter table exai.checkpoints enable row level security;

CREATE INDEX checkpoints_recent_idx ON exai.checkpoints USING btree (owner, checkpoint_id DESC, thread DESC, namespace DESC);

CREATE INDEX checkpoints_run_idx ON exai.checkpoints USING btree (owner, run_id) WHERE (run_id IS NOT NULL);

CREATE INDEX checkpoints_thread_idx ON exai.checkpoints USING btree (thread, checkpoint_id DESC, namespace DESC);

create table exai.content_texts (
    owner text not null,
    sha256 text not null,
    source text not null,
    text text,
    note text not null,
    made_at timestamp with time zone not null default now(),
    constraint content_texts_pkey PRIMARY KEY (owner, sha256),
    constraint content_texts_content_fkey FOREIGN KEY (owner, sha256) REFERENCES exai.contents(owner, sha256) ON DELETE CASCADE,
    constraint content_texts_source_check CHECK ((source = ANY (ARRAY['local'::text, 'provider'::text])))
);
alter table exai.content_texts enable row level security;

create table exai.contents (
    owner text not null,
    sha256 text not null,
    size_bytes bigint not null,
    store text not null,
    storage_path text,
    blob_id uuid,
    encoding text,
    used_at timestamp with time zone not null default now(),
    lost_at timestamp with time zone,
    constraint contents_pkey PRIMARY KEY (owner, sha256),
    constraint contents_blob_fkey FOREIGN KEY (blob_id) REFERENCES exai.blobs(id),
    constraint contents_place_check CHECK ((((store = 'postgres'::text) = (blob_id IS NOT NULL)) AND ((store = 'postgres'::text) = (storage_path IS NULL)))),
    constraint contents_sha256_check CHECK ((sha256 ~ '^[0-9a-f]{64}$'::text))
);
alter table exai.contents enable row level security;

CREATE UNIQUE INDEX contents_blob_idx ON exai.contents USING btree (blob_id);

CREATE INDEX contents_storage_path_idx ON exai.contents USING btree (storage_path) WHERE (storage_path IS NOT NULL);

create table exai.encryption_keys (
    name text not null,
    fingerprint text not null,
    wrapped bytea not null,
    is_first boolean,
    added_at timestamp with time zone not null default now(),
    constraint encryption_keys_pkey PRIMARY KEY (name),
    constraint encryption_keys_first_key UNIQUE (is_first)
);
alter table exai.encryption_keys enable row level security;

create table exai.message_words (
    conversation_id uuid not null,
    seq bigint not null,
    created_at timestamp with time zone not null,
    part smallint not null default 0,
    words tsvector not null,
    constraint message_words_pkey PRIMARY KEY (conversation_id, seq, part),
    constraint message_words_conversation_fkey FOREIGN KEY (conversation_id) REFERENCES public.conversations(id) ON DELETE CASCADE
);
alter table exai.message_words enable row level security;

CREATE INDEX message_words_words_idx ON exai.message_words USING gin (words) WITH (gin_pending_list_limit='16384');

create table exai.purged_turns (
    owner text not null,
    started_at timestamp with time zone not null,
    turn_id uuid not null,
    conversation_id uuid not null,
    continuation_id text not null,
    tool text not null,
    state text not null,
    provider text,
    model text not null,
    input_tokens bigint,
    output_tokens bigint,
    cached_tokens bigint,
    reasoning_tokens bigint,
    cost numeric,
    is_estimated boolean not null,
    constraint purged_turns_pkey PRIMARY KEY (owner, started_at, turn_id)
);
alter table exai.purged_turns enable row level security;

create table exai.quarantine (
    table_name text not null,
    reason text not null,
    row jsonb not null,
    quarantined_at timestamp with time zone not null default now()
);
alter table exai.quarantine enable row level security;

create table exai.remote_files (
    key_id text not null,
    file_id text not null,
    made_at timestamp with time zone not null default now(),
    tried_at timestamp with time zone not null default now(),
    constraint remote_files_pkey PRIMARY KEY (key_id, file_id)
);
alter table exai.remote_files enable row level security;

create table exai.removed_conversations (
    owner text not null,
    continuation_id text not null,
    changed_xid xid8 not null default pg_current_xact_id(),
    removed_at timestamp with time zone not null default now(),
    revision bigint not null default 0,
    constraint removed_conversations_pkey PRIMARY KEY (changed_xid, owner, continuation_id)
);
alter table exai.removed_conversations enable row level security;

CREATE INDEX removed_conversations_name_idx ON exai.removed_conversations USING btree (owner, continuation_id);

create table exai.removed_threads (
    owner text not null,
    thread_id text not null,
    changed_xid xid8 not null default pg_current_xact_id(),
    removed_at timestamp with time zone not null default now(),
    constraint removed_threads_pkey PRIMARY KEY (changed_xid, owner, thread_id)
);
alter table exai.removed_threads enable row level security;

create table exai.unindexed_messages (
    conversation_id uuid not null,
    first_seq bigint not null,
    last_seq bigint not null,
    done bigint not null default 0
);
alter table exai.unindexed_messages enable row level security;

create table monitoring.erased_owners (
    digest text not null,
    erased_at timestamp with time zone not null default clock_timestamp(),
    constraint erased_owners_key PRIMARY KEY (digest)
);
alter table monitoring.erased_owners enable row level security;

create table monitoring.metrics_1hour (
    bucket timestamp with time zone not null,
    type text not null,
    labels jsonb not null default '{}'::jsonb,
    count bigint not null,
    sum double precision,
    min double precision,
    max double precision,
    buckets jsonb,
    constraint metrics_1hour_key PRIMARY KEY (type, bucket, labels)
);
alter table monitoring.metrics_1hour enable row level security;

CREATE INDEX metrics_1hour_time_idx ON monitoring.metrics_1hour USING btree (bucket);

create table monitoring.metrics_1min (
    bucket timestamp with time zone not null,
    type text not null,
    labels jsonb not null default '{}'::jsonb,
    count bigint not null,
    sum double precision,
    min double precision,
    max double precision,
    buckets jsonb,
    constraint metrics_1min_key PRIMARY KEY (type, bucket, labels)
);
alter table monitoring.metrics_1min enable row level security;

CREATE INDEX metrics_1min_time_idx ON monitoring.metrics_1min USING btree (bucket);

create table monitoring.metrics_processing_log (
    id bigint not null generated by default as identity,
    batch_id uuid not null,
    status text not null,
    source text,
    received integer not null default 0,
    stored integer not null default 0,
    rejected integer not null default 0,
    late integer not null default 0,
    future integer not null default 0,
    error text,
    processed_at timestamp with time zone not null default clock_timestamp(),
    constraint metrics_processing_log_key PRIMARY KEY (id),
    constraint metrics_processing_log_status_check CHECK ((status = ANY (ARRAY['stored'::text, 'moved'::text, 'refused'::text, 'failed'::text])))
);
alter table monitoring.metrics_processing_log enable row level security;

CREATE UNIQUE INDEX metrics_processing_log_batch_idx ON monitoring.metrics_processing_log USING btree (batch_id) WHERE (status = 'stored'::text);

CREATE INDEX metrics_processing_log_time_idx ON monitoring.metrics_processing_log USING btree (processed_at);

create table monitoring.metrics_raw (
    id bigint not null default nextval('monitoring.metrics_raw_number'::regclass),
    type text not null,
    data jsonb not null default '{}'::jsonb,
    timestamp timestamp with time zone not null default clock_timestamp(),
    created_at timestamp with time zone not null default clock_timestamp(),
    constraint metrics_raw_key PRIMARY KEY (id, "timestamp")
) partition by RANGE ("timestamp");
alter table monitoring.metrics_raw enable row level security;

CREATE INDEX metrics_raw_recent_idx ON ONLY monitoring.metrics_raw USING btree (type, "timestamp" DESC);

CREATE TRIGGER exai_roll_up AFTER INSERT ON monitoring.metrics_raw REFERENCING NEW TABLE AS fresh FOR EACH STATEMENT EXECUTE FUNCTION monitoring.roll_up_v1();

create table monitoring.metrics_raw_default partition of monitoring.metrics_raw DEFAULT (
    id bigint not null default nextval('monitoring.metrics_raw_number'::regclass),
    type text not null,
    data jsonb not null default '{}'::jsonb,
    timestamp timestamp with time zone not null default clock_timestamp(),
    created_at timestamp with time zone not null default clock_timestamp(),
    constraint metrics_raw_default_pkey PRIMARY KEY (id, "timestamp")
);
alter table monitoring.metrics_raw_default enable row level security;

CREATE INDEX metrics_raw_default_type_timestamp_idx ON monitoring.metrics_raw_default USING btree (type, "timestamp" DESC);

create table public.conversation_files (
    conversation_id uuid not null,
    file_id uuid not null,
    source jsonb,
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
    reply_seq bigint,
    reply_kind text,
    former_name text,
    cut_from uuid[],
    changed_xid xid8 not null default pg_current_xact_id(),
    deleted_at timestamp with time zone,
    expires_at timestamp with time zone,
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

CREATE INDEX conversations_created_idx ON public.conversations USING btree (owner, created_at, id);

CREATE INDEX conversations_deleted_idx ON public.conversations USING btree (deleted_at) WHERE (deleted_at IS NOT NULL);

CREATE INDEX conversations_expires_idx ON public.conversations USING btree (expires_at) WHERE (expires_at IS NOT NULL);

CREATE INDEX conversations_former_idx ON public.conversations USING btree (owner, former_name) WHERE (former_name IS NOT NULL);

CREATE INDEX conversations_name_idx ON public.conversations USING btree (owner, continuation_id COLLATE "C");

CREATE INDEX conversations_parent_idx ON public.conversations USING btree (parent_id) WHERE (parent_id IS NOT NULL);

CREATE INDEX conversations_recent_idx ON public.conversations USING btree (owner, updated_at DESC, id DESC);

CREATE TRIGGER exai_clock BEFORE INSERT OR UPDATE OF updated_at ON public.conversations FOR EACH ROW WHEN ((new.updated_at > clock_timestamp())) EXECUTE FUNCTION exai.clamp_updated_at_v1();

CREATE TRIGGER exai_fill BEFORE INSERT OR UPDATE ON public.conversations FOR EACH ROW WHEN (((new.continuation_id IS NULL) OR (new.metadata IS NULL) OR (new.created_at IS NULL) OR (new.updated_at IS NULL))) EXECUTE FUNCTION exai.fill_conversation_v1();

CREATE TRIGGER exai_keep_usage BEFORE DELETE ON public.conversations FOR EACH ROW EXECUTE FUNCTION exai.keep_usage_v1();

CREATE TRIGGER exai_note_change BEFORE UPDATE ON public.conversations FOR EACH ROW WHEN (((new.revision = old.revision) AND ((new.owner IS DISTINCT FROM old.owner) OR (new.continuation_id IS DISTINCT FROM old.continuation_id) OR (new.title IS DISTINCT FROM old.title) OR (new.metadata IS DISTINCT FROM old.metadata) OR (new.tags IS DISTINCT FROM old.tags) OR (new.deleted_at IS DISTINCT FROM old.deleted_at) OR (new.expires_at IS DISTINCT FROM old.expires_at) OR (new.parent_id IS DISTINCT FROM old.parent_id) OR (new.parent_seq IS DISTINCT FROM old.parent_seq)))) EXECUTE FUNCTION exai.note_change_v1();
-- It fires always.

CREATE TRIGGER exai_note_removal AFTER DELETE ON public.conversations FOR EACH ROW EXECUTE FUNCTION exai.note_removal_v1();
-- It fires always.

CREATE TRIGGER exai_queue_new_title AFTER UPDATE OF title, owner ON public.conversations FOR EACH ROW WHEN (((old.title IS DISTINCT FROM new.title) OR (old.owner IS DISTINCT FROM new.owner))) EXECUTE FUNCTION exai.queue_title_v1();

CREATE TRIGGER exai_queue_title AFTER INSERT ON public.conversations FOR EACH ROW WHEN ((new.title IS NOT NULL)) EXECUTE FUNCTION exai.queue_title_v1();

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
    constraint files_sha256_check CHECK ((sha256 ~ '^[0-9a-f]{64}$'::text)),
    constraint files_size_check CHECK ((size_bytes >= 0))
);
alter table public.files enable row level security;

CREATE INDEX files_content_idx ON public.files USING btree (owner, sha256);

CREATE INDEX files_recent_idx ON public.files USING btree (owner, created_at DESC, id DESC);

CREATE INDEX files_storage_path_idx ON public.files USING btree (storage_path);

create table public.messages (
    conversation_id uuid not null,
    seq bigint not null,
    turn_id uuid,
    role text not null,
    kind text not null default 'message'::text,
    content text not null,
    message_key text,
    metadata jsonb not null default '{}'::jsonb,
    created_at timestamp with time zone not null default now(),
    constraint messages_pkey PRIMARY KEY (conversation_id, seq),
    constraint messages_conversation_fkey FOREIGN KEY (conversation_id) REFERENCES public.conversations(id) ON DELETE CASCADE,
    constraint messages_role_check CHECK ((role = ANY (ARRAY['system'::text, 'user'::text, 'assistant'::text, 'tool'::text]))),
    constraint messages_seq_check CHECK ((seq >= 1))
);
alter table public.messages enable row level security;

CREATE INDEX messages_created_idx ON public.messages USING btree (conversation_id, created_at DESC);

CREATE UNIQUE INDEX messages_key_idx ON public.messages USING btree (message_key, conversation_id) WHERE (message_key IS NOT NULL);

CREATE INDEX messages_system_idx ON public.messages USING btree (conversation_id, seq DESC) WHERE (role = 'system'::text);

CREATE TRIGGER exai_fix_number BEFORE UPDATE OF conversation_id, seq ON public.messages FOR EACH ROW WHEN (((old.seq IS NOT NULL) AND ((old.seq IS DISTINCT FROM new.seq) OR (old.conversation_id IS DISTINCT FROM new.conversation_id)))) EXECUTE FUNCTION exai.forbid_renumbering_v1();

CREATE TRIGGER exai_note_delete AFTER DELETE ON public.messages REFERENCING OLD TABLE AS changed FOR EACH STATEMENT EXECUTE FUNCTION exai.note_edit_v1();
-- It fires always.

CREATE TRIGGER exai_note_truncate AFTER TRUNCATE ON public.messages FOR EACH STATEMENT EXECUTE FUNCTION exai.note_truncation_v1();
-- It fires always.

CREATE TRIGGER exai_note_update AFTER UPDATE ON public.messages REFERENCING NEW TABLE AS changed FOR EACH STATEMENT EXECUTE FUNCTION exai.note_edit_v1();
-- It fires always.

CREATE TRIGGER exai_number BEFORE INSERT ON public.messages FOR EACH ROW WHEN ((new.turn_id IS NULL)) EXECUTE FUNCTION exai.number_message_v1();

CREATE TRIGGER exai_queue_delete AFTER DELETE ON public.messages REFERENCING OLD TABLE AS changed FOR EACH STATEMENT EXECUTE FUNCTION exai.queue_words_v1();

CREATE TRIGGER exai_queue_insert AFTER INSERT ON public.messages REFERENCING NEW TABLE AS changed FOR EACH STATEMENT EXECUTE FUNCTION exai.queue_words_v1();

CREATE TRIGGER exai_queue_truncate AFTER TRUNCATE ON public.messages FOR EACH STATEMENT EXECUTE FUNCTION exai.queue_words_v1();

CREATE TRIGGER exai_queue_update AFTER UPDATE ON public.messages FOR EACH ROW WHEN (((new.seq IS NOT NULL) AND ((old.content IS DISTINCT FROM new.content) OR (old.created_at IS DISTINCT FROM new.created_at) OR (old.seq IS NULL)))) EXECUTE FUNCTION exai.requeue_words_v1();

create table public.requests (
    id uuid not null default gen_random_uuid(),
    owner text not null default ((NULLIF(current_setting('request.jwt.claims'::text, true), ''::text))::jsonb ->> 'sub'::text),
    tool text not null,
    arguments jsonb not null default '{}'::jsonb,
    state text not null default 'queued'::text,
    progress text,
    partial text,
    answer text,
    result jsonb,
    error jsonb,
    continuation_id text,
    attempt integer not null default 0,
    claimed_by uuid,
    lease_until timestamp with time zone,
    not_before timestamp with time zone,
    deadline_at timestamp with time zone,
    created_at timestamp with time zone not null default now(),
    updated_at timestamp with time zone not null default now(),
    claimed_at timestamp with time zone,
    finished_at timestamp with time zone,
    read_at timestamp with time zone,
    constraint requests_pkey PRIMARY KEY (id),
    constraint requests_arguments_check CHECK (((jsonb_typeof(arguments) = 'object'::text) AND (octet_length((arguments)::text) <= 1048576))),
    constraint requests_end_check CHECK (((state = ANY (ARRAY['done'::text, 'failed'::text])) = (finished_at IS NOT NULL))),
    constraint requests_lease_check CHECK (((state <> 'running'::text) OR ((claimed_by IS NOT NULL) AND (lease_until IS NOT NULL)))),
    constraint requests_owner_check CHECK (((length(owner) >= 1) AND (length(owner) <= 200))),
    constraint requests_state_check CHECK ((state = ANY (ARRAY['queued'::text, 'running'::text, 'done'::text, 'failed'::text, 'cancelled'::text]))),
    constraint requests_tool_check CHECK (((length(tool) >= 1) AND (length(tool) <= 100)))
);
alter table public.requests enable row level security;

CREATE INDEX requests_aged_idx ON public.requests USING btree (created_at);

CREATE INDEX requests_queue_idx ON public.requests USING btree (owner, created_at, id) WHERE (state = 'queued'::text);

CREATE INDEX requests_read_idx ON public.requests USING btree (read_at) WHERE (read_at IS NOT NULL);

CREATE INDEX requests_recent_idx ON public.requests USING btree (owner, created_at DESC, id DESC);

CREATE INDEX requests_running_idx ON public.requests USING btree (owner) WHERE (state = 'running'::text);

CREATE TRIGGER exai_admit_requests AFTER INSERT ON public.requests REFERENCING NEW TABLE AS fresh FOR EACH STATEMENT EXECUTE FUNCTION exai.admit_requests_v1();

CREATE TRIGGER exai_note_request BEFORE UPDATE OF state, read_at ON public.requests FOR EACH ROW WHEN (((new.state IS DISTINCT FROM old.state) OR (new.read_at IS DISTINCT FROM old.read_at))) EXECUTE FUNCTION exai.note_request_v1();

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
    earlier_cost numeric,
    reserved numeric,
    reserved_prompt numeric,
    is_estimated boolean not null default false,
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

CREATE INDEX turns_asked_idx ON public.turns USING btree (owner, started_at) WHERE (model IS NOT NULL);

CREATE INDEX turns_conversation_idx ON public.turns USING btree (conversation_id);

CREATE INDEX turns_model_idx ON public.turns USING btree (owner, model, conversation_id) WHERE (model IS NOT NULL);

CREATE INDEX turns_pending_idx ON public.turns USING btree (conversation_id) WHERE (state = 'pending'::text);

CREATE INDEX turns_tool_idx ON public.turns USING btree (owner, tool, conversation_id) WHERE (tool <> 'conversation_append'::text);

CREATE OR REPLACE FUNCTION exai.admit_requests_v1()
 RETURNS trigger
 LANGUAGE plpgsql
 SET search_path TO 'pg_catalog', 'pg_temp'
AS $function$
declare
  c_most constant integer := 1000;
  v_owner text;
begin
  for v_owner in select distinct f.owner from fresh f loop
    if (select count(*) from (select from public.requests r where r.owner = v_owner and r.state = 'queued'
                               limit c_most + 1) q) > c_most then
      raise exception 'more than % requests are waiting', c_most
        using hint = 'Wait until some are answered, or cancel some.', errcode = '54000';
    end if;
  end loop;
  perform pg_notify('exai_requests', '');
  return null;
end
$function$
;

CREATE OR REPLACE FUNCTION exai.announce_change_v1()
 RETURNS trigger
 LANGUAGE plpgsql
 SECURITY DEFINER
 SET search_path TO 'pg_catalog', 'pg_temp'
 SET lock_timeout TO '50ms'
AS $function$
begin
  perform realtime.send(
    jsonb_build_object('continuation_id', new.continuation_id, 'revision', new.revision), 'changed',
    'exai:' || new.owner, true);
  return null;
exception when others then
  return null;
end
$function$
;

CREATE OR REPLACE FUNCTION exai.announce_v1(p_on boolean DEFAULT true)
 RETURNS text[]
 LANGUAGE plpgsql
 SET search_path TO 'pg_catalog', 'pg_temp'
 SET lock_timeout TO '4s'
AS $function$
declare
  c_published constant text[] := array['conversations', 'messages', 'requests'];
  v_is_open constant boolean := coalesce(has_schema_privilege(to_regnamespace('realtime')::oid, 'usage'), false);
  v_has_send constant boolean := case when v_is_open
    then to_regprocedure('realtime.send(jsonb,text,text,boolean)') is not null else false end;
  v_has_topic constant boolean := case when v_is_open
    then to_regprocedure('realtime.topic()') is not null and to_regclass('realtime.messages') is not null
         and to_regrole('authenticated') is not null
    else false end;
  v_done text[] := '{}';
  v_table text;
begin
  begin
    for v_table in
      select t from unnest(c_published) t
        join pg_publication p on p.pubname = 'supabase_realtime' and not p.puballtables
       where p_on <> exists (select from pg_publication_tables x
                              where (x.pubname, x.schemaname, x.tablename) = ('supabase_realtime', 'public', t))
    loop
      execute format('alter publication supabase_realtime %s table public.%I',
                     case when p_on then 'add' else 'drop' end, v_table);
    end loop;
    if p_on and exists (select from pg_publication p where p.pubname = 'supabase_realtime') then
      v_done := v_done || 'publication supabase_realtime'::text;
    end if;
  exception when insufficient_privilege then
    raise warning 'the publication supabase_realtime belongs to another role: %', sqlerrm;
  end;

  if p_on and v_has_send then
    if not exists (select from pg_trigger g where g.tgrelid = 'public.conversations'::regclass
                      and g.tgname = 'exai_announce') then
      create trigger exai_announce after insert on public.conversations for each row
        execute function exai.announce_change_v1();
      create trigger exai_announce_change after update on public.conversations for each row
        when (new.revision is distinct from old.revision)
        execute function exai.announce_change_v1();
    end if;
    v_done := v_done || 'broadcast'::text;
  else
    drop trigger if exists exai_announce on public.conversations;
    drop trigger if exists exai_announce_change on public.conversations;
  end if;

  begin
    if v_has_topic then
      drop policy if exists exai_own on realtime.messages;
      if p_on then
        create policy exai_own on realtime.messages for select to authenticated
          using ((select realtime.topic()) = 'exai:' || (
            select nullif(nullif((select current_setting('request.jwt.claims', true)), '')::jsonb ->> 'sub', 'local')));
        v_done := v_done || 'topic exai:<owner>'::text;
      end if;
    end if;
  exception when insufficient_privilege then
    raise warning 'a policy on realtime.messages cannot be made by this role: %', sqlerrm;
  end;
  return v_done;
end
$function$
;

CREATE OR REPLACE FUNCTION exai.append_batch_v1(p_owners text[], p_names text[], p_new_ids uuid[], p_turn_ids uuid[], p_keys text[], p_hashes text[], p_tools text[], p_titles text[], p_expected bigint[], p_counts bigint[], p_of integer[], p_places bigint[], p_roles text[], p_contents text[], p_kinds text[], p_metadata text[], p_file_of integer[], p_files uuid[])
 RETURNS TABLE(number integer, base_revision bigint, first_seq bigint, created_at timestamp with time zone, header text, server_epoch text)
 LANGUAGE plpgsql
 ROWS 16
 SET search_path TO '$user', 'public', 'extensions', 'pg_temp'
 SET lock_timeout TO '2s'
 SET plan_cache_mode TO 'force_generic_plan'
 SET enable_seqscan TO 'off'
 SET enable_hashjoin TO 'off'
 SET enable_mergejoin TO 'off'
AS $function$
#variable_conflict use_column
declare
  v_lacking integer[] := '{}';
  v_numbers integer[];
  v_ids uuid[];
  v_nexts bigint[];
  v_bases bigint[];
  v_times timestamptz[];
begin
  if pg_catalog.cardinality(p_files) > 0 then
    v_lacking := array(
      select w.number from unnest(p_file_of, p_files) w(number, id)
       where not exists (select from public.files f where f.id = w.id and f.owner = p_owners[w.number]));
  end if;
  -- A separate statement, so that the snapshot of the next one is newer than every lock, as in store_turn_v1.
  select pg_catalog.array_agg(l.number), pg_catalog.array_agg(l.id), pg_catalog.array_agg(l.next_seq), pg_catalog.array_agg(l.revision),
         pg_catalog.array_agg(pg_catalog.clock_timestamp())
    into v_numbers, v_ids, v_nexts, v_bases, v_times
    from (select a.number::integer as number, c.id, c.next_seq, c.revision
            from unnest(p_owners, p_names, p_expected) with ordinality a(owner, name, expected, number)
            join public.conversations c on c.owner = a.owner and c.continuation_id = a.name
           where c.deleted_at is null and (a.expected is null or a.expected = c.revision)
             for no key update of c skip locked) l;
  with ready as (
    select l.number, l.id, l.next_seq, l.base, l.at
      from unnest(v_numbers, v_ids, v_nexts, v_bases, v_times) l(number, id, next_seq, base, at)
     where l.number <> all(v_lacking)
    union all
    select a.number::integer, a.id, 1, 0, pg_catalog.clock_timestamp()
      from unnest(p_names, p_new_ids) with ordinality a(name, id, number)
     where a.name is null and a.number <> all(v_lacking)),
  t as (
    insert into public.turns (id, conversation_id, owner, request_key, request_hash, tool, state, claimed_by,
                              lease_until, first_seq, last_seq, revision, started_at, finished_at)
    select p_turn_ids[r.number], r.id, p_owners[r.number], p_keys[r.number], p_hashes[r.number], p_tools[r.number],
           'finished', p_turn_ids[r.number], r.at, r.next_seq, r.next_seq + p_counts[r.number] - 1, r.base + 1, r.at, r.at
      from ready r
     order by p_keys[r.number], p_owners[r.number]
    on conflict do nothing
    returning conversation_id as id),
  claimed as (
    select r.number, r.id, r.next_seq, r.base, r.at from t join ready r on r.id = t.id),
  made as (
    insert into public.conversations (id, owner, continuation_id, title, next_seq, revision, created_at, updated_at)
    select c.id, p_owners[c.number], c.id::text, p_titles[c.number], 1 + p_counts[c.number], 1, c.at, c.at
      from claimed c
     where p_names[c.number] is null),
  grown as (
    update public.conversations v
       set next_seq = c.next_seq + p_counts[c.number], revision = c.base + 1, changed_xid = pg_catalog.pg_current_xact_id(),
           updated_at = c.at
      from claimed c
     where v.id = c.id and p_names[c.number] is not null),
  m as (
    insert into public.messages (conversation_id, seq, turn_id, role, kind, content, metadata, created_at)
    select c.id, c.next_seq + u.place, p_turn_ids[c.number], u.role, u.kind,
           case when pg_catalog.starts_with(u.content, E'\x01$exai1$')
             then exai.place_v1(u.content, c.id, c.next_seq + u.place) else u.content end,
           coalesce(u.metadata::jsonb, '{}'), c.at
      from claimed c
      join unnest(p_of, p_places, p_roles, p_kinds, p_contents, p_metadata)
           u(number, place, role, kind, content, metadata) on u.number = c.number),
  f as (
    insert into public.conversation_files (conversation_id, file_id)
    select c.id, w.id from claimed c join unnest(p_file_of, p_files) w(number, id) on w.number = c.number order by 2
    on conflict do nothing)
  select pg_catalog.array_agg(c.number), pg_catalog.array_agg(c.id), pg_catalog.array_agg(c.next_seq), pg_catalog.array_agg(c.base), pg_catalog.array_agg(c.at)
    into v_numbers, v_ids, v_nexts, v_bases, v_times
    from claimed c;
  -- Again a separate statement: triggers of other programs on messages may change the conversations after it.
  return query
  select c.number, c.base, c.next_seq, c.at, exai.live_header_v1(v)::text, exai.server_epoch_v1()::text
    from unnest(v_numbers, v_ids, v_nexts, v_bases, v_times) c(number, id, next_seq, base, at)
    join public.conversations v on v.id = c.id;
end
$function$
;

CREATE OR REPLACE FUNCTION exai.append_v1(p_owner text, p_continuation_id text, p_new_id uuid, p_turn_id uuid, p_key text, p_hash text, p_tool text, p_title text, p_roles text[], p_contents text[], p_kinds text[], p_metadata text[], p_files text[], p_expected bigint, p_keys text[], p_times text[], p_header jsonb)
 RETURNS TABLE(part text, seq bigint, role text, content text, created_at timestamp with time zone, kind text, turn_id text, data text)
 LANGUAGE plpgsql
 ROWS 1
 SET search_path TO '$user', 'public', 'extensions', 'pg_temp'
 SET lock_timeout TO '2s'
AS $function$
#variable_conflict use_column
declare
  v_also constant jsonb := p_header -> 'also'::text;
  s record;
  v public.conversations;
  t public.turns;
begin
  s := exai.store_turn_v1(p_owner, p_continuation_id, p_new_id, p_turn_id, p_key, p_hash, p_tool, p_title, 'finished',
                          0, null, null, p_roles, p_contents, p_kinds, p_metadata, p_files, p_expected,
                          p_keys, p_times, p_header);
  if s.o_conversation_id is not null then
    select c.* into v from public.conversations c where c.id = s.o_conversation_id;
  end if;
  if s.o_status = 'old' then
    select x.* into t from public.turns x where x.id = s.o_turn_id;
    return query select 'head', null::bigint, null, null, null::timestamptz, null, null, pg_catalog.json_build_object(
      'status', case when v.deleted_at is not null then 'deleted' when t.id = p_turn_id then 'appended'
                     else 'duplicate' end, 'turn_id', t.id,
      'base_revision', t.revision - case when t.first_seq is null then 0 else 1 end, 'revision', t.revision,
      'seqs', t.metadata -> 'seqs'::text, 'first_seq', t.first_seq, 'last_seq', t.last_seq,
      'records', case when v_also is not null then exai.patch_records_v1(p_owner, v_also, false) end,
      'server_epoch', exai.server_epoch_v1(), 'conversation', exai.live_header_v1(v))::text;
    return query
      select 'stored', m.seq, m.role, m.content, m.created_at, m.kind, m.turn_id::text, nullif(m.metadata, '{}')::text
        from public.messages m
       where m.conversation_id = t.conversation_id and m.seq between t.first_seq and t.last_seq and m.turn_id = t.id
       order by m.seq;
    return;
  end if;
  return query select 'head', null::bigint, null, null, s.o_now, null, null, pg_catalog.json_build_object(
    'status', case s.o_status when 'new' then 'appended' else s.o_status end, 'turn_id', s.o_turn_id,
    'base_revision', s.o_base, 'revision', s.o_revision, 'first_seq', s.o_first, 'last_seq', s.o_last,
    'server_epoch', exai.server_epoch_v1(), 'detail', s.o_detail, 'seqs', s.o_seqs, 'made', s.o_made,
    'records', case when v_also is not null and s.o_status = 'new' then exai.patch_records_v1(p_owner, v_also, true) end,
    'conversation', case when v.id is not null then exai.live_header_v1(v) end)::text;
end
$function$
;

CREATE OR REPLACE FUNCTION exai.begin_turn_v1(p_owner text, p_continuation_id text, p_new_id uuid, p_turn_id uuid, p_key text, p_hash text, p_tool text, p_title text, p_lease_s double precision, p_provider text, p_model text, p_roles text[], p_contents text[], p_kinds text[], p_metadata text[], p_files text[], p_expected bigint, p_budget bigint, p_known_revision bigint, p_known_low bigint, p_known_high bigint, p_known_size bigint, p_claim text)
 RETURNS TABLE(part text, seq bigint, role text, content text, created_at timestamp with time zone, kind text, turn_id text, data text)
 LANGUAGE plpgsql
 ROWS 10
 SET search_path TO '$user', 'public', 'extensions', 'pg_temp'
 SET lock_timeout TO '2s'
AS $function$
#variable_conflict use_column
declare
  c_max_depth constant integer := 64;
  c_message_overhead constant integer := 16;
  c_batch constant integer := 50;
  c_metadata_bytes constant bigint := 16777216;
  v_count constant bigint := pg_catalog.cardinality(p_roles);
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
  v_metadata bigint := c_metadata_bytes;
  v_found integer;
begin
  s := exai.store_turn_v1(p_owner, p_continuation_id, p_new_id, p_turn_id, p_key, p_hash, p_tool, p_title, 'pending',
                          p_lease_s, p_provider, p_model, p_roles, p_contents, p_kinds, p_metadata, p_files, p_expected,
                          null, null, null);
  v_status := case s.o_status when 'new' then 'started' when 'deleted' then 'not_found' else s.o_status end;
  if s.o_detail = 'cut' and s.o_status = 'old' then
    -- The question was cut off by a rewind, so it is not asked again; an answer that it had is given again.
    select x.* into t from public.turns x where x.id = s.o_turn_id;
    v_status := case t.state when 'finished' then 'finished' else 'cut' end;
  elsif s.o_status = 'old' then
    -- Conversations are always locked before turns; a new one was not locked by the claim.
    perform 1 from public.conversations c where c.id = s.o_conversation_id for no key update;
    update public.turns x
       set state = 'pending', attempt = x.attempt + 1, claimed_by = p_turn_id, finished_at = null,
           lease_until = pg_catalog.clock_timestamp() + pg_catalog.make_interval(secs => p_lease_s),
           provider = p_provider, model = p_model, cost = null, reserved = null, reserved_prompt = null,
           is_estimated = x.is_estimated or (x.cost is null and x.reserved is not null),
           earlier_cost = coalesce(x.earlier_cost, 0) + coalesce(x.cost, x.reserved_prompt, 0)
     where x.id = s.o_turn_id
       and ((x.state = 'failed' and (x.claimed_by <> p_turn_id or x.first_seq is not null or v_count = 0))
            or (x.state = 'pending' and x.claimed_by <> p_turn_id and x.lease_until <= pg_catalog.clock_timestamp()));
    select x.* into t from public.turns x where x.id = s.o_turn_id;
    -- The same claimant again lost the first reply, and receives it again with everything it may lack; or it began the
    -- turn without its question, which it has now.
    v_status := case when t.state = 'finished' then 'finished'
                     when t.claimed_by <> p_turn_id then 'pending'
                     when t.state = 'failed' then 'ended'
                     when t.attempt = 1 then 'started'
                     else 'resumed' end;
  end if;
  if s.o_conversation_id is not null and v_status <> 'not_found' then
    select c.* into v from public.conversations c where c.id = s.o_conversation_id;
    if v.deleted_at is not null then
      v_status := 'not_found';
    end if;
  end if;

  if v_status in ('started', 'resumed') and t.first_seq is null and t.id is not null and v_count > 0 then
    update public.turns x
       set first_seq = v.next_seq, last_seq = v.next_seq + v_count - 1, revision = v.revision + 1,
           provider = p_provider, model = p_model
     where x.id = t.id
    returning x.* into t;
    v.next_seq := v.next_seq + v_count;
    v.revision := v.revision + 1;
    v.updated_at := pg_catalog.clock_timestamp();
    with c as (
      update public.conversations c
         set next_seq = v.next_seq, revision = v.revision, changed_xid = pg_catalog.pg_current_xact_id(),
             updated_at = v.updated_at
       where c.id = v.id),
    f as (
      insert into public.conversation_files (conversation_id, file_id)
      select v.id, f.id from public.files f where f.owner = p_owner and f.id = any(p_files::uuid[]) order by 2
      on conflict do nothing)
    insert into public.messages (conversation_id, seq, turn_id, role, kind, content, metadata, created_at)
    select v.id, t.first_seq + u.ord - 1, t.id, u.role, u.kind,
           case when pg_catalog.starts_with(u.content, E'\x01$exai1$')
             then exai.place_v1(u.content, v.id, t.first_seq + u.ord - 1) else u.content end, coalesce(u.metadata::jsonb, '{}'), v.updated_at
      from unnest(p_roles, p_kinds, p_contents, p_metadata) with ordinality u(role, kind, content, metadata, ord);
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
          v_left := v_left - pg_catalog.octet_length(m.content) - c_message_overhead;
          if v_left < 0 then
            -- The messages in the caller's cache would not be adjacent to the newer ones, so they are not used.
            v_full := v_full or v_floor > 0;
            exit walk;
          end if;
          part := 'message'; seq := m.seq; role := m.role; content := m.content; created_at := m.created_at;
          kind := m.kind; turn_id := m.turn_id; data := nullif(m.metadata, '{}');
          v_metadata := v_metadata - coalesce(pg_catalog.octet_length(data), 0);
          if v_metadata < 0 then
            v_full := v_full or v_floor > 0;
            exit walk;
          end if;
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

  if p_claim is not null and v_status in ('started', 'resumed') and t.reserved is null then
    perform exai.reserve_v1(p_owner, coalesce(t.id, s.o_turn_id), v.id, p_claim::jsonb, p_budget - v_left, p_budget);
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
         and x.turn_id = t.id
       order by x.seq;
  end if;

  return query select 'head', null::bigint, null, null, s.o_now, null, null, pg_catalog.json_build_object(
    'status', v_status, 'turn_id', coalesce(t.id, s.o_turn_id), 'attempt', coalesce(t.attempt, 1),
    'base_revision', case when s.o_status = 'new' then s.o_base when v_status = 'started' then t.revision - 1
                          else v.revision end,
    'revision', case when s.o_status <> 'new' and v_status = 'started' then t.revision
                     else coalesce(v.revision, s.o_revision) end,
    'first_seq', coalesce(t.first_seq, s.o_first), 'last_seq', coalesce(t.last_seq, s.o_last),
    'full', coalesce(v_full, true), 'server_epoch', exai.server_epoch_v1(), 'detail', s.o_detail,
    'conversation', case when v.id is not null then exai.live_header_v1(v) end,
    'turn', case when t.id is not null then exai.turn_v1(t) end)::text;
end
$function$
;

CREATE OR REPLACE FUNCTION exai.blob_size_v1(p_id uuid)
 RETURNS bigint
 LANGUAGE sql
 STABLE
 SET search_path TO 'pg_catalog', 'pg_temp'
AS $function$
select coalesce((select sum(octet_length(p.data)) from exai.blob_parts p where p.blob_id = b.id), 0)::bigint
  from exai.blobs b where b.id = p_id
$function$
;

CREATE OR REPLACE FUNCTION exai.budgets_v1(p_owner text, p_conversation_id uuid, p_limits jsonb, p_now timestamp with time zone)
 RETURNS TABLE(o_name text, o_limit numeric, o_spent numeric, o_reserved numeric, o_resets_at timestamp with time zone)
 LANGUAGE sql
 STABLE ROWS 3
 SET search_path TO 'pg_catalog', 'pg_temp'
AS $function$
  select w.name, w.most, coalesce(s.spent, 0), coalesce(s.reserved, 0), w.resets_at
    from (values ('conversation', (p_limits ->> 'conversation_usd')::numeric, null::timestamptz, null::timestamptz),
                 ('day', (p_limits ->> 'day_usd')::numeric, date_trunc('day', p_now, 'UTC'),
                  (date_trunc('day', p_now at time zone 'UTC') + interval '1 day') at time zone 'UTC'),
                 ('month', (p_limits ->> 'month_usd')::numeric, date_trunc('month', p_now, 'UTC'),
                  (date_trunc('month', p_now at time zone 'UTC') + interval '1 month') at time zone 'UTC'))
         w(name, most, since, resets_at)
    left join lateral (
      select sum(coalesce(b.earlier_cost, 0)
                 + coalesce(b.cost, case when b.lease_until <= p_now then b.reserved_prompt end, 0)) as spent,
             sum(b.reserved) filter (where b.cost is null and b.lease_until > p_now) as reserved
        from (select t.earlier_cost, t.cost, t.reserved, t.reserved_prompt, t.lease_until
                from public.turns t
               where w.since is null and t.conversation_id = p_conversation_id
              union all
              select t.earlier_cost, t.cost, t.reserved, t.reserved_prompt, t.lease_until
                from public.conversations c
                join public.turns t on t.conversation_id = c.id
               where w.since is null and c.owner = p_owner and p_conversation_id = any(c.cut_from)
                 and c.former_name = (select x.continuation_id from public.conversations x where x.id = p_conversation_id)
              union all
              select t.earlier_cost, t.cost, t.reserved, t.reserved_prompt, t.lease_until
                from public.turns t
               where t.owner = p_owner and t.model is not null and t.started_at >= w.since
              union all
              select null, p.cost, null, null, null
                from exai.purged_turns p
               where p.owner = p_owner and p.started_at >= w.since) b) s on true
   where w.most is not null and (w.since is not null or p_conversation_id is not null)
$function$
;

CREATE OR REPLACE FUNCTION exai.change_conversation_v1(p_owner text, p_continuation_id text, p_turn_id uuid, p_key text, p_hash text, p_tool text, p_change jsonb, p_expected bigint)
 RETURNS TABLE(part text, data text)
 LANGUAGE plpgsql
 ROWS 1
 SET search_path TO '$user', 'public', 'extensions', 'pg_temp'
 SET lock_timeout TO '2s'
AS $function$
#variable_conflict use_column
declare
  v public.conversations;
  n public.conversations;
  t public.turns;
  v_now timestamptz;
  v_status text;
  v_detail text;
begin
  select c.* into v from public.conversations c
   where c.owner = p_owner and c.continuation_id = p_continuation_id
     for no key update;
  if v.id is not null then
    select x.* into t from public.turns x where x.owner = p_owner and x.request_key = p_key;
  end if;
  if t.id is not null then
    -- The same turn id again comes from the same caller, which lost the reply.
    v_status := case
      when t.request_hash <> p_hash or t.conversation_id <> v.id then 'conflict_key'
      when t.id = p_turn_id then 'changed'
      else 'duplicate' end;
    return query select 'head', pg_catalog.json_build_object(
      'status', v_status, 'base_revision', case v_status when 'changed' then t.revision - 1 else v.revision end,
      'revision', v.revision, 'server_epoch', exai.server_epoch_v1(),
      'conversation', case when v_status <> 'conflict_key' then t.metadata -> 'conversation'::text end)::text;
    return;
  end if;
  if v.id is null or (v.deleted_at is not null and not p_change ? 'deleted'::text) then
    return query select 'head', pg_catalog.json_build_object('status', 'not_found', 'server_epoch', exai.server_epoch_v1())::text;
    return;
  end if;
  if v.deleted_at is null and p_change ->> 'deleted'::text = 'false' then
    select c.continuation_id into v_detail from public.conversations c
     where c.owner = p_owner and c.former_name = p_continuation_id and c.cut_from is null and c.deleted_at is not null
     order by c.deleted_at desc
     limit 1;
    if found then
      return query select 'head', pg_catalog.json_build_object(
        'status', 'name_taken', 'detail', v_detail, 'server_epoch', exai.server_epoch_v1())::text;
      return;
    end if;
  end if;
  n := v;
  v_now := pg_catalog.clock_timestamp();
  if p_change ? 'title'::text then
    n.title := p_change ->> 'title'::text;
  end if;
  if p_change ? 'metadata'::text then
    n.metadata := p_change -> 'metadata'::text;
  end if;
  if p_change ? 'tags'::text then
    n.tags := array(select pg_catalog.jsonb_array_elements_text(p_change -> 'tags'::text));
  end if;
  if p_change ? 'expires_at'::text then
    n.expires_at := (p_change ->> 'expires_at'::text)::timestamptz;
  end if;
  if p_change ? 'deleted'::text then
    n.deleted_at := case when (p_change ->> 'deleted'::text)::boolean then coalesce(v.deleted_at, v_now) end;
  end if;
  v_status := case
    when n operator(pg_catalog.=) v then 'unchanged'
    when p_expected is not null and p_expected <> v.revision then 'conflict_revision'
    else 'changed' end;
  if v_status = 'changed' then
    n.revision := v.revision + 1;
    n.edited_revision := v.revision + 1;
    n.updated_at := v_now;
  elsif v_status = 'conflict_revision' then
    n := v;
  end if;
  if v_status <> 'conflict_revision' then
    insert into public.turns (id, conversation_id, owner, request_key, request_hash, tool, state, claimed_by, lease_until,
                              revision, metadata, finished_at)
    values (p_turn_id, v.id, p_owner, p_key, p_hash, p_tool, 'finished', p_turn_id, v_now, n.revision,
            pg_catalog.jsonb_build_object('conversation', exai.header_v1(n)), v_now)
    on conflict do nothing;
    if not found then
      -- A concurrent request has used the key for another conversation.
      v_status := 'conflict_key';
      n := v;
    end if;
  end if;
  if v_status = 'changed' then
    update public.conversations c
       set title = n.title, metadata = n.metadata, tags = n.tags, deleted_at = n.deleted_at,
           expires_at = n.expires_at, revision = n.revision, edited_revision = n.edited_revision, changed_xid = pg_catalog.pg_current_xact_id(), updated_at = n.updated_at
     where c.id = v.id;
  end if;
  return query select 'head', pg_catalog.json_build_object(
    'status', v_status, 'base_revision', v.revision, 'revision', n.revision, 'server_epoch', exai.server_epoch_v1(),
    'conversation', case when v_status <> 'conflict_key' then exai.header_v1(n) end)::text;
end
$function$
;

CREATE OR REPLACE FUNCTION exai.change_thread_v1(p_owner text, p_thread_id text, p_ttl_s double precision, OUT thread exai.checkpoint_threads, OUT is_new boolean)
 RETURNS record
 LANGUAGE plpgsql
 SET search_path TO 'pg_catalog', 'pg_temp'
 SET lock_timeout TO '2s'
AS $function$
declare
  v_found exai.checkpoint_threads;
begin
  loop
    select t.* into v_found
      from exai.checkpoint_threads t
     where t.owner = p_owner and t.thread_id = p_thread_id
       for update;
    exit when found;
    -- Purged between the two statements, or made by another call.
    insert into exai.checkpoint_threads as t (owner, thread_id) values (p_owner, p_thread_id)
    on conflict on constraint checkpoint_threads_owner_thread_key do nothing
    returning t.* into v_found;
    exit when found;
  end loop;
  is_new := v_found.revision = 0 or v_found.deleted_at is not null
            or coalesce(v_found.expires_at <= clock_timestamp(), false);
  if is_new and v_found.revision > 0 then
    perform exai.clear_threads_v1(array[v_found.id]);
    v_found.copied_from := '{}';
    v_found.ttl_s := null;
  end if;
  update exai.checkpoint_threads t
     set revision = t.revision + 1, changed_xid = pg_current_xact_id(), deleted_at = null,
         updated_at = clock_timestamp(), copied_from = v_found.copied_from, ttl_s = coalesce(p_ttl_s, v_found.ttl_s),
         expires_at = clock_timestamp() + make_interval(secs => coalesce(p_ttl_s, v_found.ttl_s))
   where t.id = v_found.id
  returning t.* into thread;
end
$function$
;

CREATE OR REPLACE FUNCTION exai.check_patches_v1(p_owner text, p_metadata jsonb, p_revision bigint, p_header jsonb, OUT o_status text, OUT o_name text, OUT o_revision bigint)
 RETURNS record
 LANGUAGE plpgsql
 SET search_path TO '$user', 'public', 'extensions', 'pg_temp'
AS $function$
declare
  v_patch constant jsonb := p_header -> 'patch'::text;
  v_most constant bigint := (p_header ->> 'most'::text)::bigint;
  a record;
  v public.conversations;
begin
  if v_patch is not null then
    o_status := case
      when (v_patch ->> 'base'::text)::bigint <> p_revision then 'moved'
      when pg_catalog.octet_length(exai.patch_metadata_v1(p_metadata, v_patch)::text) > v_most then 'too_large' end;
  end if;
  if o_status is not null or p_header -> 'also'::text is null then
    return;
  end if;
  for a in
    select x.value ->> 'name'::text as name, (x.value ->> 'expected'::text)::bigint as expected,
           (x.value ->> 'base'::text)::bigint as base, x.value as patch
      from pg_catalog.jsonb_array_elements(p_header -> 'also'::text) x(value)
     order by 1
  loop
    select c.* into v from public.conversations c
     where c.owner = p_owner and c.continuation_id = a.name and c.deleted_at is null
       for no key update;
    o_name := a.name;
    o_revision := coalesce(v.revision, 0);
    o_status := case
      when a.expected <> o_revision then 'conflict_revision'
      when a.base <> o_revision then 'moved'
      when pg_catalog.octet_length(exai.patch_metadata_v1(coalesce(v.metadata, '{}'), a.patch)::text) > v_most then 'too_large' end;
    if o_status is not null then
      return;
    end if;
  end loop;
  o_name := null;
  o_revision := null;
end
$function$
;

CREATE OR REPLACE FUNCTION exai.claim_name_v1(p_owner text, p_name text, p_new_id uuid, p_header jsonb)
 RETURNS public.conversations
 LANGUAGE plpgsql
 SET search_path TO '$user', 'public', 'extensions', 'pg_temp'
AS $function$
declare
  c_lock constant bigint := 1702388074;
  c_kept_chars constant integer := 460;
  v public.conversations;
  v_base bigint := 0;
  v_kept text;
  v_now timestamptz;
begin
  select c.* into v from public.conversations c
   where c.owner = p_owner and c.continuation_id = p_name and c.deleted_at is null
     for no key update;
  if found then
    return v;
  end if;
  perform pg_catalog.pg_advisory_xact_lock(pg_catalog.hashtextextended(p_owner || E'\n' || p_name, c_lock));
  select c.* into v from public.conversations c
   where c.owner = p_owner and c.continuation_id = p_name
     for no key update;
  if found and v.deleted_at is null then
    return v;
  end if;
  v_now := pg_catalog.clock_timestamp();
  if found then
    v_kept := pg_catalog.left(p_name, c_kept_chars) || '~' || v.id;
    if exists (select from public.conversations c where c.owner = p_owner and c.continuation_id = v_kept) then
      v_kept := pg_catalog.left(p_name, c_kept_chars) || '~' || p_new_id;
    end if;
    update public.conversations c
       set continuation_id = v_kept, former_name = p_name,
           revision = v.revision + 1, edited_revision = v.revision + 1, changed_xid = pg_catalog.pg_current_xact_id()
     where c.id = v.id;
    v_base := v.revision + 1;
  else
    select coalesce(pg_catalog.max(r.revision) + 1, 0) into v_base
      from exai.removed_conversations r
     where r.owner = p_owner and r.continuation_id = p_name;
  end if;
  insert into public.conversations as c (id, owner, continuation_id, title, metadata, tags, revision, edited_revision,
                                         created_at, updated_at)
  values (p_new_id, p_owner, p_name, p_header ->> 'title'::text, coalesce(p_header -> 'metadata'::text, '{}'),
          array(select pg_catalog.jsonb_array_elements_text(coalesce(p_header -> 'tags'::text, '[]'))), v_base, v_base,
          coalesce((p_header ->> 'created_at'::text)::timestamptz, v_now),
          least((p_header ->> 'updated_at'::text)::timestamptz, v_now))
  returning c.* into v;
  return v;
end
$function$
;

CREATE OR REPLACE FUNCTION exai.clamp_updated_at_v1()
 RETURNS trigger
 LANGUAGE plpgsql
 SECURITY DEFINER
 SET search_path TO 'pg_catalog', 'pg_temp'
AS $function$
begin
  new.updated_at := clock_timestamp();
  return new;
end
$function$
;

CREATE OR REPLACE FUNCTION exai.clear_threads_v1(p_threads uuid[])
 RETURNS void
 LANGUAGE plpgsql
 SET search_path TO 'pg_catalog', 'pg_temp'
AS $function$
begin
  delete from exai.checkpoint_writes w where w.thread = any(p_threads);
  delete from exai.checkpoint_blobs b where b.thread = any(p_threads);
  delete from exai.checkpoints c where c.thread = any(p_threads);
end
$function$
;

CREATE OR REPLACE FUNCTION exai.combine_terms_v1(p_terms tsquery[], p_level integer, p_most integer)
 RETURNS tsquery
 LANGUAGE plpgsql
 IMMUTABLE
 SET search_path TO 'pg_catalog', 'pg_temp'
AS $function$
declare
  v_number numeric := 1;
begin
  for i in 1 .. p_level loop
    v_number := v_number * (cardinality(p_terms) - p_level + i) / i;
  end loop;
  if v_number > p_most and p_level > 1 then
    return null;
  end if;
  return (
    with recursive chosen(last, number, term) as (
      select i, 1, '(' || p_terms[i]::text || ')' from generate_subscripts(p_terms, 1) i
       union all
      select i, c.number + 1, c.term || ' & (' || p_terms[i]::text || ')'
        from chosen c
       cross join generate_series(c.last + 1, cardinality(p_terms)) i
       where c.number < p_level)
    select string_agg('(' || c.term || ')', ' | ')::tsquery from chosen c where c.number = p_level);
end
$function$
;

CREATE OR REPLACE FUNCTION exai.copy_thread_v1(p_owner text, p_source text, p_target text)
 RETURNS TABLE(head text, is_taken boolean)
 LANGUAGE plpgsql
 ROWS 1
 SET search_path TO 'pg_catalog', 'pg_temp'
 SET lock_timeout TO '2s'
AS $function$
declare
  v_source exai.checkpoint_threads;
  v_target exai.checkpoint_threads;
begin
  -- In one order, so that two calls cannot wait for each other.
  perform from exai.checkpoint_threads t
    where t.owner = p_owner and t.thread_id = any(array[p_source, p_target]) order by t.id for update;
  select t.* into v_source
    from exai.checkpoint_threads t
   where t.owner = p_owner and t.thread_id = p_source and t.deleted_at is null
     and (t.expires_at is null or t.expires_at > clock_timestamp())
     and exists (select from exai.checkpoints c where c.thread = t.id);
  if not found or p_source = p_target then
    return;
  end if;
  select t.* into v_target
    from exai.checkpoint_threads t
   where t.owner = p_owner and t.thread_id = p_target and t.deleted_at is null
     and (t.expires_at is null or t.expires_at > clock_timestamp());
  if exists (select from exai.checkpoints c
              where c.thread = v_target.id
                and not exists (select from exai.checkpoints s where s.thread = v_source.id and s.namespace = c.namespace
                                                                 and s.checkpoint_id = c.checkpoint_id)) then
    return query select exai.thread_head_v1(v_target), true;
    return;
  end if;
  v_target := (select c.thread from exai.change_thread_v1(p_owner, p_target, v_source.ttl_s) c);
  insert into exai.checkpoints as c (
    thread, namespace, checkpoint_id, owner, parent_id, run_id, body_type, body, metadata_type, metadata, facts, versions,
    delta_channels, key_name, bound_to, created_at)
  select v_target.id, s.namespace, s.checkpoint_id, s.owner, s.parent_id, s.run_id, s.body_type, s.body, s.metadata_type,
         s.metadata, s.facts, s.versions, s.delta_channels, s.key_name, coalesce(s.bound_to, p_source), s.created_at
    from exai.checkpoints s
   where s.thread = v_source.id
  on conflict on constraint checkpoints_pkey do nothing;
  insert into exai.checkpoint_blobs as b (
    thread, namespace, channel, version, value_type, value, key_name, bound_to, created_at)
  select v_target.id, s.namespace, s.channel, s.version, s.value_type, s.value, s.key_name,
         coalesce(s.bound_to, p_source), s.created_at
    from exai.checkpoint_blobs s
   where s.thread = v_source.id
  on conflict on constraint checkpoint_blobs_pkey do nothing;
  insert into exai.checkpoint_writes as w (
    thread, namespace, checkpoint_id, task_id, place, task_path, channel, value_type, value, key_name, bound_to, created_at)
  select v_target.id, s.namespace, s.checkpoint_id, s.task_id, s.place, s.task_path, s.channel, s.value_type, s.value,
         s.key_name, coalesce(s.bound_to, p_source), s.created_at
    from exai.checkpoint_writes s
   where s.thread = v_source.id
  on conflict on constraint checkpoint_writes_pkey do nothing;
  update exai.checkpoint_threads t
     set copied_from = array(select distinct f.name from unnest(t.copied_from || v_source.copied_from || p_source) f(name)
                              where f.name <> p_target order by 1)
   where t.id = v_target.id
  returning t.* into v_target;
  return query select exai.thread_head_v1(v_target), false;
end
$function$
;

CREATE OR REPLACE FUNCTION exai.count_steps_v1(p_owner text, p_key text)
 RETURNS bigint
 LANGUAGE plpgsql
 SET search_path TO 'pg_catalog', 'pg_temp'
AS $function$
declare
  c_max_depth constant integer := 64;
  t public.turns;
begin
  select x.* into t from public.turns x where x.owner = p_owner and x.request_key = p_key;
  if t.id is null then
    return null;
  end if;
  return (
    with recursive line(id, parent_id, parent_seq, last_seq, depth) as (
      select c.id, c.parent_id, c.parent_seq, t.first_seq, 1
        from public.conversations c
       where c.id = t.conversation_id
      union all
      select c.id, c.parent_id, c.parent_seq, least(l.parent_seq, l.last_seq), l.depth + 1
        from line l
        join public.conversations c on c.id = l.parent_id
       where l.depth < c_max_depth)
    select count(*)
      from line l
      join public.turns x on x.conversation_id = l.id
     where x.tool = t.tool and x.first_seq <= l.last_seq);
end
$function$
;

CREATE OR REPLACE FUNCTION exai.excerpt_v1(p_text text, p_words text[], OUT o_excerpt text, OUT o_cut_before boolean, OUT o_cut_after boolean)
 RETURNS record
 LANGUAGE plpgsql
 IMMUTABLE
 SET search_path TO 'pg_catalog', 'pg_temp'
 SET standard_conforming_strings TO 'on'
AS $function$
declare
  c_window constant integer := 320;
  c_before constant integer := 80;
  c_step constant integer := 4000;
  c_overlap constant integer := 100;
  c_steps constant integer := 8;
  -- Occurrences of a word that are examined where it is also part of other words.
  c_tries constant integer := 8;
  v_text text collate "C" := p_text;
  v_length constant integer := length(p_text);
  v_start integer := 0;
  v_at integer;
  v_word text collate "C";
  v_first integer;
  v_from integer;
  v_found integer;
  v_slice text collate "C";
  v_folded text collate "C";
begin
  if v_length <= c_window then
    o_excerpt := p_text;
    o_cut_before := false;
    o_cut_after := false;
    return;
  end if;
  if v_length > c_step then
    -- A word that is written exactly as in the search is found by position().
    select min(f.at) into v_at
      from unnest(p_words) w
     cross join lateral (
       select coalesce(nullif(strpos(v_text, w), 0), nullif(strpos(lower(left(v_text, 100000)), w), 0)) as at) f;
    v_start := greatest(coalesce(v_at, 1) - c_before - 1, 0);
    if v_start < c_step then
      v_start := 0;
    end if;
  end if;
  v_at := null;
  for v_step in 0 .. c_steps - 1 loop
    exit when v_step > 0 and v_start + v_step * c_step >= v_length;
    v_slice := substr(v_text, v_start + v_step * c_step + 1, c_step + c_overlap);
    v_folded := case when octet_length(v_slice) = length(v_slice) then lower(v_slice)
                     else exai.strip_marks_v1(exai.fold_v1(v_slice)) end;
    foreach v_word in array coalesce(p_words, '{}') loop
      v_first := null;
      v_from := 1;
      for v_try in 1 .. c_tries loop
        v_found := strpos(substr(v_folded, v_from), v_word);
        exit when v_found = 0;
        v_found := v_from + v_found - 1;
        v_from := v_found + length(v_word);
        if substr(v_folded, v_found - 1, 1) !~ '[a-z0-9]' and substr(v_folded, v_from, 1) !~ '[a-z0-9]' then
          v_first := v_found;
          exit;
        end if;
        v_first := coalesce(v_first, v_found);
      end loop;
      v_at := least(v_at, v_first);
    end loop;
    if v_at is not null then
      -- Folding may have changed the length.
      v_at := v_start + v_step * c_step + (v_at::numeric * length(v_slice) / greatest(length(v_folded), 1))::integer;
      exit;
    end if;
  end loop;
  v_at := greatest(coalesce(v_at, 1) - c_before, 1);
  o_excerpt := substr(v_text, v_at, c_window);
  o_cut_before := v_at > 1;
  o_cut_after := v_at + c_window <= v_length;
end
$function$
;

CREATE OR REPLACE FUNCTION exai.expire_threads_v1(p_owner text, p_idle_s double precision, p_but text[], p_limit integer)
 RETURNS bigint
 LANGUAGE plpgsql
 SET search_path TO 'pg_catalog', 'pg_temp'
AS $function$
declare
  v_threads uuid[];
begin
  if p_idle_s is null then
    v_threads := array(
      select t.id from exai.checkpoint_threads t
       where t.expires_at <= now() and t.deleted_at is null
       order by t.id
       limit p_limit
         for update skip locked);
  else
    v_threads := array(
      select t.id from exai.checkpoint_threads t
       where t.updated_at < now() - make_interval(secs => p_idle_s) and t.expires_at is null and t.deleted_at is null
         and (p_owner is null or t.owner = p_owner) and t.owner <> all(p_but)
       order by t.updated_at
       limit p_limit
         for update skip locked);
  end if;
  perform exai.clear_threads_v1(v_threads);
  update exai.checkpoint_threads t
     set revision = t.revision + 1, changed_xid = pg_current_xact_id(), deleted_at = now(), updated_at = now()
   where t.id = any(v_threads);
  return cardinality(v_threads);
end
$function$
;

CREATE OR REPLACE FUNCTION exai.fill_conversation_v1()
 RETURNS trigger
 LANGUAGE plpgsql
 SECURITY DEFINER
 SET search_path TO 'pg_catalog', 'pg_temp'
AS $function$
declare
  c_name_chars constant integer := 500;
  v_original jsonb := '{}';
begin
  if jsonb_typeof(new.metadata) <> 'object' then
    v_original := v_original || jsonb_build_object('metadata', new.metadata);
    new.metadata := '{}';
  end if;
  if length(new.continuation_id) > c_name_chars then
    v_original := v_original || jsonb_build_object('continuation_id', new.continuation_id);
    new.continuation_id := null;
  end if;
  new.continuation_id := coalesce(nullif(new.continuation_id, ''), new.id::text);
  new.metadata := coalesce(new.metadata, '{}');
  new.created_at := coalesce(new.created_at, now());
  new.updated_at := coalesce(new.updated_at, new.created_at);
  if v_original <> '{}' then
    new.metadata := new.metadata || jsonb_build_object('adopted', v_original);
  end if;
  return new;
end
$function$
;

CREATE OR REPLACE FUNCTION exai.find_messages_v1(p_owner text, p_name text, p_keys text[], p_limit integer, p_budget bigint)
 RETURNS TABLE(place integer, head text, line bytea)
 LANGUAGE plpgsql
 STABLE ROWS 50
 SET search_path TO 'pg_catalog', 'pg_temp'
 SET "TimeZone" TO 'UTC'
 SET enable_seqscan TO 'off'
AS $function$
#variable_conflict use_column
declare
  c_max_depth constant integer := 64;
  v public.conversations;
begin
  if p_name is null then
    return query
    select f.place, exai.header_v1(f.c)::text, case when f.bytes <= p_budget then convert_to(f.line, 'UTF8') end
      from (select k.ord::integer as place, x.c, x.line, sum(octet_length(x.line)) over (order by k.ord, x.number) as bytes
              from unnest(p_keys) with ordinality k(key, ord)
             cross join lateral (
               select c, exai.message_line_v1(m) as line, row_number() over (order by c.updated_at desc, c.id) as number
                 from public.messages m
                 join public.conversations c on c.id = m.conversation_id
                where m.message_key = k.key and c.owner = p_owner and c.deleted_at is null) x
             order by k.ord, x.number
             limit p_limit) f
     order by f.place, f.bytes;
    return;
  end if;
  select c.* into v from public.conversations c
   where c.owner = p_owner and c.continuation_id = p_name and c.deleted_at is null;
  if not found then
    return;
  end if;
  return query select 0, exai.header_v1(v)::text, null::bytea;
  return query
  with recursive chain(id, parent_id, parent_seq, last_seq, depth) as (
    select v.id, v.parent_id, v.parent_seq, v.next_seq - 1, 0
    union all
    select c.id, c.parent_id, c.parent_seq, least(l.parent_seq, l.last_seq), l.depth + 1
      from chain l
      join public.conversations c on c.id = l.parent_id
     where l.depth < c_max_depth)
  select f.place, null::text, case when f.bytes <= p_budget then convert_to(f.line, 'UTF8') end
    from (select k.ord::integer as place, x.line, sum(octet_length(x.line)) over (order by k.ord) as bytes
            from unnest(p_keys) with ordinality k(key, ord)
           cross join lateral (
             select exai.message_line_v1(m) as line
               from chain l
               join public.messages m on m.conversation_id = l.id and m.message_key = k.key
              where m.seq <= l.last_seq
              order by l.depth
              limit 1) x) f
   order by f.place;
end
$function$
;

CREATE OR REPLACE FUNCTION exai.finish_turn_v1(p_owner text, p_turn_id uuid, p_attempt integer, p_state text, p_roles text[], p_contents text[], p_kinds text[], p_metadata text[], p_model text, p_input_tokens bigint, p_output_tokens bigint, p_cached_tokens bigint, p_reasoning_tokens bigint, p_cost numeric, p_error text, p_turn_metadata text, p_is_estimated boolean, p_origin text, p_files text[])
 RETURNS TABLE(part text, seq bigint, role text, content text, created_at timestamp with time zone, kind text, turn_id text, data text)
 LANGUAGE plpgsql
 ROWS 1
 SET search_path TO '$user', 'public', 'extensions', 'pg_temp'
 SET lock_timeout TO '2s'
AS $function$
#variable_conflict use_column
declare
  v_count constant bigint := pg_catalog.cardinality(p_roles);
  v public.conversations;
  t public.turns;
  v_now timestamptz;
  v_base bigint;
  v_revision bigint;
  v_status text;
begin
  select c.* into v from public.conversations c
   where c.id = (select x.conversation_id from public.turns x where x.id = p_turn_id and x.owner = p_owner)
     for no key update;
  select x.* into t from public.turns x where x.id = p_turn_id and x.owner = p_owner for update;
  if t.id is null or t.attempt <> p_attempt or t.state not in ('pending', p_state) then
    v_status := 'superseded';
  elsif t.state = 'pending' and p_origin is not null and not exists (
      select from public.conversations c join public.messages m on m.conversation_id = c.id
       where c.id = (p_origin::jsonb ->> 0)::uuid and c.owner = p_owner and c.deleted_at is null
         and m.seq = (p_origin::jsonb ->> 1)::bigint and m.turn_id = (p_origin::jsonb ->> 2)::uuid) then
    v_status := 'stale';
  elsif t.state = p_state then
    v_status := 'duplicate';
  elsif exists (select from pg_catalog.unnest(p_files) g(id)
                 where not exists (select from public.files f where f.id = g.id::uuid and f.owner = p_owner)) then
    v_status := 'file_not_found';
  else
    v_status := 'finished';
    v_now := pg_catalog.clock_timestamp();
    v_base := v.revision;
    if v_count > 0 then
      v.next_seq := v.next_seq + v_count;
      v.revision := v.revision + 1;
      v.updated_at := v_now;
      with c as (
        update public.conversations c
           set next_seq = v.next_seq, revision = v.revision, changed_xid = pg_catalog.pg_current_xact_id(),
               updated_at = v_now, reply_seq = v.next_seq - 1, reply_kind = p_kinds[v_count]
         where c.id = v.id),
      f as (
        insert into public.conversation_files (conversation_id, file_id)
        select v.id, f.id from public.files f where f.owner = p_owner and f.id = any(p_files::uuid[]) order by 2
        on conflict do nothing)
      insert into public.messages (conversation_id, seq, turn_id, role, kind, content, metadata, created_at)
      select v.id, v.next_seq - v_count + u.ord - 1, p_turn_id, u.role, u.kind,
             case when pg_catalog.starts_with(u.content, E'\x01$exai1$')
               then exai.place_v1(u.content, v.id, v.next_seq - v_count + u.ord - 1) else u.content end,
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
           cost = p_cost, is_estimated = x.is_estimated or p_is_estimated, reserved = null, reserved_prompt = null, error = p_error::jsonb,
           metadata = coalesce(p_turn_metadata::jsonb, '{}'),
           reply_first_seq = t.reply_first_seq, reply_last_seq = t.reply_last_seq, reply_revision = v.revision
     where x.id = p_turn_id;
  end if;
  if v_status <> 'finished' and t.attempt = p_attempt and t.state = 'failed' and t.input_tokens is null then
    -- Another client cancelled the turn, so that only its cost remains to be stored.
    update public.turns x
       set input_tokens = p_input_tokens, output_tokens = p_output_tokens, cached_tokens = p_cached_tokens,
           reasoning_tokens = p_reasoning_tokens, cost = p_cost, reserved = null, reserved_prompt = null,
           is_estimated = x.is_estimated or p_is_estimated
     where x.id = p_turn_id;
  end if;
  if v_status = 'duplicate' then
    return query
      select 'stored', x.seq, x.role, x.content, x.created_at, x.kind, x.turn_id::text, nullif(x.metadata, '{}')::text
        from public.messages x
       where x.conversation_id = t.conversation_id and x.seq between t.reply_first_seq and t.reply_last_seq
       order by x.seq;
    v_base := t.reply_revision - case when t.reply_first_seq is null then 0 else 1 end;
    v_revision := t.reply_revision;
  end if;
  return query select 'head', null::bigint, null, null, v_now, null, null, pg_catalog.json_build_object(
    'status', v_status, 'first_seq', case when v_status in ('finished', 'duplicate') then t.reply_first_seq end,
    'seq', case when v_status in ('finished', 'duplicate') then t.reply_last_seq end,
    'base_revision', coalesce(v_base, v.revision), 'revision', coalesce(v_revision, v.revision), 'server_epoch', exai.server_epoch_v1(),
    'conversation', case when v.id is not null then exai.live_header_v1(v) end)::text;
end
$function$
;

CREATE OR REPLACE FUNCTION exai.fold_v1(p_text text, p_marked boolean DEFAULT false)
 RETURNS text
 LANGUAGE plpgsql
 IMMUTABLE PARALLEL SAFE
 SET search_path TO 'pg_catalog', 'pg_temp'
 SET standard_conforming_strings TO 'on'
AS $function$
declare
  v_text text collate "C" := replace(p_text, E'\x01', ' ');
  v_ascii constant boolean := octet_length(p_text) = length(p_text);
begin
  if not v_ascii then
    -- Signs that would become letters or marks of the words beside them.
    if v_text ~ E'[\u00A8\u00AF\u00B4\u00B8\u02D8-\u02DD\u0384-\u0385\u1FBD\u1FBF-\u1FC1\u1FCD-\u1FCF\u1FDD-\u1FDF\u1FED-'
            '\u1FEE\u1FFD-\u1FFE\u2017\u203E\u2120\u2122\u309B-\u309C\uFE49-\uFE4C\uFFE3]' then
      v_text := translate(v_text, E'\u2122\u2120\u00A8\u00AF\u00B4\u00B8\u02D8\u02D9\u02DA\u02DB\u02DC\u02DD\u0384\u0385\u1FBD\u1FBF\u1FC0'
        '\u1FC1\u1FCD\u1FCE\u1FCF\u1FDD\u1FDE\u1FDF\u1FED\u1FEE\u1FFD\u1FFE\u2017\u203E\u309B\u309C\uFE49\uFE4A'
        '\uFE4B\uFE4C\uFFE3', repeat(' ', 37));
    end if;
    v_text := normalize(v_text, NFKC);
    if v_text ~ E'[\u00AD\u034F\u061C\u0640\u180B-\u180D\u200C-\u200F\u2060-\u2064\uFE00-\uFE0F\uFEFF]' then
      v_text := translate(v_text, E'\u200C\u00AD\u034F\u061C\u0640\u180B\u180C\u180D\u200D\u200E\u200F\u2060\u2061\u2062\u2063\u2064\uFE00'
        '\uFE01\uFE02\uFE03\uFE04\uFE05\uFE06\uFE07\uFE08\uFE09\uFE0A\uFE0B\uFE0C\uFE0D\uFE0E\uFE0F\uFEFF',
        case when p_marked then E'\x01' else '' end);
    end if;
  end if;
  if p_marked then
    -- Most texts have none of these, which one look tells.
    if v_text ~ '[a-z0-9][A-Z]|[A-Z][A-Z][a-z]|[A-Za-z][0-9]|[0-9][A-Za-z]' then
      v_text := regexp_replace(v_text, '[a-z0-9](?=[A-Z])', E'\\&\x01', 'g');
      v_text := regexp_replace(v_text, '(?<=[A-Z])[A-Z][a-z]', E'\x01\\&', 'g');
      v_text := regexp_replace(v_text, '(?:[A-Za-z][A-Za-z]|\m[vV])(?=[0-9])', E'\\&\x01', 'g');
      v_text := regexp_replace(v_text, '[0-9](?=[A-Za-z][A-Za-z])', E'\\&\x01', 'g');
    end if;
    if not v_ascii and v_text ~ E'[\u0430-\u044F][\u0410-\u042F]|[\u00DF-\u00FF][A-Z]|[a-z][\u00C0-\u00DE]' then
      v_text := regexp_replace(
        v_text, E'([\u0430-\u044F])([\u0410-\u042F])|([\u00DF-\u00FF])([A-Z])|([a-z])([\u00C0-\u00DE])',
        E'\\1\\3\\5\x01\\2\\4\\6', 'g');
    end if;
  end if;
  v_text := lower(v_text collate "C");
  if v_ascii then
    return v_text;
  end if;
  v_text := replace(replace(replace(v_text, E'\u00DF', 'ss'), E'\u1E9E', 'ss'), E'\u0130', E'i\u0307');
  -- Western European Latin
  if v_text ~ E'[\u00C0-\u00DE]' then
    v_text := translate(v_text,
      E'\u00C0\u00C1\u00C2\u00C3\u00C4\u00C5\u00C6\u00C7\u00C8\u00C9\u00CA\u00CB\u00CC\u00CD\u00CE\u00CF\u00D0'
      '\u00D1\u00D2\u00D3\u00D4\u00D5\u00D6\u00D8\u00D9\u00DA\u00DB\u00DC\u00DD\u00DE',
      E'\u00E0\u00E1\u00E2\u00E3\u00E4\u00E5\u00E6\u00E7\u00E8\u00E9\u00EA\u00EB\u00EC\u00ED\u00EE\u00EF\u00F0'
      '\u00F1\u00F2\u00F3\u00F4\u00F5\u00F6\u00F8\u00F9\u00FA\u00FB\u00FC\u00FD\u00FE');
  end if;
  -- Other Latin
  if v_text ~ E'[\u0100-\u012E\u0134-\u0136\u0139-\u013D\u0141-\u0147\u014A-\u017D\u0181-\u018B\u018E-\u0198\u019C-'
            '\u01A9\u01AC-\u01B8\u01BC\u01CD-\u01DB\u01DE-\u01EE\u01F4-\u0232\u023A-\u023E\u0241-\u024E]' then
    v_text := translate(v_text,
      E'\u0100\u0102\u0104\u0106\u0108\u010A\u010C\u010E\u0110\u0112\u0114\u0116\u0118\u011A\u011C\u011E\u0120'
      '\u0122\u0124\u0126\u0128\u012A\u012C\u012E\u0134\u0136\u0139\u013B\u013D\u0141\u0143\u0145\u0147\u014A'
      '\u014C\u014E\u0150\u0152\u0154\u0156\u0158\u015A\u015C\u015E\u0160\u0162\u0164\u0166\u0168\u016A\u016C'
      '\u016E\u0170\u0172\u0174\u0176\u0178\u0179\u017B\u017D\u0181\u0182\u0184\u0186\u0187\u0189\u018A\u018B'
      '\u018E\u018F\u0190\u0191\u0193\u0194\u0196\u0197\u0198\u019C\u019D\u019F\u01A0\u01A2\u01A4\u01A6\u01A7'
      '\u01A9\u01AC\u01AE\u01AF\u01B1\u01B2\u01B3\u01B5\u01B7\u01B8\u01BC\u01CD\u01CF\u01D1\u01D3\u01D5\u01D7'
      '\u01D9\u01DB\u01DE\u01E0\u01E2\u01E4\u01E6\u01E8\u01EA\u01EC\u01EE\u01F4\u01F6\u01F7\u01F8\u01FA\u01FC'
      '\u01FE\u0200\u0202\u0204\u0206\u0208\u020A\u020C\u020E\u0210\u0212\u0214\u0216\u0218\u021A\u021C\u021E'
      '\u0220\u0222\u0224\u0226\u0228\u022A\u022C\u022E\u0230\u0232\u023A\u023B\u023D\u023E\u0241\u0243\u0244'
      '\u0245\u0246\u0248\u024A\u024C\u024E',
      E'\u0101\u0103\u0105\u0107\u0109\u010B\u010D\u010F\u0111\u0113\u0115\u0117\u0119\u011B\u011D\u011F\u0121'
      '\u0123\u0125\u0127\u0129\u012B\u012D\u012F\u0135\u0137\u013A\u013C\u013E\u0142\u0144\u0146\u0148\u014B'
      '\u014D\u014F\u0151\u0153\u0155\u0157\u0159\u015B\u015D\u015F\u0161\u0163\u0165\u0167\u0169\u016B\u016D'
      '\u016F\u0171\u0173\u0175\u0177\u00FF\u017A\u017C\u017E\u0253\u0183\u0185\u0254\u0188\u0256\u0257\u018C'
      '\u01DD\u0259\u025B\u0192\u0260\u0263\u0269\u0268\u0199\u026F\u0272\u0275\u01A1\u01A3\u01A5\u0280\u01A8'
      '\u0283\u01AD\u0288\u01B0\u028A\u028B\u01B4\u01B6\u0292\u01B9\u01BD\u01CE\u01D0\u01D2\u01D4\u01D6\u01D8'
      '\u01DA\u01DC\u01DF\u01E1\u01E3\u01E5\u01E7\u01E9\u01EB\u01ED\u01EF\u01F5\u0195\u01BF\u01F9\u01FB\u01FD'
      '\u01FF\u0201\u0203\u0205\u0207\u0209\u020B\u020D\u020F\u0211\u0213\u0215\u0217\u0219\u021B\u021D\u021F'
      '\u019E\u0223\u0225\u0227\u0229\u022B\u022D\u022F\u0231\u0233\u2C65\u023C\u019A\u2C66\u0242\u0180\u0289'
      '\u028C\u0247\u0249\u024B\u024D\u024F');
  end if;
  -- Greek
  if v_text ~ E'[\u0370-\u0372\u0376\u037F\u0386-\u03AB\u03C2\u03CF\u03D8-\u03EE\u03F7\u03FA\u03FD-\u03FF]' then
    v_text := translate(v_text,
      E'\u0370\u0372\u0376\u037F\u0386\u0388\u0389\u038A\u038C\u038E\u038F\u0391\u0392\u0393\u0394\u0395\u0396'
      '\u0397\u0398\u0399\u039A\u039B\u039C\u039D\u039E\u039F\u03A0\u03A1\u03A3\u03A4\u03A5\u03A6\u03A7\u03A8'
      '\u03A9\u03AA\u03AB\u03C2\u03CF\u03D8\u03DA\u03DC\u03DE\u03E0\u03E2\u03E4\u03E6\u03E8\u03EA\u03EC\u03EE'
      '\u03F7\u03FA\u03FD\u03FE\u03FF',
      E'\u0371\u0373\u0377\u03F3\u03AC\u03AD\u03AE\u03AF\u03CC\u03CD\u03CE\u03B1\u03B2\u03B3\u03B4\u03B5\u03B6'
      '\u03B7\u03B8\u03B9\u03BA\u03BB\u03BC\u03BD\u03BE\u03BF\u03C0\u03C1\u03C3\u03C4\u03C5\u03C6\u03C7\u03C8'
      '\u03C9\u03CA\u03CB\u03C3\u03D7\u03D9\u03DB\u03DD\u03DF\u03E1\u03E3\u03E5\u03E7\u03E9\u03EB\u03ED\u03EF'
      '\u03F8\u03FB\u037B\u037C\u037D');
  end if;
  -- Cyrillic
  if v_text ~ E'[\u0400-\u042F]' then
    v_text := translate(v_text,
      E'\u0400\u0401\u0402\u0403\u0404\u0405\u0406\u0407\u0408\u0409\u040A\u040B\u040C\u040D\u040E\u040F\u0410'
      '\u0411\u0412\u0413\u0414\u0415\u0416\u0417\u0418\u0419\u041A\u041B\u041C\u041D\u041E\u041F\u0420\u0421'
      '\u0422\u0423\u0424\u0425\u0426\u0427\u0428\u0429\u042A\u042B\u042C\u042D\u042E\u042F',
      E'\u0450\u0451\u0452\u0453\u0454\u0455\u0456\u0457\u0458\u0459\u045A\u045B\u045C\u045D\u045E\u045F\u0430'
      '\u0431\u0432\u0433\u0434\u0435\u0436\u0437\u0438\u0439\u043A\u043B\u043C\u043D\u043E\u043F\u0440\u0441'
      '\u0442\u0443\u0444\u0445\u0446\u0447\u0448\u0449\u044A\u044B\u044C\u044D\u044E\u044F');
  end if;
  -- Cyrillic of other languages
  if v_text ~ E'[\u0460-\u0480\u048A-\u04CD\u04D0-\u052E]' then
    v_text := translate(v_text,
      E'\u0460\u0462\u0464\u0466\u0468\u046A\u046C\u046E\u0470\u0472\u0474\u0476\u0478\u047A\u047C\u047E\u0480'
      '\u048A\u048C\u048E\u0490\u0492\u0494\u0496\u0498\u049A\u049C\u049E\u04A0\u04A2\u04A4\u04A6\u04A8\u04AA'
      '\u04AC\u04AE\u04B0\u04B2\u04B4\u04B6\u04B8\u04BA\u04BC\u04BE\u04C0\u04C1\u04C3\u04C5\u04C7\u04C9\u04CB'
      '\u04CD\u04D0\u04D2\u04D4\u04D6\u04D8\u04DA\u04DC\u04DE\u04E0\u04E2\u04E4\u04E6\u04E8\u04EA\u04EC\u04EE'
      '\u04F0\u04F2\u04F4\u04F6\u04F8\u04FA\u04FC\u04FE\u0500\u0502\u0504\u0506\u0508\u050A\u050C\u050E\u0510'
      '\u0512\u0514\u0516\u0518\u051A\u051C\u051E\u0520\u0522\u0524\u0526\u0528\u052A\u052C\u052E',
      E'\u0461\u0463\u0465\u0467\u0469\u046B\u046D\u046F\u0471\u0473\u0475\u0477\u0479\u047B\u047D\u047F\u0481'
      '\u048B\u048D\u048F\u0491\u0493\u0495\u0497\u0499\u049B\u049D\u049F\u04A1\u04A3\u04A5\u04A7\u04A9\u04AB'
      '\u04AD\u04AF\u04B1\u04B3\u04B5\u04B7\u04B9\u04BB\u04BD\u04BF\u04CF\u04C2\u04C4\u04C6\u04C8\u04CA\u04CC'
      '\u04CE\u04D1\u04D3\u04D5\u04D7\u04D9\u04DB\u04DD\u04DF\u04E1\u04E3\u04E5\u04E7\u04E9\u04EB\u04ED\u04EF'
      '\u04F1\u04F3\u04F5\u04F7\u04F9\u04FB\u04FD\u04FF\u0501\u0503\u0505\u0507\u0509\u050B\u050D\u050F\u0511'
      '\u0513\u0515\u0517\u0519\u051B\u051D\u051F\u0521\u0523\u0525\u0527\u0529\u052B\u052D\u052F');
  end if;
  -- Latin letters with marks
  if v_text ~ E'[\u1E00-\u1E94\u1E9E-\u1EFE]' then
    v_text := translate(v_text,
      E'\u1E00\u1E02\u1E04\u1E06\u1E08\u1E0A\u1E0C\u1E0E\u1E10\u1E12\u1E14\u1E16\u1E18\u1E1A\u1E1C\u1E1E\u1E20'
      '\u1E22\u1E24\u1E26\u1E28\u1E2A\u1E2C\u1E2E\u1E30\u1E32\u1E34\u1E36\u1E38\u1E3A\u1E3C\u1E3E\u1E40\u1E42'
      '\u1E44\u1E46\u1E48\u1E4A\u1E4C\u1E4E\u1E50\u1E52\u1E54\u1E56\u1E58\u1E5A\u1E5C\u1E5E\u1E60\u1E62\u1E64'
      '\u1E66\u1E68\u1E6A\u1E6C\u1E6E\u1E70\u1E72\u1E74\u1E76\u1E78\u1E7A\u1E7C\u1E7E\u1E80\u1E82\u1E84\u1E86'
      '\u1E88\u1E8A\u1E8C\u1E8E\u1E90\u1E92\u1E94\u1E9E\u1EA0\u1EA2\u1EA4\u1EA6\u1EA8\u1EAA\u1EAC\u1EAE\u1EB0'
      '\u1EB2\u1EB4\u1EB6\u1EB8\u1EBA\u1EBC\u1EBE\u1EC0\u1EC2\u1EC4\u1EC6\u1EC8\u1ECA\u1ECC\u1ECE\u1ED0\u1ED2'
      '\u1ED4\u1ED6\u1ED8\u1EDA\u1EDC\u1EDE\u1EE0\u1EE2\u1EE4\u1EE6\u1EE8\u1EEA\u1EEC\u1EEE\u1EF0\u1EF2\u1EF4'
      '\u1EF6\u1EF8\u1EFA\u1EFC\u1EFE',
      E'\u1E01\u1E03\u1E05\u1E07\u1E09\u1E0B\u1E0D\u1E0F\u1E11\u1E13\u1E15\u1E17\u1E19\u1E1B\u1E1D\u1E1F\u1E21'
      '\u1E23\u1E25\u1E27\u1E29\u1E2B\u1E2D\u1E2F\u1E31\u1E33\u1E35\u1E37\u1E39\u1E3B\u1E3D\u1E3F\u1E41\u1E43'
      '\u1E45\u1E47\u1E49\u1E4B\u1E4D\u1E4F\u1E51\u1E53\u1E55\u1E57\u1E59\u1E5B\u1E5D\u1E5F\u1E61\u1E63\u1E65'
      '\u1E67\u1E69\u1E6B\u1E6D\u1E6F\u1E71\u1E73\u1E75\u1E77\u1E79\u1E7B\u1E7D\u1E7F\u1E81\u1E83\u1E85\u1E87'
      '\u1E89\u1E8B\u1E8D\u1E8F\u1E91\u1E93\u1E95\u00DF\u1EA1\u1EA3\u1EA5\u1EA7\u1EA9\u1EAB\u1EAD\u1EAF\u1EB1'
      '\u1EB3\u1EB5\u1EB7\u1EB9\u1EBB\u1EBD\u1EBF\u1EC1\u1EC3\u1EC5\u1EC7\u1EC9\u1ECB\u1ECD\u1ECF\u1ED1\u1ED3'
      '\u1ED5\u1ED7\u1ED9\u1EDB\u1EDD\u1EDF\u1EE1\u1EE3\u1EE5\u1EE7\u1EE9\u1EEB\u1EED\u1EEF\u1EF1\u1EF3\u1EF5'
      '\u1EF7\u1EF9\u1EFB\u1EFD\u1EFF');
  end if;
  -- Armenian, Georgian, Cherokee, Coptic and everything else that has two cases
  if v_text ~ E'[\u0345\u0531-\u0556\u10A0-\u10C7\u10CD\u13F8-\u13FD\u1C80-\u1C88\u1C90-\u1CBA\u1CBD-\u1CBF\u1F08-\u1F0F'
            '\u1F18-\u1F1D\u1F28-\u1F2F\u1F38-\u1F3F\u1F48-\u1F4D\u1F59-\u1F5F\u1F68-\u1F6F\u1F88-\u1F8F\u1F98-\u1F9F'
            '\u1FA8-\u1FAF\u1FB8-\u1FBC\u1FC8-\u1FCC\u1FD8-\u1FDA\u1FE8-\u1FEC\u1FF8-\u1FFC\u2132\u2183\u2C00-\u2C2F'
            '\u2C60-\u2C64\u2C67-\u2C72\u2C75\u2C7E-\u2CE2\u2CEB-\u2CED\u2CF2\uA640-\uA66C\uA680-\uA69A\uA722-\uA72E'
            '\uA732-\uA76E\uA779-\uA786\uA78B-\uA78D\uA790-\uA792\uA796-\uA7C9\uA7D0\uA7D6-\uA7D8\uA7F5\uAB70-\uABBF'
            '\U00010400-\U00010427\U000104B0-\U000104D3\U00010570-\U00010595\U00010C80-\U00010CB2\U000118A0-'
            '\U000118BF\U00016E40-\U00016E5F\U0001E900-\U0001E921]' then
    v_text := translate(v_text,
      E'\u0345\u0531\u0532\u0533\u0534\u0535\u0536\u0537\u0538\u0539\u053A\u053B\u053C\u053D\u053E\u053F\u0540'
      '\u0541\u0542\u0543\u0544\u0545\u0546\u0547\u0548\u0549\u054A\u054B\u054C\u054D\u054E\u054F\u0550\u0551'
      '\u0552\u0553\u0554\u0555\u0556\u10A0\u10A1\u10A2\u10A3\u10A4\u10A5\u10A6\u10A7\u10A8\u10A9\u10AA\u10AB'
      '\u10AC\u10AD\u10AE\u10AF\u10B0\u10B1\u10B2\u10B3\u10B4\u10B5\u10B6\u10B7\u10B8\u10B9\u10BA\u10BB\u10BC'
      '\u10BD\u10BE\u10BF\u10C0\u10C1\u10C2\u10C3\u10C4\u10C5\u10C7\u10CD\u13F8\u13F9\u13FA\u13FB\u13FC\u13FD'
      '\u1C80\u1C81\u1C82\u1C83\u1C84\u1C85\u1C86\u1C87\u1C88\u1C90\u1C91\u1C92\u1C93\u1C94\u1C95\u1C96\u1C97'
      '\u1C98\u1C99\u1C9A\u1C9B\u1C9C\u1C9D\u1C9E\u1C9F\u1CA0\u1CA1\u1CA2\u1CA3\u1CA4\u1CA5\u1CA6\u1CA7\u1CA8'
      '\u1CA9\u1CAA\u1CAB\u1CAC\u1CAD\u1CAE\u1CAF\u1CB0\u1CB1\u1CB2\u1CB3\u1CB4\u1CB5\u1CB6\u1CB7\u1CB8\u1CB9'
      '\u1CBA\u1CBD\u1CBE\u1CBF\u1F08\u1F09\u1F0A\u1F0B\u1F0C\u1F0D\u1F0E\u1F0F\u1F18\u1F19\u1F1A\u1F1B\u1F1C'
      '\u1F1D\u1F28\u1F29\u1F2A\u1F2B\u1F2C\u1F2D\u1F2E\u1F2F\u1F38\u1F39\u1F3A\u1F3B\u1F3C\u1F3D\u1F3E\u1F3F'
      '\u1F48\u1F49\u1F4A\u1F4B\u1F4C\u1F4D\u1F59\u1F5B\u1F5D\u1F5F\u1F68\u1F69\u1F6A\u1F6B\u1F6C\u1F6D\u1F6E'
      '\u1F6F\u1F88\u1F89\u1F8A\u1F8B\u1F8C\u1F8D\u1F8E\u1F8F\u1F98\u1F99\u1F9A\u1F9B\u1F9C\u1F9D\u1F9E\u1F9F'
      '\u1FA8\u1FA9\u1FAA\u1FAB\u1FAC\u1FAD\u1FAE\u1FAF\u1FB8\u1FB9\u1FBA\u1FBC\u1FC8\u1FCA\u1FCC\u1FD8\u1FD9'
      '\u1FDA\u1FE8\u1FE9\u1FEA\u1FEC\u1FF8\u1FFA\u1FFC\u2132\u2183\u2C00\u2C01\u2C02\u2C03\u2C04\u2C05\u2C06'
      '\u2C07\u2C08\u2C09\u2C0A\u2C0B\u2C0C\u2C0D\u2C0E\u2C0F\u2C10\u2C11\u2C12\u2C13\u2C14\u2C15\u2C16\u2C17'
      '\u2C18\u2C19\u2C1A\u2C1B\u2C1C\u2C1D\u2C1E\u2C1F\u2C20\u2C21\u2C22\u2C23\u2C24\u2C25\u2C26\u2C27\u2C28'
      '\u2C29\u2C2A\u2C2B\u2C2C\u2C2D\u2C2E\u2C2F\u2C60\u2C62\u2C63\u2C64\u2C67\u2C69\u2C6B\u2C6D\u2C6E\u2C6F'
      '\u2C70\u2C72\u2C75\u2C7E\u2C7F\u2C80\u2C82\u2C84\u2C86\u2C88\u2C8A\u2C8C\u2C8E\u2C90\u2C92\u2C94\u2C96'
      '\u2C98\u2C9A\u2C9C\u2C9E\u2CA0\u2CA2\u2CA4\u2CA6\u2CA8\u2CAA\u2CAC\u2CAE\u2CB0\u2CB2\u2CB4\u2CB6\u2CB8'
      '\u2CBA\u2CBC\u2CBE\u2CC0\u2CC2\u2CC4\u2CC6\u2CC8\u2CCA\u2CCC\u2CCE\u2CD0\u2CD2\u2CD4\u2CD6\u2CD8\u2CDA'
      '\u2CDC\u2CDE\u2CE0\u2CE2\u2CEB\u2CED\u2CF2\uA640\uA642\uA644\uA646\uA648\uA64A\uA64C\uA64E\uA650\uA652'
      '\uA654\uA656\uA658\uA65A\uA65C\uA65E\uA660\uA662\uA664\uA666\uA668\uA66A\uA66C\uA680\uA682\uA684\uA686'
      '\uA688\uA68A\uA68C\uA68E\uA690\uA692\uA694\uA696\uA698\uA69A\uA722\uA724\uA726\uA728\uA72A\uA72C\uA72E'
      '\uA732\uA734\uA736\uA738\uA73A\uA73C\uA73E\uA740\uA742\uA744\uA746\uA748\uA74A\uA74C\uA74E\uA750\uA752'
      '\uA754\uA756\uA758\uA75A\uA75C\uA75E\uA760\uA762\uA764\uA766\uA768\uA76A\uA76C\uA76E\uA779\uA77B\uA77D'
      '\uA77E\uA780\uA782\uA784\uA786\uA78B\uA78D\uA790\uA792\uA796\uA798\uA79A\uA79C\uA79E\uA7A0\uA7A2\uA7A4'
      '\uA7A6\uA7A8\uA7AA\uA7AB\uA7AC\uA7AD\uA7AE\uA7B0\uA7B1\uA7B2\uA7B3\uA7B4\uA7B6\uA7B8\uA7BA\uA7BC\uA7BE'
      '\uA7C0\uA7C2\uA7C4\uA7C5\uA7C6\uA7C7\uA7C9\uA7D0\uA7D6\uA7D8\uA7F5\uAB70\uAB71\uAB72\uAB73\uAB74\uAB75'
      '\uAB76\uAB77\uAB78\uAB79\uAB7A\uAB7B\uAB7C\uAB7D\uAB7E\uAB7F\uAB80\uAB81\uAB82\uAB83\uAB84\uAB85\uAB86'
      '\uAB87\uAB88\uAB89\uAB8A\uAB8B\uAB8C\uAB8D\uAB8E\uAB8F\uAB90\uAB91\uAB92\uAB93\uAB94\uAB95\uAB96\uAB97'
      '\uAB98\uAB99\uAB9A\uAB9B\uAB9C\uAB9D\uAB9E\uAB9F\uABA0\uABA1\uABA2\uABA3\uABA4\uABA5\uABA6\uABA7\uABA8'
      '\uABA9\uABAA\uABAB\uABAC\uABAD\uABAE\uABAF\uABB0\uABB1\uABB2\uABB3\uABB4\uABB5\uABB6\uABB7\uABB8\uABB9'
      '\uABBA\uABBB\uABBC\uABBD\uABBE\uABBF\U00010400\U00010401\U00010402\U00010403\U00010404\U00010405'
      '\U00010406\U00010407\U00010408\U00010409\U0001040A\U0001040B\U0001040C\U0001040D\U0001040E\U0001040F'
      '\U00010410\U00010411\U00010412\U00010413\U00010414\U00010415\U00010416\U00010417\U00010418\U00010419'
      '\U0001041A\U0001041B\U0001041C\U0001041D\U0001041E\U0001041F\U00010420\U00010421\U00010422\U00010423'
      '\U00010424\U00010425\U00010426\U00010427\U000104B0\U000104B1\U000104B2\U000104B3\U000104B4\U000104B5'
      '\U000104B6\U000104B7\U000104B8\U000104B9\U000104BA\U000104BB\U000104BC\U000104BD\U000104BE\U000104BF'
      '\U000104C0\U000104C1\U000104C2\U000104C3\U000104C4\U000104C5\U000104C6\U000104C7\U000104C8\U000104C9'
      '\U000104CA\U000104CB\U000104CC\U000104CD\U000104CE\U000104CF\U000104D0\U000104D1\U000104D2\U000104D3'
      '\U00010570\U00010571\U00010572\U00010573\U00010574\U00010575\U00010576\U00010577\U00010578\U00010579'
      '\U0001057A\U0001057C\U0001057D\U0001057E\U0001057F\U00010580\U00010581\U00010582\U00010583\U00010584'
      '\U00010585\U00010586\U00010587\U00010588\U00010589\U0001058A\U0001058C\U0001058D\U0001058E\U0001058F'
      '\U00010590\U00010591\U00010592\U00010594\U00010595\U00010C80\U00010C81\U00010C82\U00010C83\U00010C84'
      '\U00010C85\U00010C86\U00010C87\U00010C88\U00010C89\U00010C8A\U00010C8B\U00010C8C\U00010C8D\U00010C8E'
      '\U00010C8F\U00010C90\U00010C91\U00010C92\U00010C93\U00010C94\U00010C95\U00010C96\U00010C97\U00010C98'
      '\U00010C99\U00010C9A\U00010C9B\U00010C9C\U00010C9D\U00010C9E\U00010C9F\U00010CA0\U00010CA1\U00010CA2'
      '\U00010CA3\U00010CA4\U00010CA5\U00010CA6\U00010CA7\U00010CA8\U00010CA9\U00010CAA\U00010CAB\U00010CAC'
      '\U00010CAD\U00010CAE\U00010CAF\U00010CB0\U00010CB1\U00010CB2\U000118A0\U000118A1\U000118A2\U000118A3'
      '\U000118A4\U000118A5\U000118A6\U000118A7\U000118A8\U000118A9\U000118AA\U000118AB\U000118AC\U000118AD'
      '\U000118AE\U000118AF\U000118B0\U000118B1\U000118B2\U000118B3\U000118B4\U000118B5\U000118B6\U000118B7'
      '\U000118B8\U000118B9\U000118BA\U000118BB\U000118BC\U000118BD\U000118BE\U000118BF\U00016E40\U00016E41'
      '\U00016E42\U00016E43\U00016E44\U00016E45\U00016E46\U00016E47\U00016E48\U00016E49\U00016E4A\U00016E4B'
      '\U00016E4C\U00016E4D\U00016E4E\U00016E4F\U00016E50\U00016E51\U00016E52\U00016E53\U00016E54\U00016E55'
      '\U00016E56\U00016E57\U00016E58\U00016E59\U00016E5A\U00016E5B\U00016E5C\U00016E5D\U00016E5E\U00016E5F'
      '\U0001E900\U0001E901\U0001E902\U0001E903\U0001E904\U0001E905\U0001E906\U0001E907\U0001E908\U0001E909'
      '\U0001E90A\U0001E90B\U0001E90C\U0001E90D\U0001E90E\U0001E90F\U0001E910\U0001E911\U0001E912\U0001E913'
      '\U0001E914\U0001E915\U0001E916\U0001E917\U0001E918\U0001E919\U0001E91A\U0001E91B\U0001E91C\U0001E91D'
      '\U0001E91E\U0001E91F\U0001E920\U0001E921',
      E'\u03B9\u0561\u0562\u0563\u0564\u0565\u0566\u0567\u0568\u0569\u056A\u056B\u056C\u056D\u056E\u056F\u0570'
      '\u0571\u0572\u0573\u0574\u0575\u0576\u0577\u0578\u0579\u057A\u057B\u057C\u057D\u057E\u057F\u0580\u0581'
      '\u0582\u0583\u0584\u0585\u0586\u2D00\u2D01\u2D02\u2D03\u2D04\u2D05\u2D06\u2D07\u2D08\u2D09\u2D0A\u2D0B'
      '\u2D0C\u2D0D\u2D0E\u2D0F\u2D10\u2D11\u2D12\u2D13\u2D14\u2D15\u2D16\u2D17\u2D18\u2D19\u2D1A\u2D1B\u2D1C'
      '\u2D1D\u2D1E\u2D1F\u2D20\u2D21\u2D22\u2D23\u2D24\u2D25\u2D27\u2D2D\u13F0\u13F1\u13F2\u13F3\u13F4\u13F5'
      '\u0432\u0434\u043E\u0441\u0442\u0442\u044A\u0463\uA64B\u10D0\u10D1\u10D2\u10D3\u10D4\u10D5\u10D6\u10D7'
      '\u10D8\u10D9\u10DA\u10DB\u10DC\u10DD\u10DE\u10DF\u10E0\u10E1\u10E2\u10E3\u10E4\u10E5\u10E6\u10E7\u10E8'
      '\u10E9\u10EA\u10EB\u10EC\u10ED\u10EE\u10EF\u10F0\u10F1\u10F2\u10F3\u10F4\u10F5\u10F6\u10F7\u10F8\u10F9'
      '\u10FA\u10FD\u10FE\u10FF\u1F00\u1F01\u1F02\u1F03\u1F04\u1F05\u1F06\u1F07\u1F10\u1F11\u1F12\u1F13\u1F14'
      '\u1F15\u1F20\u1F21\u1F22\u1F23\u1F24\u1F25\u1F26\u1F27\u1F30\u1F31\u1F32\u1F33\u1F34\u1F35\u1F36\u1F37'
      '\u1F40\u1F41\u1F42\u1F43\u1F44\u1F45\u1F51\u1F53\u1F55\u1F57\u1F60\u1F61\u1F62\u1F63\u1F64\u1F65\u1F66'
      '\u1F67\u1F80\u1F81\u1F82\u1F83\u1F84\u1F85\u1F86\u1F87\u1F90\u1F91\u1F92\u1F93\u1F94\u1F95\u1F96\u1F97'
      '\u1FA0\u1FA1\u1FA2\u1FA3\u1FA4\u1FA5\u1FA6\u1FA7\u1FB0\u1FB1\u1F70\u1FB3\u1F72\u1F74\u1FC3\u1FD0\u1FD1'
      '\u1F76\u1FE0\u1FE1\u1F7A\u1FE5\u1F78\u1F7C\u1FF3\u214E\u2184\u2C30\u2C31\u2C32\u2C33\u2C34\u2C35\u2C36'
      '\u2C37\u2C38\u2C39\u2C3A\u2C3B\u2C3C\u2C3D\u2C3E\u2C3F\u2C40\u2C41\u2C42\u2C43\u2C44\u2C45\u2C46\u2C47'
      '\u2C48\u2C49\u2C4A\u2C4B\u2C4C\u2C4D\u2C4E\u2C4F\u2C50\u2C51\u2C52\u2C53\u2C54\u2C55\u2C56\u2C57\u2C58'
      '\u2C59\u2C5A\u2C5B\u2C5C\u2C5D\u2C5E\u2C5F\u2C61\u026B\u1D7D\u027D\u2C68\u2C6A\u2C6C\u0251\u0271\u0250'
      '\u0252\u2C73\u2C76\u023F\u0240\u2C81\u2C83\u2C85\u2C87\u2C89\u2C8B\u2C8D\u2C8F\u2C91\u2C93\u2C95\u2C97'
      '\u2C99\u2C9B\u2C9D\u2C9F\u2CA1\u2CA3\u2CA5\u2CA7\u2CA9\u2CAB\u2CAD\u2CAF\u2CB1\u2CB3\u2CB5\u2CB7\u2CB9'
      '\u2CBB\u2CBD\u2CBF\u2CC1\u2CC3\u2CC5\u2CC7\u2CC9\u2CCB\u2CCD\u2CCF\u2CD1\u2CD3\u2CD5\u2CD7\u2CD9\u2CDB'
      '\u2CDD\u2CDF\u2CE1\u2CE3\u2CEC\u2CEE\u2CF3\uA641\uA643\uA645\uA647\uA649\uA64B\uA64D\uA64F\uA651\uA653'
      '\uA655\uA657\uA659\uA65B\uA65D\uA65F\uA661\uA663\uA665\uA667\uA669\uA66B\uA66D\uA681\uA683\uA685\uA687'
      '\uA689\uA68B\uA68D\uA68F\uA691\uA693\uA695\uA697\uA699\uA69B\uA723\uA725\uA727\uA729\uA72B\uA72D\uA72F'
      '\uA733\uA735\uA737\uA739\uA73B\uA73D\uA73F\uA741\uA743\uA745\uA747\uA749\uA74B\uA74D\uA74F\uA751\uA753'
      '\uA755\uA757\uA759\uA75B\uA75D\uA75F\uA761\uA763\uA765\uA767\uA769\uA76B\uA76D\uA76F\uA77A\uA77C\u1D79'
      '\uA77F\uA781\uA783\uA785\uA787\uA78C\u0265\uA791\uA793\uA797\uA799\uA79B\uA79D\uA79F\uA7A1\uA7A3\uA7A5'
      '\uA7A7\uA7A9\u0266\u025C\u0261\u026C\u026A\u029E\u0287\u029D\uAB53\uA7B5\uA7B7\uA7B9\uA7BB\uA7BD\uA7BF'
      '\uA7C1\uA7C3\uA794\u0282\u1D8E\uA7C8\uA7CA\uA7D1\uA7D7\uA7D9\uA7F6\u13A0\u13A1\u13A2\u13A3\u13A4\u13A5'
      '\u13A6\u13A7\u13A8\u13A9\u13AA\u13AB\u13AC\u13AD\u13AE\u13AF\u13B0\u13B1\u13B2\u13B3\u13B4\u13B5\u13B6'
      '\u13B7\u13B8\u13B9\u13BA\u13BB\u13BC\u13BD\u13BE\u13BF\u13C0\u13C1\u13C2\u13C3\u13C4\u13C5\u13C6\u13C7'
      '\u13C8\u13C9\u13CA\u13CB\u13CC\u13CD\u13CE\u13CF\u13D0\u13D1\u13D2\u13D3\u13D4\u13D5\u13D6\u13D7\u13D8'
      '\u13D9\u13DA\u13DB\u13DC\u13DD\u13DE\u13DF\u13E0\u13E1\u13E2\u13E3\u13E4\u13E5\u13E6\u13E7\u13E8\u13E9'
      '\u13EA\u13EB\u13EC\u13ED\u13EE\u13EF\U00010428\U00010429\U0001042A\U0001042B\U0001042C\U0001042D'
      '\U0001042E\U0001042F\U00010430\U00010431\U00010432\U00010433\U00010434\U00010435\U00010436\U00010437'
      '\U00010438\U00010439\U0001043A\U0001043B\U0001043C\U0001043D\U0001043E\U0001043F\U00010440\U00010441'
      '\U00010442\U00010443\U00010444\U00010445\U00010446\U00010447\U00010448\U00010449\U0001044A\U0001044B'
      '\U0001044C\U0001044D\U0001044E\U0001044F\U000104D8\U000104D9\U000104DA\U000104DB\U000104DC\U000104DD'
      '\U000104DE\U000104DF\U000104E0\U000104E1\U000104E2\U000104E3\U000104E4\U000104E5\U000104E6\U000104E7'
      '\U000104E8\U000104E9\U000104EA\U000104EB\U000104EC\U000104ED\U000104EE\U000104EF\U000104F0\U000104F1'
      '\U000104F2\U000104F3\U000104F4\U000104F5\U000104F6\U000104F7\U000104F8\U000104F9\U000104FA\U000104FB'
      '\U00010597\U00010598\U00010599\U0001059A\U0001059B\U0001059C\U0001059D\U0001059E\U0001059F\U000105A0'
      '\U000105A1\U000105A3\U000105A4\U000105A5\U000105A6\U000105A7\U000105A8\U000105A9\U000105AA\U000105AB'
      '\U000105AC\U000105AD\U000105AE\U000105AF\U000105B0\U000105B1\U000105B3\U000105B4\U000105B5\U000105B6'
      '\U000105B7\U000105B8\U000105B9\U000105BB\U000105BC\U00010CC0\U00010CC1\U00010CC2\U00010CC3\U00010CC4'
      '\U00010CC5\U00010CC6\U00010CC7\U00010CC8\U00010CC9\U00010CCA\U00010CCB\U00010CCC\U00010CCD\U00010CCE'
      '\U00010CCF\U00010CD0\U00010CD1\U00010CD2\U00010CD3\U00010CD4\U00010CD5\U00010CD6\U00010CD7\U00010CD8'
      '\U00010CD9\U00010CDA\U00010CDB\U00010CDC\U00010CDD\U00010CDE\U00010CDF\U00010CE0\U00010CE1\U00010CE2'
      '\U00010CE3\U00010CE4\U00010CE5\U00010CE6\U00010CE7\U00010CE8\U00010CE9\U00010CEA\U00010CEB\U00010CEC'
      '\U00010CED\U00010CEE\U00010CEF\U00010CF0\U00010CF1\U00010CF2\U000118C0\U000118C1\U000118C2\U000118C3'
      '\U000118C4\U000118C5\U000118C6\U000118C7\U000118C8\U000118C9\U000118CA\U000118CB\U000118CC\U000118CD'
      '\U000118CE\U000118CF\U000118D0\U000118D1\U000118D2\U000118D3\U000118D4\U000118D5\U000118D6\U000118D7'
      '\U000118D8\U000118D9\U000118DA\U000118DB\U000118DC\U000118DD\U000118DE\U000118DF\U00016E60\U00016E61'
      '\U00016E62\U00016E63\U00016E64\U00016E65\U00016E66\U00016E67\U00016E68\U00016E69\U00016E6A\U00016E6B'
      '\U00016E6C\U00016E6D\U00016E6E\U00016E6F\U00016E70\U00016E71\U00016E72\U00016E73\U00016E74\U00016E75'
      '\U00016E76\U00016E77\U00016E78\U00016E79\U00016E7A\U00016E7B\U00016E7C\U00016E7D\U00016E7E\U00016E7F'
      '\U0001E922\U0001E923\U0001E924\U0001E925\U0001E926\U0001E927\U0001E928\U0001E929\U0001E92A\U0001E92B'
      '\U0001E92C\U0001E92D\U0001E92E\U0001E92F\U0001E930\U0001E931\U0001E932\U0001E933\U0001E934\U0001E935'
      '\U0001E936\U0001E937\U0001E938\U0001E939\U0001E93A\U0001E93B\U0001E93C\U0001E93D\U0001E93E\U0001E93F'
      '\U0001E940\U0001E941\U0001E942\U0001E943');
  end if;
  -- Arabic letters that Persian keyboards write otherwise.
  if v_text ~ E'[\u0643\u0649\u064A]' then
    v_text := translate(v_text, E'\u0643\u0649\u064A', E'\u06A9\u06CC\u06CC');
  end if;
  return v_text;
end
$function$
;

CREATE OR REPLACE FUNCTION exai.forbid_renumbering_v1()
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

CREATE OR REPLACE FUNCTION exai.fork_v1(p_owner text, p_continuation_id text, p_new_id uuid, p_turn_id uuid, p_key text, p_hash text, p_at_seq bigint, p_title text, p_name text)
 RETURNS TABLE(part text, data text)
 LANGUAGE plpgsql
 ROWS 1
 SET search_path TO '$user', 'public', 'extensions', 'pg_temp'
 SET lock_timeout TO '2s'
AS $function$
#variable_conflict use_column
declare
  c_max_depth constant integer := 64;
  v public.conversations;
  w public.conversations;
  n public.conversations;
  t public.turns;
  v_at bigint;
  v_depth integer := 0;
  v_base bigint := 0;
  v_status text := 'forked';
begin
  select x.* into t from public.turns x where x.owner = p_owner and x.request_key = p_key;
  if t.id is null then
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
        n := w;
        select c.* into w from public.conversations c where c.id = n.parent_id for key share;
        if not exists (select from public.conversations c
                        where c.id = n.id and c.parent_id = n.parent_id and c.parent_seq = n.parent_seq) then
          select c.* into w from public.conversations c where c.id = v.id;
        end if;
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
    if v_status = 'forked' and p_name is not null then
      n := exai.claim_name_v1(p_owner, p_name, p_new_id, '{}');
      v_base := n.revision;
      if n.id <> p_new_id then
        v_status := case when n.parent_id = w.id and n.parent_seq = v_at then 'known' else 'exists' end;
      end if;
    end if;
    if v_status = 'forked' then
      with k as (
        insert into public.turns (id, conversation_id, owner, request_key, request_hash, tool, state, claimed_by,
                                  lease_until, revision, finished_at)
        values (p_turn_id, p_new_id, p_owner, p_key, p_hash, 'conversation_fork', 'finished', p_turn_id,
                pg_catalog.clock_timestamp(), v_base + 1, pg_catalog.clock_timestamp())
        on conflict do nothing
        returning 1),
      c as (
        insert into public.conversations (id, owner, continuation_id, title, metadata, tags, expires_at, parent_id,
                                          parent_seq, next_seq, revision)
        select p_new_id, p_owner, p_new_id::text, coalesce(p_title, v.title), v.metadata, v.tags, v.expires_at, w.id, v_at,
               v_at + 1, 1
          from k
         where p_name is null
        returning 1),
      named as (
        update public.conversations c
           set title = coalesce(p_title, v.title), metadata = v.metadata, tags = v.tags, expires_at = v.expires_at,
               parent_id = w.id, parent_seq = v_at, next_seq = v_at + 1, revision = v_base + 1,
               edited_revision = v_base + 1, changed_xid = pg_catalog.pg_current_xact_id()
          from k
         where c.id = p_new_id and p_name is not null
        returning 1)
      insert into public.conversation_files (conversation_id, file_id, source)
      select p_new_id, f.file_id, f.source
        from (select from c union all select from named) g cross join public.conversation_files f
       where f.conversation_id = v.id order by f.file_id;
      -- Finds this request's fork, or that of a concurrent request with the same key.
      select x.* into t from public.turns x where x.owner = p_owner and x.request_key = p_key;
      if p_name is not null and t.id <> p_turn_id then
        raise exception 'the request key was used for another conversation meanwhile' using errcode = '40001';
      end if;
    end if;
  end if;
  if t.id is not null then
    select c.* into n from public.conversations c where c.id = t.conversation_id;
    v_status := case
      when t.id = p_turn_id then 'forked'
      when t.request_hash <> p_hash then 'conflict_key'
      when n.deleted_at is not null then 'not_found'
      else 'duplicate' end;
  elsif v_status = 'known' then
    v_status := 'duplicate';
  end if;
  return query select 'head', pg_catalog.json_build_object(
    'status', v_status, 'last_seq', v.next_seq - 1, 'base_revision', v_base, 'server_epoch', exai.server_epoch_v1(),
    'conversation', case when v_status in ('forked', 'duplicate') then exai.header_v1(n) end)::text;
end
$function$
;

CREATE OR REPLACE FUNCTION exai.grant_access_v1(p_anonymous boolean DEFAULT NULL::boolean, p_adopted boolean DEFAULT false)
 RETURNS text[]
 LANGUAGE plpgsql
 SET search_path TO 'pg_catalog', 'pg_temp'
 SET lock_timeout TO '4s'
AS $function$
declare
  c_lock constant bigint := 7311701100470826099;
  c_open constant text[] := array['conversations', 'messages', 'turns', 'files', 'conversation_files', 'requests'];
  -- A select of its own, by which Supabase's advisor recognizes that it is evaluated once for a statement.
  c_claims constant text := 'nullif((select current_setting(''request.jwt.claims'', true)), '''')::jsonb';
  c_sub constant text := '(select nullif(' || c_claims || ' ->> ''sub'', ''local''))';
  c_named constant text := '(select not coalesce((' || c_claims || ' ->> ''is_anonymous'')::boolean, false))';
  c_mine constant text := 'conversation_id in (select c.id from public.conversations c where c.owner = ' || c_sub
                          || ' and c.deleted_at is null)';
  v_roles constant text[] := array(
    select r.rolname::text from pg_roles r
     where r.rolname in ('anon', 'authenticated', 'service_role', 'exai_app') order by 1);
  v_everybody constant text := array_to_string('public'::text || v_roles, ', ');
  v_anonymous constant boolean := coalesce(p_anonymous, (
    select bool_or(p.polname = 'exai_own') and not bool_or(p.polname = 'exai_named')
      from pg_policy p where p.polrelid = to_regclass('public.conversations')), false);
  t record;
  p record;
  v_text text;
begin
  perform pg_advisory_xact_lock(c_lock);
  execute 'revoke all on schema exai, monitoring from ' || v_everybody;
  for p in
    select g.role, g.schemas from (values
      ('authenticated', 'exai'), ('service_role', 'monitoring'), ('exai_app', 'exai, monitoring, public')
    ) g(role, schemas) where g.role = any(v_roles)
  loop
    execute format('grant usage on schema %s to %I', p.schemas, p.role);
  end loop;

  for t in
    select c.oid, format('%I.%I', n.nspname, c.relname) as name, n.nspname::text as schema, c.relname::text as table,
           c.relkind, c.relrowsecurity as is_secured, c.relispartition as is_part,
           n.nspname = 'public' and not p_adopted
             and exists (select from exai.adopted_tables a where a.name = c.relname) as is_kept
      from pg_class c join pg_namespace n on n.oid = c.relnamespace
     where c.relkind in ('r', 'p', 'v', 'm', 'f', 'S')
       and (n.nspname in ('exai', 'monitoring') or (n.nspname = 'public' and c.relname = any(c_open)))
     -- Partitions last: a statement that writes locks the partitioned table first.
     order by c.relispartition, c.oid
  loop
    if t.relkind = 'S' then
      execute format('revoke all on sequence %s from %s', t.name, v_everybody);
      for p in select r.role from unnest(v_roles) r(role) where r.role = 'exai_app'
                  or (r.role = 'service_role' and t.schema = 'monitoring') loop
        execute format('grant usage on sequence %s to %I', t.name, p.role);
      end loop;
      continue;
    end if;
    if not t.is_kept then
      execute format('revoke all on %s from %s', t.name, v_everybody);
      if t.relkind in ('r', 'p') and not t.is_secured then
        execute format('alter table %s enable row level security', t.name);
      end if;
    end if;
    for p in
      select g.role, g.rights from (values
        ('authenticated', 'public.' || t.table, 'select'),
        ('authenticated', 'public.requests', 'insert (id, tool, arguments, deadline_at), update (state, read_at)'),
        ('service_role', 'public.' || t.table, 'select'),
        ('service_role', 'monitoring.metrics_raw', 'select, insert'),
        ('service_role', 'monitoring.metrics_processing_log', 'select, insert, update'),
        ('service_role', 'monitoring.erased_owners', 'select'),
        ('service_role', 'monitoring.metrics_1min', 'select'),
        ('service_role', 'monitoring.metrics_1hour', 'select'),
        ('exai_app', 'exai.alembic_version', 'select'),
        ('exai_app', case when t.name <> 'exai.alembic_version' then t.name end, 'select, insert, update, delete')
      ) g(role, name, rights)
       where g.role = any(v_roles) and g.name = t.name and (not t.is_kept or g.role = 'exai_app')
    loop
      execute format('grant %s on %s to %I', p.rights, t.name, p.role);
    end loop;
    continue when t.relkind not in ('r', 'p');

    if t.schema = 'public' and not t.is_kept and (v_anonymous or 'authenticated' <> all(v_roles)) then
      if exists (select from pg_policy x where x.polrelid = t.oid and x.polname = 'exai_named') then
        execute format('drop policy exai_named on %s', t.name);
      end if;
    end if;
    for p in
      select w.name, w.role, format('create policy %I on %s as %s for %s to %I %s', w.name, t.name, w.kind, w.verb,
                                    w.role, w.condition) as text
        from (values
          ('conversations', 'exai_own', 'permissive', 'select', 'authenticated',
           'using (owner = ' || c_sub || ' and deleted_at is null)'),
          ('messages', 'exai_own', 'permissive', 'select', 'authenticated', 'using (' || c_mine || ')'),
          ('turns', 'exai_own', 'permissive', 'select', 'authenticated', 'using (' || c_mine || ')'),
          ('files', 'exai_own', 'permissive', 'select', 'authenticated', 'using (owner = ' || c_sub || ')'),
          ('conversation_files', 'exai_own', 'permissive', 'select', 'authenticated', 'using (' || c_mine || ')'),
          ('requests', 'exai_own', 'permissive', 'select', 'authenticated', 'using (owner = ' || c_sub || ')'),
          ('requests', 'exai_ask', 'permissive', 'insert', 'authenticated',
           'with check (owner = ' || c_sub || ' and state = ''queued'')'),
          -- What else a client could do with a state, the constraint requests_end_check refuses.
          ('requests', 'exai_cancel_or_read', 'permissive', 'update', 'authenticated',
           'using (owner = ' || c_sub || ') with check (owner = ' || c_sub
             || ' and state in (''cancelled'', ''done'', ''failed''))'),
          (case when not v_anonymous then t.table end, 'exai_named', 'restrictive', 'all', 'authenticated',
           'using (' || c_named || ')')
        ) w(of, name, kind, verb, role, condition)
       where t.schema = 'public' and not t.is_kept and w.of = t.table and w.role = any(v_roles)
       union all
      select 'exai_app', 'exai_app', format(
               'create policy exai_app on %s for %s to exai_app using (true)', t.name,
               case t.name when 'exai.alembic_version' then 'select' else 'all' end)
       where 'exai_app' = any(v_roles) and not t.is_part
    loop
      v_text := md5(p.text);
      continue when exists (
        select from pg_policy x
         where x.polrelid = t.oid and x.polname = p.name and obj_description(x.oid, 'pg_policy') = v_text);
      execute format('drop policy if exists %I on %s', p.name, t.name);
      execute p.text;
      execute format('comment on policy %I on %s is %L', p.name, t.name, v_text);
    end loop;
  end loop;

  for t in
    select f.oid::regprocedure::text as name, n.nspname::text as schema, f.proname::text as function
      from pg_proc f join pg_namespace n on n.oid = f.pronamespace
     where n.nspname in ('exai', 'monitoring')
        or (n.nspname = 'public' and f.proname in ('cleanup_orphaned_files', 'exai_page'))
  loop
    execute format('revoke all on routine %s from %s', t.name, v_everybody);
    for p in
      select r.role from unnest(v_roles) r(role)
       where (r.role = 'exai_app' and t.function not in ('grant_access_v1', 'announce_v1'))
          or (r.role = 'authenticated' and t.function in ('exai_page', 'shared_page_v1'))
          or (r.role = 'service_role' and (t.schema = 'monitoring' or t.function = 'cleanup_orphaned_files'))
    loop
      execute format('grant execute on routine %s to %I', t.name, p.role);
    end loop;
  end loop;
  return v_roles;
end
$function$
;

CREATE OR REPLACE FUNCTION exai.has_terms_v1(p_which integer[], p_groups integer[], p_excluded boolean[], p_missing integer)
 RETURNS boolean
 LANGUAGE sql
 IMMUTABLE PARALLEL SAFE
 SET search_path TO 'pg_catalog', 'pg_temp'
AS $function$
  select exists (
    select from unnest(p_groups, p_excluded) with ordinality t(or_group, is_excluded, i)
     group by t.or_group
    having not bool_or(t.is_excluded and t.i = any(p_which))
       and count(*) filter (where not t.is_excluded and t.i = any(p_which))
           >= greatest(count(*) filter (where not t.is_excluded) - p_missing, 1))
$function$
;

CREATE OR REPLACE FUNCTION exai.header_v1(v public.conversations)
 RETURNS json
 LANGUAGE sql
 STABLE
 SET search_path TO 'pg_catalog', 'pg_temp'
AS $function$
select pg_catalog.json_build_object(
  'id', v.id, 'continuation_id', v.continuation_id, 'owner', v.owner, 'title', v.title, 'metadata', v.metadata,
  'tags', v.tags, 'parent_id', v.parent_id, 'parent_seq', v.parent_seq, 'former_name', v.former_name,
  'cut_from', v.cut_from, 'last_seq', v.next_seq - 1,
  'revision', v.revision,
  'expires_at', case when v.expires_at between '0001-01-02 00:00:00+00' and '9999-12-31 00:00:00+00' then v.expires_at end,
  'created_at', v.created_at, 'updated_at', v.updated_at)
$function$
;

CREATE OR REPLACE FUNCTION exai.import_v1(p_owner text, p_continuation_id text, p_new_id uuid, p_turn_id uuid, p_key text, p_hash text, p_header jsonb, p_first_seq bigint, p_roles text[], p_contents text[], p_kinds text[], p_metadata text[], p_times text[], p_digests text[], p_keys text[], p_replaces boolean)
 RETURNS TABLE(part text, data text)
 LANGUAGE plpgsql
 ROWS 1
 SET search_path TO '$user', 'public', 'extensions', 'pg_temp'
 SET lock_timeout TO '2s'
AS $function$
#variable_conflict use_column
declare
  c_max_depth constant integer := 64;
  v_count constant bigint := pg_catalog.cardinality(p_roles);
  v public.conversations;
  w public.conversations;
  t public.turns;
  v_now timestamptz := pg_catalog.clock_timestamp();
  v_status text;
  v_here bigint := 0;
  v_same bigint := 0;
  v_found bigint;
  v_end bigint;
  v_stored bigint := 0;
  v_base bigint;
  v_restored boolean := false;
  v_known bigint[];
  v_header jsonb;
begin
  if p_first_seq = 1 then
    v_header := p_header || pg_catalog.jsonb_build_object('metadata',
      coalesce(p_header -> 'metadata'::text, '{}') || case when (p_header ->> 'updated_at'::text)::timestamptz > v_now
        then pg_catalog.jsonb_build_object('imported', pg_catalog.jsonb_build_object('updated_at', p_header -> 'updated_at'::text))
        else '{}' end);
    perform 1 from public.conversations c where c.owner = p_owner and c.continuation_id = p_continuation_id;
    if not found then
      perform exai.claim_name_v1(p_owner, p_continuation_id, p_new_id, v_header);
    end if;
  end if;
  select c.* into v from public.conversations c
   where c.owner = p_owner and c.continuation_id = p_continuation_id
     for no key update;
  v_base := v.revision;
  select x.* into t from public.turns x where x.owner = p_owner and x.request_key = p_key;
  if t.id is not null and (t.request_hash <> p_hash or t.conversation_id is distinct from v.id) then
    v_status := 'conflict_key';
  elsif v.id is null or (v.deleted_at is not null and p_first_seq > 1) or v.next_seq < p_first_seq then
    v_status := 'gap';
  else
    -- How many of the messages exist under their numbers, and how many of those are equal.
    v_end := least(v.next_seq, p_first_seq + v_count) - 1;
    v_here := v_end - p_first_seq + 1;
    w := v;
    for v_depth in 0 .. c_max_depth loop
      exit when v_end < p_first_seq;
      select pg_catalog.count(*) into v_found
        from unnest(p_roles, p_kinds, p_contents, p_digests) with ordinality u(role, kind, content, digest, ord)
        join public.messages m on m.conversation_id = w.id and m.seq = p_first_seq + u.ord - 1
       where m.seq between p_first_seq and v_end and (w.parent_seq is null or m.seq > w.parent_seq)
         and m.role = u.role and m.kind = u.kind and case when m.content = u.content then true when u.digest is null then false
                  else pg_catalog.encode(pg_catalog.sha256(pg_catalog.convert_to(m.content, 'UTF8')), 'hex') = u.digest end;
      v_same := v_same + v_found;
      exit when w.parent_id is null;
      v_end := least(v_end, w.parent_seq);
      select c.* into w from public.conversations c where c.id = w.parent_id;
    end loop;
    v_status := case when t.id = p_turn_id then 'stored'
                     when v_same < v_here then case when t.id is null then 'exists' else 'duplicate' end
                     when v_here = v_count and (v_count > 0 or v_base > 0) then 'duplicate'
                     else 'stored' end;
    if v_status = 'exists' and v.deleted_at is not null and p_first_seq = 1 and p_replaces then
      v := exai.claim_name_v1(p_owner, p_continuation_id, p_new_id, v_header);
      v_here := 0;
      v_status := 'stored';
    end if;
    if v_status = 'stored' then
      -- The same turn id again comes from the same caller, which lost the reply.
      v_stored := case when t.id = p_turn_id then coalesce(t.last_seq - t.first_seq + 1, 0) else v_count - v_here end;
    end if;
    v_restored := v_status <> 'exists' and v.deleted_at is not null;
  end if;
  if v_status = 'stored' and t.id is null then
    insert into public.turns (id, conversation_id, owner, request_key, request_hash, tool, state, claimed_by,
                              lease_until, first_seq, last_seq, revision, finished_at)
    values (p_turn_id, v.id, p_owner, p_key, p_hash, 'import', 'finished', p_turn_id, v_now,
            case when v_stored > 0 then p_first_seq + v_here end, case when v_stored > 0 then p_first_seq + v_count - 1 end,
            v.revision + 1, v_now);
    if p_keys is not null then
      v_known := exai.known_keys_v1(v.id, p_keys);
    end if;
    insert into public.messages (conversation_id, seq, turn_id, role, kind, content, metadata, message_key, created_at)
    select v.id, p_first_seq + u.ord - 1, p_turn_id, u.role, u.kind,
           case when pg_catalog.starts_with(u.content, E'\x01$exai1$')
             then exai.place_v1(u.content, v.id, p_first_seq + u.ord - 1) else u.content end,
           coalesce(u.metadata::jsonb, '{}'),
           case when u.known is null
                 and pg_catalog.row_number() over (partition by u.key order by u.ord) = 1 then u.key end,
           coalesce(u.at::timestamptz, v_now)
      from unnest(p_roles, p_kinds, p_contents, p_metadata, p_times, p_keys, v_known)
           with ordinality u(role, kind, content, metadata, at, key, known, ord)
     where u.ord > v_here;
  end if;
  if v_restored or (v_status = 'stored' and t.id is null) then
    update public.conversations c
       set next_seq = v.next_seq + case when t.id is null then v_stored else 0 end, revision = v.revision + 1,
           edited_revision = case when v_restored then v.revision + 1 else c.edited_revision end,
           reply_seq = case when v_stored > 0 then p_first_seq + v_count - 1 else c.reply_seq end,
           reply_kind = case when v_stored > 0 then p_kinds[v_count] else c.reply_kind end,
           updated_at = case when v_restored then v_now else c.updated_at end,
           deleted_at = null, changed_xid = pg_catalog.pg_current_xact_id()
     where c.id = v.id
    returning c.* into v;
  end if;
  return query select 'head', pg_catalog.json_build_object(
    'status', v_status, 'stored', v_stored, 'restored', v_restored, 'base_revision', v.revision - 1,
    'revision', v.revision, 'server_epoch', exai.server_epoch_v1(),
    'conversation', case when v.id is not null then exai.header_v1(v) end)::text;
end
$function$
;

CREATE OR REPLACE FUNCTION exai.index_messages_v1(p_limit integer, p_ids uuid[] DEFAULT '{}'::uuid[], p_seqs bigint[] DEFAULT '{}'::bigint[], p_texts text[] DEFAULT '{}'::text[], p_without boolean DEFAULT false, OUT o_indexed integer, OUT o_left bigint)
 RETURNS record
 LANGUAGE plpgsql
 SECURITY DEFINER
 SET search_path TO 'pg_catalog', 'pg_temp'
 SET lock_timeout TO '2s'
AS $function$
declare
  c_lock constant bigint := 7311701100639253092;
  c_look constant integer := 10000;
  c_segment constant integer := 50000;
  c_overlap constant integer := 500;
  c_parts constant integer := 32;
  c_last_segment constant integer := 1023;
begin
  o_indexed := 0;
  o_left := 0;
  if not exists (select from exai.unindexed_messages) then
    return;
  end if;
  if pg_try_advisory_xact_lock(c_lock) then
    with waiting as materialized (
      select u.ctid as at, u.conversation_id, u.first_seq, u.last_seq, u.done from exai.unindexed_messages u limit p_limit),
    -- The foreign key would wait for a session that deletes the conversation, and then fail; locked ones are left for the next call.
    held as materialized (
      select c.id from public.conversations c
       where c.id = any(array(select w.conversation_id from waiting w))
         for key share skip locked),
    queue as materialized (
      select w.at, w.first_seq, w.last_seq, sum(w.last_seq - w.first_seq + 1) over (order by w.at) as running
        from waiting w
       where w.conversation_id in (select h.id from held h)
          or not exists (select from public.conversations c where c.id = w.conversation_id)),
    taken as (
      delete from exai.unindexed_messages u
       using queue q
       where u.ctid = q.at and q.running - (q.last_seq - q.first_seq + 1) < p_limit
      returning u.conversation_id, u.first_seq, u.last_seq, u.done, greatest(q.running - p_limit, 0)::bigint as too_many),
    put_back as (
      insert into exai.unindexed_messages (conversation_id, first_seq, last_seq)
      select t.conversation_id, t.last_seq - t.too_many + 1, t.last_seq from taken t where t.too_many > 0),
    said as materialized (
      select distinct on (m.conversation_id, m.seq) m.conversation_id, m.seq, m.created_at, c.owner, t.done,
             case when not starts_with(m.content, '$exai1$') then m.content
                  when p_without then ''
                  else (select g.text from unnest(p_ids, p_seqs, p_texts) g(id, seq, text)
                         where g.id = m.conversation_id and g.seq = m.seq limit 1) end as content
        from taken t
        join public.conversations c on c.id = t.conversation_id
       cross join lateral (
         select t.conversation_id, 0::bigint as seq, c.created_at, c.title as content
          where t.first_seq = 0 and c.title is not null
          union all
         -- An ordered range uses the primary key even if the planner estimates the conversation to be short.
         (select x.conversation_id, x.seq, x.created_at, x.content
            from public.messages x
           where x.conversation_id = t.conversation_id and x.seq between t.first_seq and t.last_seq - t.too_many
           order by x.seq
           limit p_limit)) m
       order by m.conversation_id, m.seq, t.done),
    waiting_on as (
      insert into exai.unindexed_messages (conversation_id, first_seq, last_seq, done)
      select s.conversation_id, s.seq, s.seq, s.done from said s where s.content is null),
    continued as (
      insert into exai.unindexed_messages (conversation_id, first_seq, last_seq, done)
      select s.conversation_id, s.seq, s.seq, s.done + c_segment from said s where length(s.content) > s.done + c_segment),
    made as materialized (
      select s.conversation_id, s.seq, s.created_at, (least(s.done / c_segment, c_last_segment) * c_parts + w.part)::smallint as part,
             case when length(s.content) > c_segment then w.words || exai.segment_mark_v1(exai.owner_key_v1(s.owner))
                  else w.words end as words
        from said s
       cross join lateral exai.words_v1(
         exai.owner_key_v1(s.owner),
         case when s.done = 0 and octet_length(s.content) <= c_segment then s.content
              else substr(s.content, s.done::integer + 1, c_segment + c_overlap) end) w),
    forgotten as (
      delete from exai.message_words w
       using taken t
       where w.conversation_id = t.conversation_id and w.seq between t.first_seq and t.last_seq - t.too_many
         and not exists (
           select from said s where s.conversation_id = w.conversation_id and s.seq = w.seq and s.done > 0)
         and not exists (
           select from made m where m.conversation_id = w.conversation_id and m.seq = w.seq and m.part = w.part)),
    stored as (
      insert into exai.message_words as w (conversation_id, seq, part, created_at, words)
      select m.conversation_id, m.seq, m.part, m.created_at, m.words from made m
      on conflict (conversation_id, seq, part) do update
         set created_at = excluded.created_at, words = excluded.words
       where (w.created_at, w.words) is distinct from (excluded.created_at, excluded.words))
    select count(s.content)::integer into o_indexed from said s;
    perform gin_clean_pending_list('exai.message_words_words_idx');
  end if;
  select coalesce(sum(q.last_seq - q.first_seq + 1), 0)::bigint into o_left
    from (select u.first_seq, u.last_seq from exai.unindexed_messages u limit c_look) q;
end
$function$
;

CREATE OR REPLACE FUNCTION exai.keep_usage_v1()
 RETURNS trigger
 LANGUAGE plpgsql
 SECURITY DEFINER
 SET search_path TO 'pg_catalog', 'pg_temp'
AS $function$
begin
  insert into exai.purged_turns (owner, started_at, turn_id, conversation_id, continuation_id, tool, state, provider,
                                 model, input_tokens, output_tokens, cached_tokens, reasoning_tokens, cost, is_estimated)
  select t.owner, t.started_at, t.id, t.conversation_id, old.continuation_id, t.tool,
         case when t.state = 'pending' then 'failed' else t.state end, t.provider, t.model, t.input_tokens,
         t.output_tokens, t.cached_tokens, t.reasoning_tokens,
         case when coalesce(t.cost, t.reserved_prompt, t.earlier_cost) is not null
              then coalesce(t.cost, t.reserved_prompt, 0) + coalesce(t.earlier_cost, 0) end,
         t.is_estimated or (t.cost is null and t.reserved is not null)
    from public.turns t
   where t.conversation_id = old.id and t.model is not null
  on conflict do nothing;
  return old;
end
$function$
;

CREATE OR REPLACE FUNCTION exai.known_keys_v1(p_conversation_id uuid, p_keys text[])
 RETURNS bigint[]
 LANGUAGE sql
 SET search_path TO 'pg_catalog', 'pg_temp'
AS $function$
with recursive line(id, parent_id, parent_seq, last_seq, depth) as (
  select c.id, c.parent_id, c.parent_seq, 9223372036854775807, 1
    from public.conversations c
   where c.id = p_conversation_id
  union all
  select c.id, c.parent_id, c.parent_seq, least(l.parent_seq, l.last_seq), l.depth + 1
    from line l
    join public.conversations c on c.id = l.parent_id
   where l.depth <= 64)
select array_agg(
         (select m.seq
            from line l
            join public.messages m on m.conversation_id = l.id and m.message_key = k.key
           where m.seq <= l.last_seq
           order by l.depth
           limit 1) order by k.ord)
  from unnest(p_keys) with ordinality k(key, ord)
$function$
;

CREATE OR REPLACE FUNCTION exai.lexemes_v1(p_text text)
 RETURNS text
 LANGUAGE plpgsql
 IMMUTABLE PARALLEL SAFE
 SET search_path TO 'pg_catalog', 'pg_temp'
 SET standard_conforming_strings TO 'on'
AS $function$
declare
  c_number constant text := '\m[0-9]+e[0-9]+[a-z]';
  v_is_ascii constant boolean := octet_length(p_text) = length(p_text);
  v_text text collate "C" := p_text;
begin
  if not v_is_ascii then
    v_text := replace(encode(convert_to(v_text, 'UTF8'), 'escape'), '\', 'zq');
  end if;
  if v_text ~ c_number then
    v_text := replace(to_tsvector('pg_catalog.simple', regexp_replace(v_text, c_number, 'zqx\&', 'g'))::text, 'zqx', '');
  else
    v_text := to_tsvector('pg_catalog.simple', v_text)::text;
  end if;
  if not v_is_ascii then
    v_text := convert_from(decode(replace(v_text, 'zq', '\'), 'escape'), 'UTF8');
  end if;
  return v_text;
end
$function$
;

CREATE OR REPLACE FUNCTION exai.link_files_v1(p_owner text, p_key text, p_files jsonb)
 RETURNS bigint
 LANGUAGE plpgsql
 SET search_path TO '$user', 'public', 'extensions', 'pg_temp'
 SET lock_timeout TO '2s'
AS $function$
declare
  v_linked bigint;
begin
  insert into public.conversation_files as l (conversation_id, file_id, source)
  select t.conversation_id, f.id, nullif(w.source, 'null')
    from public.turns t
   cross join pg_catalog.jsonb_each(p_files) w(file_id, source)
    join public.files f on f.id = w.file_id::uuid and f.owner = p_owner
   where t.owner = p_owner and t.request_key = p_key
   order by f.id
  on conflict (conversation_id, file_id) do update set source = excluded.source where excluded.source is not null;
  get diagnostics v_linked = row_count;
  return v_linked;
end
$function$
;

CREATE OR REPLACE FUNCTION exai.list_conversations_v1(p_owner text, p_limit integer, p_at timestamp with time zone, p_id uuid, p_deleted boolean, p_tags text[], p_metadata jsonb, p_begin text, p_pattern text, p_since timestamp with time zone, p_until timestamp with time zone, p_prefix text, p_prefix_end text, p_by text, p_ascending boolean, p_bytes bigint)
 RETURNS TABLE(header text, deleted_at timestamp with time zone, newest_kind text)
 LANGUAGE plpgsql
 STABLE ROWS 50
 SET search_path TO 'pg_catalog', 'pg_temp'
AS $function$
declare
  v_time constant text := case p_by when 'created' then 'c.created_at' else 'c.updated_at' end;
  v_order constant text := case when p_ascending then 'asc' else 'desc' end;
begin
  return query execute format($query$
    select case when l.preceding <= $1 then l.header end, l.deleted_at, l.newest_kind
      from (select f.header, f.deleted_at, f.newest_kind, f.at, f.id,
                   sum(octet_length(f.header)) over (order by f.at %2$s, f.id %2$s) - octet_length(f.header) as preceding
              from (select exai.header_v1(c)::text as header, %1$s as at, c.id, c.deleted_at,
                           case when c.reply_seq = c.next_seq - 1 then c.reply_kind end as newest_kind
                      from public.conversations c
                     where c.owner = $2 and (c.deleted_at is not null) = $3 and (%1$s, c.id) %3$s ($4, $5)%4$s
                     order by %1$s %2$s, c.id %2$s
                     limit $6) f) l
     order by l.at %2$s, l.id %2$s
  $query$, v_time, v_order, case when p_ascending then '>' else '<' end,
    concat(
      case when p_prefix is not null then
        ' and c.continuation_id collate "C" >= $7 and c.continuation_id collate "C" <= $8' end,
      case when p_tags is not null then ' and c.tags @> $9' end,
      case when p_metadata is not null then ' and c.metadata @> $10' end,
      case when p_begin is not null then ' and (starts_with(c.continuation_id, $11) or c.title ~ $12)' end,
      case when p_since is not null then ' and c.updated_at >= $13' end,
      case when p_until is not null then ' and c.updated_at < $14' end))
  using p_bytes, p_owner, p_deleted, p_at, p_id, p_limit, p_prefix, p_prefix_end, p_tags, p_metadata, p_begin,
        p_pattern, p_since, p_until;
end
$function$
;

CREATE OR REPLACE FUNCTION exai.live_header_v1(v public.conversations)
 RETURNS json
 LANGUAGE sql
 STABLE
 SET search_path TO 'pg_catalog', 'pg_temp'
AS $function$
select pg_catalog.json_build_object(
  'id', v.id, 'continuation_id', v.continuation_id, 'owner', v.owner, 'title', v.title, 'metadata', v.metadata,
  'tags', v.tags, 'parent_id', v.parent_id, 'parent_seq', v.parent_seq, 'former_name', v.former_name,
  'cut_from', v.cut_from, 'last_seq', v.next_seq - 1,
  'revision', v.revision,
  'expires_at', case when v.expires_at between '0001-01-02 00:00:00+00' and '9999-12-31 00:00:00+00' then v.expires_at end,
  'created_at', v.created_at, 'updated_at', v.updated_at,
  'pending', exai.pending_turns_v1(v.id))
$function$
;

CREATE OR REPLACE FUNCTION exai.message_line_v1(m public.messages)
 RETURNS text
 LANGUAGE sql
 STABLE
 SET search_path TO 'pg_catalog', 'pg_temp'
AS $function$
select pg_catalog.json_build_array(
  m.seq, m.role, m.content,
  greatest(least(m.created_at, '9999-12-31 23:59:59.999999+00'::timestamptz), '0001-01-01 00:00:00+00'::timestamptz),
  m.kind, m.turn_id,
  case when pg_catalog.jsonb_typeof(m.metadata) = 'object' then m.metadata
       else pg_catalog.jsonb_build_object('value', m.metadata) end,
  m.message_key)::text
$function$
;

CREATE OR REPLACE FUNCTION exai.note_change_v1()
 RETURNS trigger
 LANGUAGE plpgsql
 SECURITY DEFINER
 SET search_path TO 'pg_catalog', 'pg_temp'
AS $function$
begin
  -- rekey_conversations_v1 has not changed what clients see.
  if current_setting('exai.rekeying', true) = 'on' then
    return new;
  end if;
  new.revision := old.revision + 1;
  new.edited_revision := new.revision;
  new.changed_xid := pg_current_xact_id();
  new.updated_at := clock_timestamp();
  if (new.owner, new.continuation_id) is distinct from (old.owner, old.continuation_id) then
    insert into exai.removed_conversations as r (owner, continuation_id, revision)
    values (old.owner, old.continuation_id, new.revision)
    on conflict (changed_xid, owner, continuation_id) do update set revision = greatest(r.revision, excluded.revision);
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
  -- rekey_messages_v1 has not changed what the messages say.
  if current_setting('exai.rekeying', true) = 'on' then
    return null;
  end if;
  with recursive touched(id) as (
    select distinct x.conversation_id from changed x
    union
    select c.id from public.conversations c join touched on c.parent_id = touched.id),
  locked as (
    select c.id from public.conversations c where c.id in (select t.id from touched t) order by c.id for no key update)
  update public.conversations c
     set revision = c.revision + 1, edited_revision = c.revision + 1, changed_xid = pg_current_xact_id(),
         updated_at = clock_timestamp()
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
  insert into exai.removed_conversations as r (owner, continuation_id, revision)
  values (old.owner, old.continuation_id, old.revision)
  on conflict (changed_xid, owner, continuation_id) do update set revision = greatest(r.revision, excluded.revision);
  return null;
end
$function$
;

CREATE OR REPLACE FUNCTION exai.note_request_v1()
 RETURNS trigger
 LANGUAGE plpgsql
 SET search_path TO 'pg_catalog', 'pg_temp'
AS $function$
begin
  new.updated_at := clock_timestamp();
  if new.read_at is distinct from old.read_at then
    new.read_at := clock_timestamp();
  end if;
  if new.state = 'cancelled' and old.state <> 'cancelled' then
    perform pg_notify('exai_requests', new.id::text);
  end if;
  return new;
end
$function$
;

CREATE OR REPLACE FUNCTION exai.note_thread_v1()
 RETURNS trigger
 LANGUAGE plpgsql
 SECURITY DEFINER
 SET search_path TO 'pg_catalog', 'pg_temp'
AS $function$
begin
  insert into exai.removed_threads (owner, thread_id) values (old.owner, old.thread_id) on conflict do nothing;
  return null;
end
$function$
;

CREATE OR REPLACE FUNCTION exai.note_truncation_v1()
 RETURNS trigger
 LANGUAGE plpgsql
 SECURITY DEFINER
 SET search_path TO 'pg_catalog', 'pg_temp'
AS $function$
begin
  update public.conversations c
     set revision = c.revision + 1, edited_revision = c.revision + 1, changed_xid = pg_current_xact_id(),
         updated_at = clock_timestamp()
   where c.next_seq > 1;
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
         updated_at = clock_timestamp()
   where c.id = new.conversation_id;
  if new.seq is not null then
    -- A deleted message is inserted again, which also concerns the forks that read it.
    with recursive touched(id) as (
      select c.id from public.conversations c where c.parent_id = new.conversation_id and c.parent_seq >= new.seq
      union
      select c.id from public.conversations c join touched t on c.parent_id = t.id where c.parent_seq >= new.seq),
    locked as (
      select c.id from public.conversations c where c.id in (select t.id from touched t) order by c.id for no key update)
    update public.conversations c
       set revision = c.revision + 1, edited_revision = c.revision + 1, changed_xid = pg_current_xact_id(),
           updated_at = clock_timestamp()
      from locked
     where c.id = locked.id;
  end if;
  new.seq := coalesce(new.seq, v_next);
  return new;
end
$function$
;

CREATE OR REPLACE FUNCTION exai.owner_key_v1(p_owner text)
 RETURNS text
 LANGUAGE sql
 IMMUTABLE PARALLEL SAFE
 SET search_path TO 'pg_catalog', 'pg_temp'
AS $function$
  select pg_catalog.left(
    pg_catalog.encode(pg_catalog.sha256(pg_catalog.convert_to(p_owner, 'UTF8')), 'base64'), 8)
$function$
;

CREATE OR REPLACE FUNCTION exai.patch_metadata_v1(p_metadata jsonb, p_patch jsonb)
 RETURNS jsonb
 LANGUAGE sql
 IMMUTABLE
 SET search_path TO 'pg_catalog', 'pg_temp'
AS $function$
select case when p_patch ? 'whole' then p_patch -> 'whole'
            else (case when jsonb_typeof(p_metadata) = 'object' then p_metadata else '{}' end
                  - array(select jsonb_array_elements_text(coalesce(p_patch -> 'remove', '[]'))))
                 || coalesce(p_patch -> 'values', '{}') end
$function$
;

CREATE OR REPLACE FUNCTION exai.patch_records_v1(p_owner text, p_also jsonb, p_apply boolean)
 RETURNS json
 LANGUAGE plpgsql
 SET search_path TO '$user', 'public', 'extensions', 'pg_temp'
AS $function$
declare
  a record;
  v public.conversations;
  v_found json[] := pg_catalog.array_fill(null::json, array[pg_catalog.jsonb_array_length(p_also)]);
  v_base bigint;
begin
  for a in
    select x.value ->> 'name'::text as name, (x.value ->> 'id'::text)::uuid as id, x.value as patch, x.place::integer as place,
           coalesce(x.value ->> 'expected'::text, x.value ->> 'base'::text)::bigint as expected
      from pg_catalog.jsonb_array_elements(p_also) with ordinality x(value, place)
     order by 1
  loop
    if p_apply then
      v := exai.claim_name_v1(p_owner, a.name, a.id, '{}');
      v_base := v.revision;
      if a.expected = 0 and v.id <> a.id then
        raise exception 'the conversation was made meanwhile' using errcode = '40001';
      end if;
      update public.conversations c
         set metadata = exai.patch_metadata_v1(c.metadata, a.patch), revision = v_base + 1, edited_revision = v_base + 1,
             changed_xid = pg_catalog.pg_current_xact_id(), updated_at = pg_catalog.clock_timestamp()
       where c.id = v.id
      returning c.* into v;
    else
      select c.* into v from public.conversations c
       where c.owner = p_owner and c.continuation_id = a.name and c.deleted_at is null;
      v_base := v.revision;
    end if;
    if v.id is not null then
      v_found[a.place] := pg_catalog.json_build_object(
        'base_revision', v_base, 'revision', v.revision, 'conversation', exai.live_header_v1(v));
    end if;
  end loop;
  return pg_catalog.to_json(v_found);
end
$function$
;

CREATE OR REPLACE FUNCTION exai.pending_turns_v1(p_conversation_id uuid)
 RETURNS json
 LANGUAGE plpgsql
 STABLE
 SET search_path TO 'pg_catalog', 'pg_temp'
AS $function$
declare
  c_most constant integer := 20;
begin
  return (
    select json_agg(json_build_object('tool', t.tool, 'model', t.model, 'since', t.started_at) order by t.started_at, t.id)
      from (select x.id, x.tool, x.model, x.started_at
              from public.turns x
             where x.conversation_id = p_conversation_id and x.state = 'pending' and x.lease_until > clock_timestamp()
             order by x.started_at, x.id
             limit c_most) t);
end
$function$
;

CREATE OR REPLACE FUNCTION exai.place_v1(p_content text, p_conversation_id uuid, p_seq bigint)
 RETURNS text
 LANGUAGE sql
 IMMUTABLE
 SET search_path TO 'pg_catalog', 'pg_temp'
AS $function$
select case when p_content ~ E'^\x01\\$exai1\\$[a-z0-9_-]{1,32}\\$[A-Za-z0-9+/]+={0,2}\\$[A-Za-z0-9+/]{22}==$'
  then substr(p_content, 2, length(p_content) - 25) || p_conversation_id::text || '$' || encode(
    substring(sha256(decode(right(p_content, 24), 'base64') || uuid_send(p_conversation_id) || int8send(p_seq))
              from 1 for 16), 'base64')
  else p_content end
$function$
;

CREATE OR REPLACE FUNCTION exai.prune_threads_v1(p_owner text, p_thread_ids text[], p_keep boolean, p_runs text[])
 RETURNS TABLE(head text)
 LANGUAGE plpgsql
 SET search_path TO 'pg_catalog', 'pg_temp'
 SET lock_timeout TO '2s'
AS $function$
declare
  v_threads constant uuid[] := array(
    select t.id from exai.checkpoint_threads t
     where t.owner = p_owner and t.deleted_at is null
       and case when p_runs is null then t.thread_id = any(p_thread_ids)
                else t.id in (select c.thread from exai.checkpoints c where c.owner = p_owner and c.run_id = any(p_runs)) end
     order by t.id
       for update);
begin
  if p_keep or p_runs is not null then
    perform exai.sweep_threads_v1(v_threads, p_runs);
  else
    perform exai.clear_threads_v1(v_threads);
  end if;
  return query
    update exai.checkpoint_threads t
       set revision = t.revision + 1, changed_xid = pg_current_xact_id(), updated_at = clock_timestamp(),
           deleted_at = case when not p_keep and p_runs is null then clock_timestamp() end
     where t.id = any(v_threads)
    returning exai.thread_head_v1(t);
end
$function$
;

CREATE OR REPLACE FUNCTION exai.put_checkpoint_v1(p_owner text, p_thread_id text, p_ttl_s double precision, p_checkpoint jsonb, p_body bytea, p_metadata bytea, p_channels text[], p_versions text[], p_types text[], p_values bytea[])
 RETURNS TABLE(head text, is_new boolean, stored bigint)
 LANGUAGE plpgsql
 ROWS 1
 SET search_path TO 'pg_catalog', 'pg_temp'
 SET lock_timeout TO '2s'
AS $function$
declare
  v_changed record;
  v_thread exai.checkpoint_threads;
  v_namespace constant text := p_checkpoint ->> 'namespace';
  v_key_name constant text := p_checkpoint ->> 'key_name';
  v_stored bigint;
begin
  select c.thread, c.is_new into v_changed from exai.change_thread_v1(p_owner, p_thread_id, p_ttl_s) c;
  v_thread := v_changed.thread;
  insert into exai.checkpoint_blobs as b (thread, namespace, channel, version, value_type, value, key_name)
  select v_thread.id, v_namespace, g.channel, g.version, g.type, g.value, v_key_name
    from unnest(p_channels, p_versions, p_types, p_values) g(channel, version, type, value)
  on conflict on constraint checkpoint_blobs_pkey do nothing;
  get diagnostics v_stored = row_count;
  insert into exai.checkpoints as c (
    thread, namespace, checkpoint_id, owner, parent_id, run_id, body_type, body, metadata_type, metadata, facts, versions,
    delta_channels, key_name)
  values (
    v_thread.id, v_namespace, p_checkpoint ->> 'checkpoint_id', p_owner, p_checkpoint ->> 'parent_id',
    p_checkpoint ->> 'run_id', p_checkpoint ->> 'body_type', p_body, p_checkpoint ->> 'metadata_type', p_metadata,
    p_checkpoint -> 'facts', p_checkpoint -> 'versions',
    array(select jsonb_array_elements_text(p_checkpoint -> 'delta_channels')), v_key_name)
  on conflict on constraint checkpoints_pkey do update
     set parent_id = excluded.parent_id, run_id = excluded.run_id, body_type = excluded.body_type, body = excluded.body,
         metadata_type = excluded.metadata_type, metadata = excluded.metadata, facts = excluded.facts,
         versions = excluded.versions, delta_channels = excluded.delta_channels, key_name = excluded.key_name,
         bound_to = null;
  return query select exai.thread_head_v1(v_thread), v_changed.is_new, v_stored;
end
$function$
;

CREATE OR REPLACE FUNCTION exai.put_files_v1(p_owner text, p_store text, p_files jsonb, p_data bytea)
 RETURNS TABLE(place integer, id uuid, sha256 text, size_bytes bigint, media_type text, name text, created_at timestamp with time zone, store text, encoding text, storage_path text, created boolean)
 LANGUAGE plpgsql
 ROWS 10
 SET search_path TO '$user', 'public', 'extensions', 'pg_temp'
 SET lock_timeout TO '2s'
AS $function$
#variable_conflict use_column
declare
  v_now timestamptz := pg_catalog.clock_timestamp();
  v_digests constant text[] := array(
    select distinct f ->> 'sha256'::text from pg_catalog.jsonb_array_elements(p_files) f);
  v_known text[];
  v_here text[];
begin
  -- A new content has no row to lock: of concurrent callers with the same one, the later ones wait and find it.
  perform pg_catalog.pg_advisory_xact_lock(k.key)
     from (select distinct pg_catalog.hashtextextended(p_owner || pg_catalog.left(d.sha256, 1), 1702388073) as key
             from pg_catalog.unnest(v_digests) d(sha256)
            where not exists (select from exai.contents c where c.owner = p_owner and c.sha256 = d.sha256)
            order by 1) k;
  perform from exai.contents c where c.owner = p_owner and c.sha256 = any(v_digests) order by c.sha256 for no key update;
  v_known := array(
    select c.sha256 from exai.contents c
     where c.owner = p_owner and c.sha256 = any(v_digests) and c.lost_at is null
       and case c.store when 'postgres' then coalesce(exai.blob_size_v1(c.blob_id) = c.size_bytes, false)
                        else c.store = p_store end
       and (c.store = p_store or not exists (
         select from pg_catalog.jsonb_to_recordset(p_files) g(sha256 text, is_move boolean)
          where g.sha256 = c.sha256 and g.is_move)));
  with given as (
    select distinct on (g.sha256) g.blob_id, g.size_bytes, g.characters, g.at
      from pg_catalog.jsonb_to_recordset(p_files) g(sha256 text, blob_id uuid, size_bytes bigint, characters jsonb, at integer)
     where g.at is not null and g.sha256 <> all(v_known)
     order by g.sha256),
  begun as (
    insert into exai.blobs (id, size_bytes, begun_at) select g.blob_id, g.size_bytes, v_now from given g)
  insert into exai.blob_parts (blob_id, number, characters, data)
  select g.blob_id, n.number, (g.characters -> n.number)::integer,
         substring(p_data from g.at + n.number * 1048576 for least(g.size_bytes - n.number * 1048576, 1048576)::integer)
    from given g
   cross join lateral pg_catalog.generate_series(0, (g.size_bytes - 1)::integer / 1048576) n(number)
   where g.size_bytes > 0;

  insert into exai.contents (owner, sha256, size_bytes, store, storage_path, blob_id, encoding, used_at)
  select distinct on (g.sha256) p_owner, g.sha256, g.size_bytes, p_store, g.storage_path,
         case when p_store = 'postgres' then g.blob_id end, g.encoding, v_now
    from pg_catalog.jsonb_to_recordset(p_files)
         g(sha256 text, size_bytes bigint, storage_path text, blob_id uuid, encoding text)
   where g.sha256 <> all(v_known)
     and case p_store when 'postgres' then coalesce(exai.blob_size_v1(g.blob_id) = g.size_bytes, false)
                      else g.storage_path is not null end
   order by g.sha256
  on conflict (owner, sha256) do update
     set size_bytes = excluded.size_bytes, store = excluded.store, storage_path = excluded.storage_path,
         blob_id = excluded.blob_id, encoding = excluded.encoding, used_at = excluded.used_at, lost_at = null;
  update exai.contents c set used_at = v_now where c.owner = p_owner and c.sha256 = any(v_known);
  v_here := array(
    select c.sha256 from exai.contents c
     where c.owner = p_owner and c.sha256 = any(v_digests)
       and c.used_at = v_now);

  -- Files stored before their content was where it is now.
  update public.files f set storage_path = c.storage_path
    from exai.contents c
   where f.owner = p_owner and f.sha256 = any(v_here) and f.storage_path is distinct from c.storage_path
     and c.owner = p_owner and c.sha256 = f.sha256;
  update public.files f set used_at = v_now
    from pg_catalog.jsonb_to_recordset(p_files) g(sha256 text, media_type text, name text, name_hash text)
   where f.owner = p_owner and f.sha256 = g.sha256 and f.media_type = g.media_type
     and (f.name = g.name or pg_catalog.split_part(f.name, '$', 5) = g.name_hash)
     and f.sha256 = any(v_here);
  insert into public.files (id, owner, sha256, size_bytes, media_type, name, storage_path, created_at, used_at)
  select distinct on (g.sha256, g.name, g.media_type)
         g.file_id, p_owner, g.sha256, g.size_bytes, g.media_type, g.name, c.storage_path, v_now, v_now
    from pg_catalog.jsonb_to_recordset(p_files)
         g(place integer, file_id uuid, sha256 text, size_bytes bigint, media_type text, name text, name_hash text,
           is_keyed boolean)
    join exai.contents c on c.owner = p_owner and c.sha256 = g.sha256
   where g.sha256 = any(v_here) and not exists (
     select from public.files f
      where f.owner = p_owner and f.sha256 = g.sha256
        and (f.id = g.file_id
             or (g.is_keyed is not true and f.media_type = g.media_type
                 and (f.name = g.name or pg_catalog.split_part(f.name, '$', 5) = g.name_hash))))
   order by g.sha256, g.name, g.media_type, g.place;

  return query
    select g.place, f.id, g.sha256, f.size_bytes, f.media_type, f.name, f.created_at, c.store, c.encoding,
           c.storage_path, coalesce(f.id = g.file_id, false)
      from pg_catalog.jsonb_to_recordset(p_files)
           g(place integer, file_id uuid, sha256 text, media_type text, name text, name_hash text, is_keyed boolean)
      left join exai.contents c on c.owner = p_owner and c.sha256 = g.sha256
      left join lateral (
        select x.id, x.size_bytes, x.media_type, x.name, x.created_at
          from public.files x
         where x.owner = p_owner and x.sha256 = g.sha256 and g.sha256 = any(v_here)
           and (x.id = g.file_id
                or (g.is_keyed is not true and x.media_type = g.media_type
                    and (x.name = g.name or pg_catalog.split_part(x.name, '$', 5) = g.name_hash)))
         order by x.created_at, x.id
         limit 1) f on true
     order by g.place;
end
$function$
;

CREATE OR REPLACE FUNCTION exai.put_writes_v1(p_owner text, p_thread_id text, p_ttl_s double precision, p_namespace text, p_checkpoint_id text, p_task_id text, p_task_path text, p_replace boolean, p_key_name text, p_places integer[], p_channels text[], p_types text[], p_values bytea[])
 RETURNS TABLE(head text, is_new boolean, stored bigint)
 LANGUAGE plpgsql
 ROWS 1
 SET search_path TO 'pg_catalog', 'pg_temp'
 SET lock_timeout TO '2s'
AS $function$
declare
  v_changed record;
  v_thread exai.checkpoint_threads;
  v_stored bigint;
begin
  select c.thread, c.is_new into v_changed from exai.change_thread_v1(p_owner, p_thread_id, p_ttl_s) c;
  v_thread := v_changed.thread;
  insert into exai.checkpoint_writes as w (
    thread, namespace, checkpoint_id, task_id, place, task_path, channel, value_type, value, key_name)
  select v_thread.id, p_namespace, p_checkpoint_id, p_task_id, g.place, p_task_path, g.channel, g.type, g.value, p_key_name
    from unnest(p_places, p_channels, p_types, p_values) g(place, channel, type, value)
  on conflict on constraint checkpoint_writes_pkey do update
     set task_path = excluded.task_path, channel = excluded.channel, value_type = excluded.value_type,
         value = excluded.value, key_name = excluded.key_name, bound_to = null
   where p_replace;
  get diagnostics v_stored = row_count;
  return query select exai.thread_head_v1(v_thread), v_changed.is_new, v_stored;
end
$function$
;

CREATE OR REPLACE FUNCTION exai.queue_title_v1()
 RETURNS trigger
 LANGUAGE plpgsql
 SECURITY DEFINER
 SET search_path TO 'pg_catalog', 'pg_temp'
AS $function$
begin
  -- rekey_conversations_v1 queues what it has to.
  if current_setting('exai.rekeying', true) = 'on' then
    return null;
  end if;
  insert into exai.unindexed_messages (conversation_id, first_seq, last_seq)
  values (new.id, 0, case when tg_op = 'UPDATE' and new.owner <> old.owner then new.next_seq - 1 else 0 end);
  return null;
end
$function$
;

CREATE OR REPLACE FUNCTION exai.queue_words_v1()
 RETURNS trigger
 LANGUAGE plpgsql
 SECURITY DEFINER
 SET search_path TO 'pg_catalog', 'pg_temp'
AS $function$
begin
  if tg_op = 'INSERT' then
    insert into exai.unindexed_messages (conversation_id, first_seq, last_seq)
    select x.conversation_id, min(x.seq), max(x.seq) from changed x group by x.conversation_id
    having min(x.seq) is not null;
  elsif tg_op = 'TRUNCATE' then
    insert into exai.unindexed_messages (conversation_id, first_seq, last_seq)
    select w.conversation_id, min(w.seq), max(w.seq) from exai.message_words w group by w.conversation_id;
  else
    insert into exai.unindexed_messages (conversation_id, first_seq, last_seq)
    select x.conversation_id, min(x.seq), max(x.seq)
      from changed x join public.conversations c on c.id = x.conversation_id
     group by x.conversation_id
    having min(x.seq) is not null;
  end if;
  return null;
end
$function$
;

CREATE OR REPLACE FUNCTION exai.read_forward_v1(p_owner text, p_continuation_id text, p_after_seq bigint, p_up_to_seq bigint, p_limit integer, p_budget bigint, p_deleted boolean)
 RETURNS TABLE(part text, seq bigint, role text, content text, created_at timestamp with time zone, kind text, turn_id text, data text, key text)
 LANGUAGE plpgsql
 STABLE ROWS 100
 SET search_path TO 'pg_catalog', 'pg_temp'
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
   where c.owner = p_owner and c.continuation_id = p_continuation_id and (c.deleted_at is null or p_deleted);
  if not found then
    return;
  end if;
  return query select 'head', null::bigint, null, null, null::timestamptz, null, null,
    json_build_object('conversation', exai.header_v1(v), 'server_epoch', exai.server_epoch_v1())::text, null;
  -- From the root down: each conversation and the last number that it holds.
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
        select x.seq, x.role, x.content, x.created_at, x.kind, x.turn_id, x.metadata, x.message_key
          from public.messages x
         where x.conversation_id = v_ids[v_at] and x.seq > v_after and x.seq <= v_ends[v_at]
         order by x.seq
         limit least(c_batch, v_left)
      loop
        v_bytes := v_bytes - octet_length(m.content) - coalesce(octet_length(m.metadata::text), 0);
        if v_bytes < 0 and v_left < p_limit then
          return;
        end if;
        part := 'message'; seq := m.seq; role := m.role; content := m.content; created_at := m.created_at;
        kind := m.kind; turn_id := m.turn_id; data := nullif(m.metadata, '{}'); key := m.message_key;
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

CREATE OR REPLACE FUNCTION exai.read_page_v1(p_owner text, p_continuation_id text, p_before_seq bigint, p_skip bigint, p_limit integer, p_budget bigint, p_char_offset integer)
 RETURNS TABLE(head text, messages bytea)
 LANGUAGE plpgsql
 STABLE ROWS 1
 SET search_path TO 'pg_catalog', 'pg_temp'
 SET "TimeZone" TO 'UTC'
AS $function$
#variable_conflict use_column
declare
  c_max_depth constant integer := 64;
  c_short_bytes constant integer := 65536;
  c_char_bytes constant integer := 4;
  v public.conversations;
  r public.messages;
  v_head text;
  v_before bigint;
  v_first bigint;
  v_left integer := p_limit;
  v_bytes bigint := p_budget;
  v_line text;
  v_chars integer;
begin
  select c.* into v from public.conversations c
   where c.owner = p_owner and c.continuation_id = p_continuation_id and c.deleted_at is null;
  if not found then
    return;
  end if;
  v_head := json_build_object('conversation', exai.live_header_v1(v), 'server_epoch', exai.server_epoch_v1())::text;
  v_before := least(p_before_seq, v.next_seq - p_skip);
  if v.parent_id is null and p_char_offset = 0 then
    v_first := greatest(v_before - p_limit, 1);
    return query
      select v_head, convert_to(p.lines, 'UTF8')
        from (select string_agg(x.line, E',\n') as lines, count(x.line) as found
                from (select case when octet_length(m.content) <= c_short_bytes then pg_catalog.json_build_array(
  m.seq, m.role, m.content,
  greatest(least(m.created_at, '9999-12-31 23:59:59.999999+00'::timestamptz), '0001-01-01 00:00:00+00'::timestamptz),
  m.kind, m.turn_id,
  case when pg_catalog.jsonb_typeof(m.metadata) = 'object' then m.metadata
       else pg_catalog.jsonb_build_object('value', m.metadata) end,
  m.message_key)::text end as line
                        from public.messages m
                       where m.conversation_id = v.id and m.seq >= v_first and m.seq < v_before
                       order by m.seq) x) p
       where p.found = v_before - v_first and coalesce(octet_length(p.lines), 0) <= p_budget;
    if found then
      return;
    end if;
  end if;
  return query select v_head, null::bytea;
  <<walk>>
  for v_depth in 0 .. c_max_depth loop
    for r in
      select m.* from public.messages m
       where m.conversation_id = v.id and m.seq < v_before
       order by m.seq desc
       limit v_left
    loop
      if octet_length(r.content) > v_bytes or p_char_offset > 0 then
        exit walk when v_left < p_limit;
        v_chars := char_length(r.content);
        -- A content that is not stored as it was given has no parts; the caller cuts it.
        if not starts_with(r.content, '$exai1$') and not starts_with(r.content, '$exai0$') then
          r.content := substr(r.content, p_char_offset + 1, (p_budget / c_char_bytes)::integer);
        end if;
        return query select json_build_object('chars', v_chars)::text, convert_to(exai.message_line_v1(r), 'UTF8');
        return;
      end if;
      v_line := exai.message_line_v1(r);
      v_bytes := v_bytes - octet_length(v_line);
      exit walk when v_bytes < 0 and v_left < p_limit;
      return query select null::text, convert_to(v_line, 'UTF8');
      v_left := v_left - 1;
    end loop;
    exit walk when v_left <= 0 or v.parent_id is null;
    v_before := least(v_before, v.parent_seq + 1);
    select c.* into v from public.conversations c where c.id = v.parent_id;
  end loop;
end
$function$
;

CREATE OR REPLACE FUNCTION exai.read_query_v1(p_key text, p_query text)
 RETURNS TABLE(term tsquery, or_group integer, is_excluded boolean, label text, needle text, words text[])
 LANGUAGE plpgsql
 IMMUTABLE ROWS 3
 SET search_path TO 'pg_catalog', 'pg_temp'
 SET standard_conforming_strings TO 'on'
AS $function$
#variable_conflict use_variable
declare
  v_query text collate "C" := translate(
    p_query, E'\u201C\u201D\u201E\u201F\uFF02\u00A0\u1680\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200A'
    '\u2028\u2029\u202F\u205F\u3000', '"""""                  ');
  v_all_excluded constant boolean := regexp_replace(v_query, '-"[^"]*("|$)', '-x', 'g') !~ '(^|\s)(--|[^-\s])';
  v_part record;
  v_chunk record;
  v_last bigint;
begin
  or_group := 0;
  for v_part in
    select m[1] = '-' or m[3] = '-' as is_excluded, m[2] as quoted, m[4] as typed
      from regexp_matches(v_query, '(?:(-)(?!-))?"([^"]*)(?:"|$)|(?:(-)(?!-))?([^\s"]+)', 'g') m
  loop
    if v_part.typed ~ '^[oO][rR]$' then
      or_group := or_group + 1;
      continue;
    end if;
    is_excluded := coalesce(v_part.is_excluded, false) and not v_all_excluded;
    label := btrim(coalesce(v_part.quoted, v_part.typed));
    term := null;
    v_last := null;
    for v_chunk in
      with units as materialized (
        select u.place, u.chunk, u.word, u.form, count(*) filter (where u.form = 'pair') over (partition by u.chunk) as pairs
          from exai.units_v1(label) u),
      used as (
        select u.place, u.chunk, u.word,
               quote_literal(p_key || u.word) || case when u.form = 'tail' or v_part.typed ~ '\*$' and u.place = (
                 select max(x.place) from units x) then ':*' else '' end as lexeme,
               lag(u.place) over (partition by u.chunk order by u.place) as before
          from units u
         where u.form in ('word', 'pair') or u.form = 'tail' and u.pairs = 0)
      select min(u.place) as first, max(u.place) as last, array_agg(u.word order by u.place) as words,
             string_agg(case when u.before is null then '' else ' <' || u.place - u.before || '> ' end || u.lexeme, ''
                        order by u.place) as sequence,
             (select quote_literal(p_key || w.word) from units w where w.chunk = u.chunk and w.form = 'whole' limit 1)
             as whole
        from used u
       group by u.chunk
       order by 1
    loop
      if v_last is null then
        term := concat_ws(' | ', v_chunk.whole, '(' || v_chunk.sequence || ')')::tsquery;
        words := v_chunk.words;
      else
        term := tsquery_phrase(
          term, concat_ws(' | ', v_chunk.whole, '(' || v_chunk.sequence || ')')::tsquery, (v_chunk.first - v_last)::integer);
        words := words || v_chunk.words;
      end if;
      v_last := v_chunk.last;
    end loop;
    if term is not null then
      needle := exai.strip_marks_v1((select w from unnest(words) w order by length(w) desc limit 1));
      return next;
    end if;
  end loop;
end
$function$
;

CREATE OR REPLACE FUNCTION exai.rekey_content_v1(p_owner text, p_old text, p_new text, p_size_bytes bigint, p_store text, p_storage_path text, p_blob_id uuid, p_encoding text)
 RETURNS bigint
 LANGUAGE plpgsql
 SET search_path TO '$user', 'public', 'extensions', 'pg_temp'
 SET lock_timeout TO '2s'
AS $function$
declare
  v_count bigint;
begin
  perform pg_catalog.pg_advisory_xact_lock(k.key)
     from (select distinct pg_catalog.hashtextextended(p_owner || pg_catalog.left(d.sha256, 1), 1702388073) as key
             from unnest(array[p_old, p_new]) d(sha256)
            where not exists (select from exai.contents c where c.owner = p_owner and c.sha256 = d.sha256)
            order by 1) k;
  perform from exai.contents c where c.owner = p_owner and c.sha256 in (p_old, p_new) order by c.sha256 for no key update;
  if not exists (
    select from exai.contents c
     where c.owner = p_owner and c.sha256 = p_new and c.lost_at is null
       and (c.store <> 'postgres' or coalesce(exai.blob_size_v1(c.blob_id) = c.size_bytes, false)))
  then
    if p_blob_id is not null then
      -- An empty content has no part, so that nothing has made its blob.
      insert into exai.blobs (id, size_bytes) select p_blob_id, 0 where p_size_bytes = 0 on conflict do nothing;
      if p_new is distinct from pg_catalog.encode(pg_catalog.sha256(coalesce(
           (select pg_catalog.string_agg(p.data, '' order by p.number) from exai.blob_parts p where p.blob_id = p_blob_id),
           '')), 'hex')
      then
        return null;
      end if;
    end if;
    insert into exai.contents (owner, sha256, size_bytes, store, storage_path, blob_id, encoding)
    values (p_owner, p_new, p_size_bytes, p_store, p_storage_path, p_blob_id, p_encoding)
    on conflict (owner, sha256) do update
       set size_bytes = excluded.size_bytes, store = excluded.store, storage_path = excluded.storage_path,
           blob_id = excluded.blob_id, encoding = excluded.encoding, lost_at = null;
  end if;
  update public.files f
     set sha256 = p_new, size_bytes = p_size_bytes, storage_path = c.storage_path
    from exai.contents c
   where f.owner = p_owner and f.sha256 = p_old and c.owner = p_owner and c.sha256 = p_new;
  get diagnostics v_count = row_count;
  -- An encrypted text is bound to the former digest; it is made again from the document.
  insert into exai.content_texts (owner, sha256, source, text, note, made_at)
  select x.owner, p_new, x.source, x.text, x.note, x.made_at
    from exai.content_texts x
   where x.owner = p_owner and x.sha256 = p_old and not pg_catalog.starts_with(x.note, '$exai1$')
  on conflict do nothing;
  update exai.contents c set used_at = pg_catalog.clock_timestamp()
   where c.owner = p_owner and c.sha256 in (p_old, p_new);
  return v_count;
end
$function$
;

CREATE OR REPLACE FUNCTION exai.rekey_conversations_v1(p_ids uuid[], p_versions text[], p_titles text[], p_metadata text[])
 RETURNS bigint
 LANGUAGE plpgsql
 SET search_path TO '$user', 'public', 'extensions', 'pg_temp'
 SET lock_timeout TO '2s'
AS $function$
declare
  v_count bigint;
begin
  -- Until the end of the transaction, which is this statement; the triggers ask for it.
  perform pg_catalog.set_config('exai.rekeying', 'on', true);
  with old as materialized (
    select c.id, g.title, g.metadata, coalesce(pg_catalog.starts_with(c.title, '$exai1$'), false) as is_encrypted
      from unnest(p_ids, p_versions, p_titles, p_metadata) g(id, version, title, metadata)
      join public.conversations c on c.id = g.id and c.xmin::text = g.version
     order by c.id
       for no key update of c skip locked),
  changed as (
    update public.conversations c
       set title = o.title, metadata = o.metadata::jsonb
      from old o
     where c.id = o.id
    returning c.id, o.is_encrypted <> coalesce(pg_catalog.starts_with(c.title, '$exai1$'), false) as is_other),
  queued as (
    insert into exai.unindexed_messages (conversation_id, first_seq, last_seq) select c.id, 0, 0 from changed c where c.is_other)
  select pg_catalog.count(*) into v_count from changed;
  perform pg_catalog.set_config('exai.rekeying', 'off', true);
  return v_count;
end
$function$
;

CREATE OR REPLACE FUNCTION exai.rekey_messages_v1(p_ids uuid[], p_seqs bigint[], p_versions text[], p_contents text[], p_metadata text[])
 RETURNS bigint
 LANGUAGE plpgsql
 SET search_path TO '$user', 'public', 'extensions', 'pg_temp'
 SET lock_timeout TO '2s'
AS $function$
declare
  v_count bigint;
begin
  -- Until the end of the transaction, which is this statement; the triggers ask for it.
  perform pg_catalog.set_config('exai.rekeying', 'on', true);
  with u as materialized (
    select g.id, g.seq, g.version, g.metadata,
           case when pg_catalog.starts_with(g.content, E'\x01$exai1$') then exai.place_v1(g.content, g.id, g.seq)
                else g.content end as content
      from unnest(p_ids, p_seqs, p_versions, p_contents, p_metadata) g(id, seq, version, content, metadata)),
  old as materialized (
    select m.conversation_id, m.seq, pg_catalog.starts_with(m.content, '$exai1$') as is_encrypted
      from u join public.messages m on m.conversation_id = u.id and m.seq = u.seq and m.xmin::text = u.version
     order by m.conversation_id, m.seq
       for no key update of m skip locked),
  changed as (
    update public.messages m
       set content = u.content, metadata = coalesce(u.metadata::jsonb, '{}')
      from u join old o on o.conversation_id = u.id and o.seq = u.seq
     where m.conversation_id = u.id and m.seq = u.seq
    returning m.conversation_id, m.seq, o.is_encrypted <> pg_catalog.starts_with(m.content, '$exai1$') as is_other),
  queued as (
    insert into exai.unindexed_messages (conversation_id, first_seq, last_seq)
    select c.conversation_id, pg_catalog.min(c.seq), pg_catalog.max(c.seq) from changed c where c.is_other
     group by c.conversation_id)
  select pg_catalog.count(*) into v_count from changed;
  perform pg_catalog.set_config('exai.rekeying', 'off', true);
  return v_count;
end
$function$
;

CREATE OR REPLACE FUNCTION exai.requeue_words_v1()
 RETURNS trigger
 LANGUAGE plpgsql
 SECURITY DEFINER
 SET search_path TO 'pg_catalog', 'pg_temp'
AS $function$
begin
  -- rekey_messages_v1 queues what it has to.
  if current_setting('exai.rekeying', true) = 'on' then
    return null;
  end if;
  insert into exai.unindexed_messages (conversation_id, first_seq, last_seq)
  values (new.conversation_id, new.seq, new.seq);
  return null;
end
$function$
;

CREATE OR REPLACE FUNCTION exai.reserve_v1(p_owner text, p_turn_id uuid, p_conversation_id uuid, p_claim jsonb, p_bytes bigint, p_most bigint)
 RETURNS void
 LANGUAGE plpgsql
 SET search_path TO 'pg_catalog', 'pg_temp'
AS $function$
declare
  c_lock_class constant bigint := 5272091;
  v_files bigint;
  v_prompt numeric;
  v_needed numeric;
  b record;
begin
  perform pg_catalog.pg_advisory_xact_lock(pg_catalog.hashtextextended(p_owner, c_lock_class));
  select coalesce(pg_catalog.sum(f.size_bytes), 0)::bigint into v_files
    from public.conversation_files l join public.files f on f.id = l.file_id
   where l.conversation_id = p_conversation_id;
  v_prompt := (p_claim ->> 'prompt_usd'::text)::numeric
              + (p_claim ->> 'byte_usd'::text)::numeric * least(p_bytes + v_files, p_most)::numeric;
  v_needed := v_prompt + (p_claim ->> 'answer_usd'::text)::numeric;
  for b in
    select x.o_name, x.o_limit, x.o_spent, x.o_reserved, x.o_resets_at
      from exai.budgets_v1(p_owner, p_conversation_id, p_claim, pg_catalog.clock_timestamp()) x
     where x.o_spent + x.o_reserved + v_needed > x.o_limit
     order by x.o_resets_at desc nulls first
     limit 1
  loop
    raise exception using errcode = 'EXB01', message = 'budget', detail = pg_catalog.json_build_object(
      'budget', b.o_name, 'limit_usd', b.o_limit, 'spent_usd', b.o_spent, 'reserved_usd', b.o_reserved,
      'needed_usd', v_needed, 'resets_at', b.o_resets_at)::text;
  end loop;
  update public.turns x set reserved = v_needed, reserved_prompt = v_prompt where x.id = p_turn_id;
end
$function$
;

CREATE OR REPLACE FUNCTION exai.rewind_v1(p_owner text, p_continuation_id text, p_cut_id uuid, p_turn_id uuid, p_key text, p_hash text, p_to bigint, p_drop bigint, p_expected bigint, p_limit integer, p_budget bigint)
 RETURNS TABLE(part text, seq bigint, role text, content text, created_at timestamp with time zone, kind text, turn_id text, data text, key text)
 LANGUAGE plpgsql
 ROWS 2
 SET search_path TO '$user', 'public', 'extensions', 'pg_temp'
 SET lock_timeout TO '2s'
AS $function$
#variable_conflict use_column
declare
  c_max_depth constant integer := 64;
  c_kept_chars constant integer := 460;
  v public.conversations;
  s public.conversations;
  w public.conversations;
  t public.turns;
  m record;
  v_now timestamptz;
  v_last bigint;
  v_to bigint;
  v_depth integer := 0;
  v_below integer;
  v_status text;
  v_base bigint;
  v_before bigint;
  v_left integer := p_limit;
  v_bytes bigint := p_budget;
begin
  select c.* into v from public.conversations c
   where c.owner = p_owner and c.continuation_id = p_continuation_id
     for update;
  v_base := v.revision;
  v_last := v.next_seq - 1;
  v_to := coalesce(p_to, greatest(v_last - p_drop, 0));
  if v.id is not null then
    select x.* into t from public.turns x where x.owner = p_owner and x.request_key = p_key;
  end if;
  if v.id is null or (v.deleted_at is not null and t.id is null) then
    v_status := 'not_found';
  elsif t.id is not null then
    v_status := case when t.request_hash <> p_hash or t.conversation_id <> v.id then 'conflict_key'
                     when v.deleted_at is not null then 'not_found' else 'duplicate' end;
    v_to := (t.metadata ->> 'to'::text)::bigint;
    v_last := (t.metadata ->> 'last'::text)::bigint;
    select c.* into s from public.conversations c where c.id = (t.metadata ->> 'cut'::text)::uuid;
  elsif p_expected is not null and p_expected <> v.revision then
    v_status := 'conflict_revision';
  elsif v_to > v_last then
    v_status := 'out_of_range';
  else
    v_status := case when v_to = v_last then 'unchanged' else 'rewound' end;
  end if;

  if v_status = 'rewound' then
    v_now := pg_catalog.clock_timestamp();
    -- Locks the forks that read what is cut, and finds how many of them follow on each other.
    with recursive touched(id, depth) as (
      select c.id, 1 from public.conversations c where c.parent_id = v.id and c.parent_seq > v_to
      union
      select c.id, x.depth + 1 from public.conversations c join touched x on c.parent_id = x.id
       where c.parent_seq > v_to),
    locked as (
      select c.id from public.conversations c where c.id in (select x.id from touched x) order by c.id for no key update)
    select coalesce(pg_catalog.max(x.depth), 0) into v_below from touched x join locked l on l.id = x.id;
    select c.* into s from public.conversations c
     where c.parent_id = v.id and c.parent_seq = v_last and c.cut_from[1] = v.id and c.deleted_at is not null
     order by c.deleted_at desc, c.id
     limit 1;
    w := v;
    while w.parent_id is not null loop
      v_depth := v_depth + 1;
      select c.* into w from public.conversations c where c.id = w.parent_id;
    end loop;
    if v_depth + v_below + 1 >= c_max_depth then
      v_status := 'too_deep';
    end if;
  end if;
  if v_status = 'rewound' then
    if s.id is null then
      insert into public.conversations as c (id, owner, continuation_id, former_name, cut_from, title, metadata, tags, next_seq,
                                             revision, edited_revision, created_at, updated_at, deleted_at)
      values (p_cut_id, p_owner, pg_catalog.left(p_continuation_id, c_kept_chars) || '~' || p_cut_id, p_continuation_id,
              v.id || coalesce(v.cut_from, '{}'), v.title, v.metadata, v.tags, v.next_seq, 1, 1, v.created_at, v_now, v_now)
      returning c.* into s;
      insert into public.conversation_files (conversation_id, file_id, source)
      select s.id, f.file_id, f.source from public.conversation_files f where f.conversation_id = v.id order by f.file_id;
    end if;
    update public.conversations c
       set parent_id = case when v_to <= v.parent_seq then v.parent_id when v_to > 0 then v.id end,
           parent_seq = case when v_to <= v.parent_seq then v.parent_seq when v_to > 0 then v_to end,
           deleted_at = v_now, updated_at = v_now
     where c.id = s.id
    returning c.* into s;
    with moved as (
      delete from public.messages x where x.conversation_id = v.id and x.seq > v_to
      returning x.seq, x.turn_id, x.role, x.kind, x.content, x.metadata, x.message_key, x.created_at)
    insert into public.messages (conversation_id, seq, turn_id, role, kind, content, metadata, message_key, created_at)
    select s.id, x.seq, x.turn_id, x.role, x.kind, x.content, x.metadata, x.message_key, x.created_at
      from moved x
     order by x.seq;
    update public.turns x set conversation_id = s.id
     where x.conversation_id = v.id and greatest(x.last_seq, x.reply_last_seq) > v_to;
    update exai.answers a set conversation_id = s.id where a.conversation_id = v.id and a.seq > v_to;
    -- A trigger increases their revisions.
    update public.conversations c set parent_id = s.id
     where c.parent_id = v.id and c.parent_seq > v_to and c.id <> s.id;
    -- Triggers have changed its revision as well.
    update public.conversations c
       set next_seq = v_to + 1, revision = c.revision + 1, edited_revision = c.revision + 1,
           parent_seq = case when c.parent_id is not null then least(c.parent_seq, v_to) end,
           reply_seq = case when c.reply_seq <= v_to then c.reply_seq end,
           reply_kind = case when c.reply_seq <= v_to then c.reply_kind end,
           changed_xid = pg_catalog.pg_current_xact_id(), updated_at = v_now
     where c.id = v.id
    returning c.* into v;
  end if;
  if v_status in ('rewound', 'unchanged') then
    insert into public.turns (id, conversation_id, owner, request_key, request_hash, tool, state, claimed_by, lease_until,
                              revision, metadata, finished_at)
    values (p_turn_id, v.id, p_owner, p_key, p_hash, 'conversation_rewind', 'finished', p_turn_id,
            pg_catalog.clock_timestamp(), v.revision,
            pg_catalog.jsonb_build_object('cut', s.id, 'to', v_to, 'last', v_last), pg_catalog.clock_timestamp())
    on conflict do nothing;
    if not found then
      raise exception 'the request key was used for another conversation meanwhile' using errcode = '40001';
    end if;
  end if;

  if v_status in ('rewound', 'duplicate') and s.id is not null then
    w := s;
    v_before := v_last + 1;
    <<walk>>
    for v_level in 0 .. c_max_depth loop
      for m in
        select x.seq, x.role, x.content, x.created_at, x.kind, x.turn_id, x.metadata, x.message_key
          from public.messages x
         where x.conversation_id = w.id and x.seq < v_before and x.seq > v_to
         order by x.seq desc
         limit v_left
      loop
        v_bytes := v_bytes - pg_catalog.octet_length(m.content) - coalesce(pg_catalog.octet_length(m.metadata::text), 0);
        exit walk when v_bytes < 0 and v_left < p_limit;
        part := 'cut'; seq := m.seq; role := m.role; content := m.content; created_at := m.created_at; kind := m.kind;
        turn_id := m.turn_id; data := nullif(m.metadata, '{}'); key := m.message_key;
        return next;
        v_left := v_left - 1;
      end loop;
      exit walk when v_left <= 0 or w.parent_id is null or w.parent_seq <= v_to;
      v_before := least(v_before, w.parent_seq + 1);
      select c.* into w from public.conversations c where c.id = w.parent_id;
    end loop;
  end if;
  return query select 'head', null::bigint, null, null, null::timestamptz, null, null, pg_catalog.json_build_object(
    'status', case when t.id = p_turn_id and v_status = 'duplicate' then 'rewound' else v_status end,
    'base_revision', case when v_status = 'rewound' then v_base else v.revision end, 'revision', v.revision,
    'last_seq', v_last, 'cut_count', case when v_status in ('rewound', 'duplicate') then v_last - v_to else 0 end,
    'cut', case when v_status in ('rewound', 'duplicate') and s.id is not null then exai.header_v1(s) end, 'server_epoch', exai.server_epoch_v1(),
    'conversation', case when v_status in ('rewound', 'unchanged', 'duplicate') then exai.live_header_v1(v) end)::text, null;
end
$function$
;

CREATE OR REPLACE FUNCTION exai.rows_read_v1()
 RETURNS bigint
 LANGUAGE plpgsql
 SET search_path TO 'pg_catalog', 'pg_temp'
AS $function$
declare
  c_tables constant oid[] := array[
    'public.conversations'::regclass, 'public.messages'::regclass, 'public.turns'::regclass,
    'exai.message_words'::regclass, 'exai.unindexed_messages'::regclass];
begin
  -- Rows fetched through an index count for the index, those of a bitmap or of a scan from end to end for the table.
  return (
    select sum(pg_stat_get_xact_tuples_fetched(r.id)
               + case when r.is_table then pg_stat_get_xact_tuples_returned(r.id) else 0 end)
      from (select t.id, true as is_table from unnest(c_tables) t(id)
             union all
            select i.indexrelid, false from pg_index i where i.indrelid = any(c_tables)) r);
end
$function$
;

CREATE OR REPLACE FUNCTION exai.search_page_v1(p_owner text, p_query tsquery, p_found tsquery, p_long tsquery, p_terms tsquery[], p_groups integer[], p_excluded boolean[], p_missing integer, p_waiting_ids uuid[], p_waiting_seqs bigint[], p_waiting_ats timestamp with time zone[], p_waiting_words tsvector[], p_waiting_which text[], p_ids uuid[], p_up_to bigint[], p_role text, p_since timestamp with time zone, p_until timestamp with time zone, p_tool text, p_model text, p_tags text[], p_metadata jsonb, p_rank numeric, p_after_id uuid, p_after_seq bigint, p_as_of timestamp with time zone, p_ranked integer, p_limit integer)
 RETURNS TABLE(continuation_id text, conversation_id uuid, title text, seq bigint, role text, kind text, created_at timestamp with time zone, rank numeric, tool text, model text, as_of timestamp with time zone, content text, has boolean[])
 LANGUAGE plpgsql
 STABLE ROWS 20
 SET search_path TO 'pg_catalog', 'pg_temp'
 SET plan_cache_mode TO 'force_generic_plan'
 SET jit TO 'off'
AS $function$
#variable_conflict use_column
declare
  -- Matches whose words would take too long to read are not ranked.
  c_large constant integer := 100000;
begin
  return query
  with matches as not materialized (
  select n.conversation_id, n.seq, n.created_at, n.at, n.words, n.which
    from (
      select w.conversation_id, w.seq, w.created_at, w.ctid as at, null::pg_catalog.tsvector as words,
             null::integer[] as which
        from exai.message_words w
       where w.words operator(pg_catalog.@@) p_found
         -- Outdated words. Most conversations have no waiting messages, which one hash lookup determines.
         and (w.conversation_id not in (select u.conversation_id from exai.unindexed_messages u)
              or not exists (
                select from exai.unindexed_messages u
                 where u.conversation_id = w.conversation_id and w.seq between u.first_seq and u.last_seq))
       union all
      select l.conversation_id, l.seq, l.created_at, (pg_catalog.array_agg(l.at order by l.i))[1], null,
             pg_catalog.array_agg(distinct l.i)
        from (
          select x.conversation_id, x.seq, x.created_at, x.at, t.i::integer as i
            from pg_catalog.unnest(p_terms) with ordinality t(term, i)
           -- `offset 0` prevents flattening, so that each term is looked up in the index.
           cross join lateral (
             select w.conversation_id, w.seq, w.created_at, w.ctid as at
               from exai.message_words w
              where w.words operator(pg_catalog.@@) (t.term operator(pg_catalog.&&) p_long) offset 0) x
           where p_long is not null
             and not exists (
               select from exai.unindexed_messages u
                where u.conversation_id = x.conversation_id and x.seq between u.first_seq and u.last_seq)) l
       group by l.conversation_id, l.seq, l.created_at
      having exai.has_terms_v1(pg_catalog.array_agg(distinct l.i), p_groups, p_excluded, p_missing)
       union all
      select u.id, u.seq, u.created_at, null, u.words, u.which
        from (
          select x.id, x.seq, x.created_at, x.words, pg_catalog.string_to_array(x.which, ',')::integer[] as which
            from rows from (
                   pg_catalog.unnest(p_waiting_ids), pg_catalog.unnest(p_waiting_seqs), pg_catalog.unnest(p_waiting_ats),
                   pg_catalog.unnest(p_waiting_words), pg_catalog.unnest(p_waiting_which))
                 x(id, seq, created_at, words, which)) u
       where exai.has_terms_v1(u.which, p_groups, p_excluded, p_missing)) n
   where (p_ids is null or (n.seq > 0 and n.seq <= p_up_to[pg_catalog.array_position(p_ids, n.conversation_id)])
          or (n.seq = 0 and n.conversation_id = p_ids[1]))
     and (p_since is null or n.created_at >= p_since)
     and (p_until is null or n.created_at < p_until)
     and (p_as_of is null or n.created_at <= p_as_of)),
  newest as materialized (
    select m.conversation_id, m.seq, m.created_at, m.at, m.words, m.which
      from matches m
     where m.seq > 0 or (p_role is null and p_tool is null and p_model is null)
     order by m.created_at desc, m.conversation_id desc, m.seq desc
     limit p_ranked + 1),
  counted as materialized (select count(*) <= p_ranked as are_few from newest),
  seen as materialized (
    select m.conversation_id, m.seq, m.created_at, m.at, m.words, m.which
      from (select w.* from newest w order by w.created_at desc, w.conversation_id desc, w.seq desc limit p_ranked) m
     cross join lateral (-- The conversation of the message m (or title: seq 0) if it passes the filters of a search by this owner. Tags and
-- metadata are those of the conversation. With p_ids the message is shared by a fork, whose parent may have been deleted.
  select c.continuation_id, c.title
    from public.conversations c
   where c.id = m.conversation_id and c.owner = p_owner and (p_ids is not null or c.deleted_at is null)
     and (p_tags is null or c.tags operator(pg_catalog.@>) p_tags)
     and (p_metadata is null or c.metadata operator(pg_catalog.@>) p_metadata)
     and ((p_role is null and p_tool is null and p_model is null) or exists (
       select from (
         -- An ordered range uses the primary key even if the planner estimates the conversation to be short.
         select x.seq, x.role, x.turn_id from public.messages x
          where x.conversation_id = m.conversation_id and x.seq >= m.seq
          order by x.seq
          limit 1) y
         left join public.turns t on t.id = y.turn_id
        where y.seq = m.seq and (p_role is null or y.role = p_role)
          and (p_tool is null or t.tool = p_tool) and (p_model is null or t.model = p_model)))) s
     where not (select c.are_few from counted c)),
  found as materialized (
    select n.conversation_id, n.seq, n.created_at, n.at, n.words, n.which, coalesce(p_ids[1], n.conversation_id) as shown_id
      from newest n
     where (select c.are_few from counted c)
     union all
    select s.conversation_id, s.seq, s.created_at, s.at, s.words, s.which, coalesce(p_ids[1], s.conversation_id)
      from seen s
     where (select count(*) from seen) = p_ranked
     union all
    (select m.conversation_id, m.seq, m.created_at, m.at, m.words, m.which, coalesce(p_ids[1], m.conversation_id)
       from (
         select m.conversation_id, m.seq, m.created_at, m.at, m.words, m.which
           from matches m
          where m.seq > 0 or (p_role is null and p_tool is null and p_model is null)
          order by m.created_at desc, m.conversation_id desc, m.seq desc) m
      cross join lateral (-- The conversation of the message m (or title: seq 0) if it passes the filters of a search by this owner. Tags and
-- metadata are those of the conversation. With p_ids the message is shared by a fork, whose parent may have been deleted.
  select c.continuation_id, c.title
    from public.conversations c
   where c.id = m.conversation_id and c.owner = p_owner and (p_ids is not null or c.deleted_at is null)
     and (p_tags is null or c.tags operator(pg_catalog.@>) p_tags)
     and (p_metadata is null or c.metadata operator(pg_catalog.@>) p_metadata)
     and ((p_role is null and p_tool is null and p_model is null) or exists (
       select from (
         -- An ordered range uses the primary key even if the planner estimates the conversation to be short.
         select x.seq, x.role, x.turn_id from public.messages x
          where x.conversation_id = m.conversation_id and x.seq >= m.seq
          order by x.seq
          limit 1) y
         left join public.turns t on t.id = y.turn_id
        where y.seq = m.seq and (p_role is null or y.role = p_role)
          and (p_tool is null or t.tool = p_tool) and (p_model is null or t.model = p_model)))) s
      where not (select c.are_few from counted c) and (select count(*) from seen) < p_ranked
      order by m.created_at desc, m.conversation_id desc, m.seq desc
      limit p_ranked)),
  worded as (
    select f.conversation_id, f.seq, f.created_at, f.shown_id, f.which,
           coalesce(f.words, (
             select w.words from exai.message_words w
              where w.ctid = f.at and (p_missing > 0 or pg_column_size(w.words) <= c_large)
           )) as words
      from found f
     where f.seq > 0 or f.conversation_id not in (select m.shown_id from found m where m.seq > 0)),
  termed as (
    select w.conversation_id, w.seq, w.created_at, w.shown_id,
           round(coalesce(ts_rank(w.words, p_query, 1), 0)::numeric, 6) as rank,
           case when p_missing > 0 then coalesce(w.which, (
             select array_agg(t.i::integer) from unnest(p_terms) with ordinality t(term, i) where w.words @@ t.term
           )) end as which
      from worded w),
  -- The ranks of the segments of a long message are combined.
  joined as (
    select t.conversation_id, t.seq, t.created_at, t.shown_id, max(t.rank) as rank,
           case when p_missing > 0 then (
             select array_agg(i = any(string_to_array(string_agg(array_to_string(t.which, ','), ','), ',')::integer[]) order by i)
               from generate_subscripts(p_terms, 1) i) end as has
      from termed t
     group by t.conversation_id, t.seq, t.created_at, t.shown_id),
  ranked as materialized (
    select j.conversation_id, j.seq, j.created_at, j.shown_id, j.has,
           j.rank + coalesce((select count(*) from unnest(j.has) h where h), 0) as rank
      from joined j),
  page as (
    select m.conversation_id, m.seq, m.created_at, m.shown_id, m.rank, m.has
      from (
        select x.conversation_id, x.seq, x.created_at, x.shown_id, x.rank, x.has
          from ranked x
         where p_rank is null or (x.rank, x.conversation_id, x.seq) < (p_rank, p_after_id, p_after_seq)
         order by x.rank desc, x.conversation_id desc, x.seq desc) m
     cross join lateral (-- The conversation of the message m (or title: seq 0) if it passes the filters of a search by this owner. Tags and
-- metadata are those of the conversation. With p_ids the message is shared by a fork, whose parent may have been deleted.
  select c.continuation_id, c.title
    from public.conversations c
   where c.id = m.conversation_id and c.owner = p_owner and (p_ids is not null or c.deleted_at is null)
     and (p_tags is null or c.tags operator(pg_catalog.@>) p_tags)
     and (p_metadata is null or c.metadata operator(pg_catalog.@>) p_metadata)
     and ((p_role is null and p_tool is null and p_model is null) or exists (
       select from (
         -- An ordered range uses the primary key even if the planner estimates the conversation to be short.
         select x.seq, x.role, x.turn_id from public.messages x
          where x.conversation_id = m.conversation_id and x.seq >= m.seq
          order by x.seq
          limit 1) y
         left join public.turns t on t.id = y.turn_id
        where y.seq = m.seq and (p_role is null or y.role = p_role)
          and (p_tool is null or t.tool = p_tool) and (p_model is null or t.model = p_model)))) s
     order by m.rank desc, m.conversation_id desc, m.seq desc
     limit p_limit)
  select c.continuation_id, p.conversation_id, c.title, p.seq, m.role,
         case when p.seq = 0 then 'title' else m.kind end, p.created_at, p.rank, t.tool, t.model,
         coalesce(p_as_of, greatest(statement_timestamp(), (select max(f.created_at) from found f))),
         coalesce(m.content, c.title), p.has
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
$function$
;

CREATE OR REPLACE FUNCTION exai.search_unindexed_v1(p_owner text, p_terms tsquery[], p_groups integer[], p_excluded boolean[], p_needles text[], p_missing integer, p_ids uuid[], p_up_to bigint[], p_since timestamp with time zone, p_until timestamp with time zone, p_as_of timestamp with time zone, p_work bigint, p_stop timestamp with time zone, OUT o_ids uuid[], OUT o_seqs bigint[], OUT o_ats timestamp with time zone[], OUT o_words tsvector[], OUT o_which text[], OUT o_unread bigint, OUT o_work bigint)
 RETURNS record
 LANGUAGE plpgsql
 STABLE
 SET search_path TO 'pg_catalog', 'pg_temp'
 SET plan_cache_mode TO 'force_generic_plan'
AS $function$
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
$function$
;

CREATE OR REPLACE FUNCTION exai.search_v1(p_owner text, p_query text, p_continuation_id text, p_role text, p_since timestamp with time zone, p_until timestamp with time zone, p_tool text, p_model text, p_tags text[], p_metadata jsonb, p_level integer, p_rank numeric, p_after_id uuid, p_after_seq bigint, p_as_of timestamp with time zone, p_ranked integer, p_limit integer)
 RETURNS TABLE(continuation_id text, conversation_id uuid, title text, seq bigint, role text, kind text, created_at timestamp with time zone, rank numeric, tool text, model text, as_of timestamp with time zone, excerpt text, cut_before boolean, cut_after boolean, words text[], level integer, missing text[], unread bigint, rows_read bigint)
 LANGUAGE plpgsql
 STABLE ROWS 20
 SET search_path TO 'pg_catalog', 'pg_temp'
 SET plan_cache_mode TO 'force_generic_plan'
 SET jit TO 'off'
AS $function$
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
$function$
;

CREATE OR REPLACE FUNCTION exai.segment_mark_v1(p_key text)
 RETURNS tsvector
 LANGUAGE sql
 IMMUTABLE PARALLEL SAFE
 SET search_path TO 'pg_catalog', 'pg_temp'
AS $function$
  select pg_catalog.array_to_tsvector(array[p_key operator(pg_catalog.||) '+'])
$function$
;

CREATE OR REPLACE FUNCTION exai.server_epoch_v1()
 RETURNS text
 LANGUAGE sql
 STABLE
 SET search_path TO 'pg_catalog', 'pg_temp'
AS $function$
select pg_catalog.concat_ws(' ',
  extract(epoch from pg_catalog.pg_postmaster_start_time()),
  case when pg_catalog.current_setting('server_version_num')::integer >= 150000
       then extract(epoch from pg_catalog.pg_stat_get_bgwriter_stat_reset_time()) end,
  pg_catalog.pg_relation_filenode('public.conversations'::regclass),
  pg_catalog.pg_relation_filenode('public.messages'::regclass))
$function$
;

CREATE OR REPLACE FUNCTION exai.shared_page_v1(p_id uuid, p_before_seq bigint, p_limit integer)
 RETURNS SETOF public.messages
 LANGUAGE plpgsql
 STABLE SECURITY DEFINER ROWS 50
 SET search_path TO 'pg_catalog', 'pg_temp'
AS $function$
declare
  c_max_depth constant integer := 64;
  c_budget constant bigint := 4194304;
  v public.conversations;
  r public.messages;
  v_before bigint := p_before_seq;
  v_left integer := p_limit;
  v_bytes bigint := c_budget;
begin
  select c.* into v from public.conversations c
   where c.id = p_id and c.deleted_at is null
     and c.owner = nullif(current_setting('request.jwt.claims', true), '')::jsonb ->> 'sub';
  if not found then
    return;
  end if;
  v_before := least(v_before, v.next_seq);
  for v_depth in 0 .. c_max_depth loop
    for r in
      select m.* from public.messages m
       where m.conversation_id = v.id and m.seq < v_before
       order by m.seq desc
       limit v_left
    loop
      v_bytes := v_bytes - octet_length(r.content) - coalesce(octet_length(r.metadata::text), 0);
      exit when v_bytes < 0 and v_left < p_limit;
      return next r;
      v_left := v_left - 1;
    end loop;
    exit when v_left <= 0 or v_bytes < 0 or v.parent_id is null;
    v_before := least(v_before, v.parent_seq + 1);
    select c.* into v from public.conversations c where c.id = v.parent_id;
  end loop;
end
$function$
;

CREATE OR REPLACE FUNCTION exai.similar_answers_v1(p_owner text, p_embedding text, p_rest text, p_vector real[], p_least double precision, p_age_s double precision, p_rows integer, p_limit integer)
 RETURNS TABLE(o_similarity double precision, o_question text, o_content text, o_metadata text, o_turn_metadata text, o_created_at timestamp with time zone, o_conversation_id uuid, o_turn_id uuid, o_question_seq bigint, o_question_kind text, o_seq bigint, o_kind text)
 LANGUAGE plpgsql
 STABLE ROWS 5
 SET search_path TO 'pg_catalog', 'pg_temp'
AS $function$
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
$function$
;

CREATE OR REPLACE FUNCTION exai.spaced_units_v1(p_spaced text)
 RETURNS TABLE(place bigint, chunk bigint, word text, form text)
 LANGUAGE plpgsql
 IMMUTABLE PARALLEL SAFE ROWS 300
 SET search_path TO 'pg_catalog', 'pg_temp'
 SET standard_conforming_strings TO 'on'
AS $function$
declare
  c_together constant text collate "C" :=
    E'[\u0E01-\u0E3A\u0E40-\u0E4E\u0E81-\u0EBD\u0EC0-\u0ECE\u0EDC-\u0EDF\u1000-\u103F\u1050-\u108F\u109A-'
    '\u109D\u1100-\u11FF\u1780-\u17D3\u17D7\u17DC-\u17DD\u1950-\u19C9\u1A20-\u1A7C\u1B00-\u1B4C\u3005-\u3007'
    '\u3021-\u302F\u3031-\u3035\u3038-\u303C\u3041-\u309A\u309D-\u309F\u30A1-\u30FA\u30FC-\u318E\u31A0-\u31BF'
    '\u31F0-\u31FF\u3400-\u4DBF\u4E00-\u9FFF\uA960-\uA97C\uA980-\uA9C0\uA9E0-\uA9EF\uA9FA-\uA9FE\uAA60-\uAA76'
    '\uAA7A-\uAA7F\uAC00-\uD7FB\uF900-\uFAFF\U00016FE0-\U00018CFF\U0001AFF0-\U0001B2FF\U00020000-\U0003FFFD]';
  v_text text collate "C" := p_spaced;
  v_has_together boolean;
begin
  v_has_together := octet_length(v_text) > length(v_text) and v_text ~ c_together;
  if v_has_together then
    v_text := regexp_replace(v_text, '(' || c_together || '+)', ' \1 ', 'g');
  elsif position(E'\x01' in v_text) = 0 then
    return query
    select w.n, w.n, left(w.word, 128), 'word'
      from string_to_table(v_text, ' ') with ordinality w(word, n)
     where w.word <> '';
    return;
  end if;
  return query
  with chunks as (
    select w.n, v_has_together and w.word ~ c_together as is_together,
           case when w.word ~ E'(?:\x01[^\x01]+){10}' or w.word ~ E'^[0-9a-f\x01]{20,}$'
                then replace(w.word, E'\x01', '') else w.word end as word
      from string_to_table(v_text, ' ') with ordinality w(word, n)
     where w.word <> ''),
  letters as (
    select c.n, p.i, c.is_together, p.word,
           case when c.is_together then lead(p.word) over (partition by c.n order by p.i) end as next
      from chunks c
     cross join lateral string_to_table(c.word, case when c.is_together then null else E'\x01' end)
           with ordinality p(word, i)
     where p.word <> ''),
  pieces as (
    select row_number() over (order by l.n, l.i) as place, l.n, left(l.word || coalesce(l.next, ''), 128) as word,
           case when not l.is_together then 'word' when l.next is null then 'tail' else 'pair' end as form
      from letters l)
  select p.place, p.n, p.word, p.form from pieces p
   union all
  select p.place, c.n, left(replace(c.word, E'\x01', ''), 128), 'whole'
    from chunks c
    join (select x.n, min(x.place) as first, max(x.place) as last from pieces x group by x.n) e on e.n = c.n
   cross join lateral (values (e.first), (e.last)) p(place)
   where not c.is_together and c.word ~ E'[^\x01]\x01[^\x01]';
end
$function$
;

CREATE OR REPLACE FUNCTION exai.spaced_v1(p_text text)
 RETURNS text
 LANGUAGE plpgsql
 IMMUTABLE PARALLEL SAFE
 SET search_path TO 'pg_catalog', 'pg_temp'
 SET standard_conforming_strings TO 'on'
AS $function$
declare
  c_data constant text := '[A-Za-z0-9+/_=-]{250}';
  v_text text collate "C" := p_text;
begin
  if octet_length(v_text) > 1000 and v_text ~ (c_data || c_data || c_data) then
    v_text := regexp_replace(v_text, '(' || c_data || ')' || c_data || c_data || '[A-Za-z0-9+/_=-]*', '\1 ', 'g');
  end if;
  v_text := exai.fold_v1(v_text, true);
  if octet_length(v_text) = length(v_text) then
    -- Single spaces, of which there are most, are left as they are: that takes half the time.
    v_text := regexp_replace(v_text, E' ?[^a-z0-9\x01 ][^a-z0-9\x01]*|  [^a-z0-9\x01]*', ' ', 'g');
  else
    v_text := regexp_replace(
      v_text,
      E'[\x02-/:-`{-\x7F\u0080-\u00A9\u00AB-\u00B1\u00B4\u00B6-\u00B8\u00BB\u00BF\u00D7\u00F7\u02C2-\u02C5\u02D2'
      '-\u02DF\u02E5-\u02EB\u02ED\u02EF-\u02FF\u0375\u037E\u0384-\u0385\u0387\u03F6\u0482\u055A-\u055F\u0589-'
      '\u058F\u05BE\u05C0\u05C3\u05C6\u05F3-\u060F\u061B-\u061F\u066A-\u066D\u06D4\u06DD-\u06DE\u06E9\u06FD-'
      '\u06FE\u0700-\u070F\u07F6-\u07F9\u07FE-\u07FF\u0830-\u083E\u085E\u0888\u0890-\u0891\u08E2\u0964-\u0965'
      '\u0970\u09F2-\u09F3\u09FA-\u09FB\u09FD\u0A76\u0AF0-\u0AF1\u0B70\u0BF3-\u0BFA\u0C77\u0C7F\u0C84\u0D4F'
      '\u0D79\u0DF4\u0E3F\u0E4F\u0E5A-\u0E5B\u0F01-\u0F17\u0F1A-\u0F1F\u0F34\u0F36\u0F38\u0F3A-\u0F3D\u0F85'
      '\u0FBE-\u0FC5\u0FC7-\u0FDA\u104A-\u104F\u109E-\u109F\u10FB\u1360-\u1368\u1390-\u1399\u1400\u166D-\u166E'
      '\u1680\u169B-\u169C\u16EB-\u16ED\u1735-\u1736\u17D4-\u17D6\u17D8-\u17DB\u1800-\u180A\u180E\u1940-\u1945'
      '\u19DE-\u19FF\u1A1E-\u1A1F\u1AA0-\u1AA6\u1AA8-\u1AAD\u1B5A-\u1B6A\u1B74-\u1B7E\u1BFC-\u1BFF\u1C3B-\u1C3F'
      '\u1C7E-\u1C7F\u1CC0-\u1CC7\u1CD3\u1FBD\u1FBF-\u1FC1\u1FCD-\u1FCF\u1FDD-\u1FDF\u1FED-\u1FEF\u1FFD-\u206F'
      '\u207A-\u207E\u208A-\u208E\u20A0-\u20C0\u2100-\u2101\u2103-\u2106\u2108-\u2109\u2114\u2116-\u2118\u211E-'
      '\u2123\u2125\u2127\u2129\u212E\u213A-\u213B\u2140-\u2144\u214A-\u214D\u214F\u218A-\u244A\u249C-\u24E9'
      '\u2500-\u2775\u2794-\u2BFF\u2CE5-\u2CEA\u2CF9-\u2CFC\u2CFE-\u2CFF\u2D70\u2E00-\u2E2E\u2E30-\u3004\u3008-'
      '\u3020\u3030\u3036-\u3037\u303D-\u303F\u309B-\u309C\u30A0\u30FB\u3190-\u3191\u3196-\u319F\u31C0-\u31E3'
      '\u3200-\u321E\u322A-\u3247\u3250\u3260-\u327F\u328A-\u32B0\u32C0-\u33FF\u4DC0-\u4DFF\uA490-\uA4C6\uA4FE-'
      '\uA4FF\uA60D-\uA60F\uA673\uA67E\uA6F2-\uA716\uA720-\uA721\uA789-\uA78A\uA828-\uA82B\uA836-\uA839\uA874-'
      '\uA877\uA8CE-\uA8CF\uA8F8-\uA8FA\uA8FC\uA92E-\uA92F\uA95F\uA9C1-\uA9CD\uA9DE-\uA9DF\uAA5C-\uAA5F\uAA77-'
      '\uAA79\uAADE-\uAADF\uAAF0-\uAAF1\uAB5B\uAB6A-\uAB6B\uABEB\uE000-\uF8FF\uFB29\uFBB2-\uFBC2\uFD3E-\uFD4F'
      '\uFDCF\uFDFC-\uFDFF\uFE10-\uFE19\uFE30-\uFE6B\uFEFF-\uFF0F\uFF1A-\uFF20\uFF3B-\uFF40\uFF5B-\uFF65\uFFE0-'
      '\uFFFD\U00010100-\U00010102\U00010137-\U0001013F\U00010179-\U00010189\U0001018C-\U000101FC\U0001039F'
      '\U000103D0\U0001056F\U00010857\U00010877-\U00010878\U0001091F\U0001093F\U00010A50-\U00010A58\U00010A7F'
      '\U00010AC8\U00010AF0-\U00010AF6\U00010B39-\U00010B3F\U00010B99-\U00010B9C\U00010EAD\U00010F55-\U00010F59'
      '\U00010F86-\U00010F89\U00011047-\U0001104D\U000110BB-\U000110C1\U000110CD\U00011140-\U00011143\U00011174'
      '-\U00011175\U000111C5-\U000111C8\U000111CD\U000111DB\U000111DD-\U000111DF\U00011238-\U0001123D\U000112A9'
      '\U0001144B-\U0001144F\U0001145A-\U0001145D\U000114C6\U000115C1-\U000115D7\U00011641-\U00011643\U00011660'
      '-\U0001166C\U000116B9\U0001173C-\U0001173F\U0001183B\U00011944-\U00011946\U000119E2\U00011A3F-\U00011A46'
      '\U00011A9A-\U00011A9C\U00011A9E-\U00011AA2\U00011C41-\U00011C45\U00011C70-\U00011C71\U00011EF7-'
      '\U00011EF8\U00011FD5-\U00011FFF\U00012470-\U00012474\U00012FF1-\U00012FF2\U00013430-\U00013438\U00016A6E'
      '-\U00016A6F\U00016AF5\U00016B37-\U00016B3F\U00016B44-\U00016B45\U00016E97-\U00016E9A\U00016FE2\U0001BC9C'
      '\U0001BC9F-\U0001BCA3\U0001CF50-\U0001D164\U0001D16A-\U0001D16C\U0001D173-\U0001D17A\U0001D183-'
      '\U0001D184\U0001D18C-\U0001D1A9\U0001D1AE-\U0001D241\U0001D245\U0001D300-\U0001D356\U0001D6C1\U0001D6DB'
      '\U0001D6FB\U0001D715\U0001D735\U0001D74F\U0001D76F\U0001D789\U0001D7A9\U0001D7C3\U0001D800-\U0001D9FF'
      '\U0001DA37-\U0001DA3A\U0001DA6D-\U0001DA74\U0001DA76-\U0001DA83\U0001DA85-\U0001DA8B\U0001E14F\U0001E2FF'
      '\U0001E95E-\U0001E95F\U0001ECAC\U0001ECB0\U0001ED2E\U0001EEF0-\U0001FBFF\U000E0001-\U000E007F\U000F0000-'
      '\U0010FFFD]+',
      ' ', 'g');
  end if;
  return btrim(v_text, ' ');
end
$function$
;

CREATE OR REPLACE FUNCTION exai.spaced_words_v1(p_key text, p_spaced text)
 RETURNS tsvector
 LANGUAGE plpgsql
 IMMUTABLE PARALLEL SAFE
 SET search_path TO 'pg_catalog', 'pg_temp'
AS $function$
declare
  c_places constant integer := 16000;
  c_same constant integer := 220;
  -- A script without spaces, an empty part of a word, a word that is cut.
  c_others constant text collate "C" :=
    E'[\u0E01-\u1DFF\u2000-\U0010FFFF]|(?:^| )\x01|\x01(?:[\x01 ]|$)|[^ ]{129}';
  c_unsplit constant text collate "C" := E'(?:\x01[^\x01 ]+){10}|(?:^| )[0-9a-f\x01]{20,}(?: |$)';
  v_text text collate "C" := p_spaced;
  v_bare text collate "C";
  v_wholes text collate "C";
  v_lexemes text collate "C";
  v_words tsvector;
  v_gaps integer;
begin
  if v_text = '' or v_text ~ c_others
     or position('zq' in v_text) > 0 and (octet_length(v_text) > length(v_text) or v_text ~ '[0-9]e[0-9]')
  then
    return null;
  end if;
  if position(E'\x01' in v_text) > 0 then
    if v_text ~ c_unsplit then
      select string_agg(case when w.word ~ c_unsplit then replace(w.word, E'\x01', '') else w.word end, ' ' order by w.n)
        into v_text
        from string_to_table(v_text, ' ') with ordinality w(word, n);
    end if;
    -- Each piece but the first begins with a word of several parts; its place is one more than the gaps before it.
    select string_agg(
             ' ''' || replace(p.word, E'\x01', '') || ''':' || p.gaps + 1 || ','
             || p.gaps + 1 + length(p.word) - length(replace(p.word, E'\x01', '')), '')
      into v_wholes
      from (
        select split_part(x.piece, ' ', 1) as word, x.i,
               sum(length(x.piece) - length(translate(x.piece, E' \x01', ''))) over (
                 order by x.i rows between unbounded preceding and 1 preceding) as gaps
          from string_to_table(regexp_replace(v_text, E'[^\x01 ]+\x01[^ ]+', E'\x02\\&', 'g'), E'\x02')
               with ordinality x(piece, i)) p
     where p.i > 1;
    v_text := replace(v_text, E'\x01', ' ');
  end if;
  v_gaps := length(v_text) - length(replace(v_text, ' ', ''));
  if v_gaps >= c_places then
    return null;
  end if;
  v_lexemes := concat(exai.lexemes_v1(v_text), v_wholes);
  if octet_length(v_text) > length(v_text) then
    v_bare := exai.strip_marks_v1(v_text);
    if v_bare <> v_text then
      if v_bare ~ '^ |  | $' or position('zq' in v_bare) > 0 then
        return null;
      end if;
      v_lexemes := concat(v_lexemes, ' ', exai.lexemes_v1(v_bare), exai.strip_marks_v1(v_wholes));
    end if;
  end if;
  v_words := replace(' ' || v_lexemes, ' ''', ' ''' || p_key)::tsvector;
  if v_gaps >= c_same and exists (select from unnest(v_words) w where cardinality(w.positions) > c_same) then
    return null;
  end if;
  return v_words;
end
$function$
;

CREATE OR REPLACE FUNCTION exai.store_turn_v1(p_owner text, p_continuation_id text, p_new_id uuid, p_turn_id uuid, p_key text, p_hash text, p_tool text, p_title text, p_state text, p_lease_s double precision, p_provider text, p_model text, p_roles text[], p_contents text[], p_kinds text[], p_metadata text[], p_files text[], p_expected bigint, p_keys text[], p_times text[], p_header jsonb, OUT o_status text, OUT o_conversation_id uuid, OUT o_turn_id uuid, OUT o_base bigint, OUT o_revision bigint, OUT o_first bigint, OUT o_last bigint, OUT o_now timestamp with time zone, OUT o_detail text, OUT o_made boolean, OUT o_seqs bigint[])
 RETURNS record
 LANGUAGE plpgsql
 SET search_path TO '$user', 'public', 'extensions', 'pg_temp'
AS $function$
declare
  v_count bigint := pg_catalog.cardinality(p_roles);
  v_next bigint;
  v_deleted timestamptz;
  v_claimed boolean := false;
  v_hash text;
  v_owned uuid;
  v_known bigint[];
  v_grows boolean := true;
  v_cut boolean;
  v_patch constant jsonb := p_header -> 'patch'::text;
  v_metadata jsonb;
  n public.conversations;
begin
  o_made := false;
  -- The files of a repeated request may have been deleted since.
  if pg_catalog.cardinality(p_files) > 0
     and not exists (select from public.turns t where t.owner = p_owner and t.request_key = p_key) then
    select pg_catalog.string_agg(w.id, ', ') into o_detail from pg_catalog.unnest(p_files) w(id)
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
    o_now := pg_catalog.clock_timestamp();
    with t as (
      insert into public.turns (id, conversation_id, owner, request_key, request_hash, tool, state, claimed_by,
                                lease_until, provider, model, first_seq, last_seq, revision, started_at, finished_at)
      values (p_turn_id, p_new_id, p_owner, p_key, p_hash, p_tool, p_state, p_turn_id,
              o_now + pg_catalog.make_interval(secs => p_lease_s), p_provider, p_model,
              case when v_count > 0 then 1 end, nullif(v_count, 0), 1, o_now,
              case when p_state = 'finished' then o_now end)
      on conflict do nothing
      returning 1),
    c as (
      insert into public.conversations (id, owner, continuation_id, title, metadata, tags, next_seq, revision,
                                        created_at, updated_at)
      select p_new_id, p_owner, p_new_id::text, p_title, coalesce(p_header -> 'metadata'::text, '{}'),
             array(select pg_catalog.jsonb_array_elements_text(coalesce(p_header -> 'tags'::text, '[]'))),
             1 + v_count, 1, coalesce((p_header ->> 'created_at'::text)::timestamptz, o_now),
             least((p_header ->> 'updated_at'::text)::timestamptz, o_now)
        from t
      returning 1),
    m as (
      insert into public.messages (conversation_id, seq, turn_id, role, kind, content, metadata, message_key, created_at)
      select p_new_id, u.ord, p_turn_id, u.role, u.kind,
             case when pg_catalog.starts_with(u.content, E'\x01$exai1$')
               then exai.place_v1(u.content, p_new_id, u.ord) else u.content end,
             coalesce(u.metadata::jsonb, '{}'), u.key,
             coalesce(u.at::timestamptz, o_now)
        from c cross join unnest(p_roles, p_kinds, p_contents, p_metadata, p_keys, p_times)
             with ordinality u(role, kind, content, metadata, key, at, ord)),
    f as (
      insert into public.conversation_files (conversation_id, file_id)
      select p_new_id, w.id::uuid from c cross join pg_catalog.unnest(p_files) w(id) order by 2
      on conflict do nothing)
    select exists (select from t) into v_claimed;
    o_made := v_claimed;
  else
    select c.id, c.next_seq, c.revision, c.deleted_at
      into o_conversation_id, v_next, o_base, v_deleted
      from public.conversations c
     where c.owner = p_owner and c.continuation_id = p_continuation_id
       for no key update;
    if not found or v_deleted is not null then
      o_status := case when found then 'deleted' else 'not_found' end;
      if p_header -> 'create'::text is distinct from 'true' then
        return;
      end if;
      select t.conversation_id into v_owned from public.turns t where t.owner = p_owner and t.request_key = p_key;
      if found and not exists (
          select from public.conversations c
           where c.id = v_owned and c.continuation_id = p_continuation_id and c.deleted_at is null) then
        -- The conversation that this request changed is gone; it does not make another one.
        o_status := case when v_owned = o_conversation_id
                           or exists (select from public.conversations c where c.id = v_owned and c.former_name = p_continuation_id)
                         then 'deleted' else 'conflict_key' end;
        return;
      end if;
      if p_expected > 0 then
        o_status := 'conflict_revision';
        o_revision := 0;
        return;
      end if;
      select p.o_status, p.o_name, p.o_revision into o_status, o_detail, o_revision
        from exai.check_patches_v1(p_owner, coalesce(p_header -> 'metadata'::text, '{}'), 0, p_header) p;
      if o_status is not null then
        return;
      end if;
      n := exai.claim_name_v1(p_owner, p_continuation_id, p_new_id,
                              p_header || pg_catalog.jsonb_build_object('title', p_title));
      o_conversation_id := n.id;
      o_base := n.revision;
      v_next := n.next_seq;
      o_made := n.id = p_new_id;
    end if;
    if p_expected is null or p_expected = (case when o_made then 0 else o_base end) then
      o_now := pg_catalog.clock_timestamp();
      if pg_catalog.cardinality(p_keys) > 0 and not o_made then
        v_known := exai.known_keys_v1(o_conversation_id, p_keys);
        select pg_catalog.count(*) filter (where k.seq is null),
               pg_catalog.array_agg(coalesce(k.seq, v_next - 1 + k.place) order by k.ord)
          into v_count, o_seqs
          from (select u.seq, u.ord,
                       pg_catalog.count(*) filter (where u.seq is null) over (order by u.ord) as place
                  from pg_catalog.unnest(v_known) with ordinality u(seq, ord)) k;
      end if;
      v_grows := v_count > 0 or p_keys is null or o_made or v_patch is not null;
      if p_header is not null and not o_made then
        select c.metadata into v_metadata from public.conversations c where c.id = o_conversation_id;
        select p.o_status, p.o_name, p.o_revision into o_status, o_detail, o_revision
          from exai.check_patches_v1(p_owner, v_metadata, o_base, p_header) p;
        if o_status is not null
           and not exists (select from public.turns t where t.owner = p_owner and t.request_key = p_key) then
          return;
        end if;
        o_status := null;
        o_detail := null;
      end if;
      with t as (
        insert into public.turns (id, conversation_id, owner, request_key, request_hash, tool, state, claimed_by,
                                  lease_until, provider, model, metadata, first_seq, last_seq, revision, started_at,
                                  finished_at)
        values (p_turn_id, o_conversation_id, p_owner, p_key, p_hash, p_tool, p_state, p_turn_id,
                o_now + pg_catalog.make_interval(secs => p_lease_s), p_provider, p_model,
                case when o_seqs is null then '{}' else pg_catalog.jsonb_build_object('seqs', o_seqs) end,
                case when v_count > 0 then v_next end, case when v_count > 0 then v_next + v_count - 1 end,
                o_base + v_grows::integer, o_now, case when p_state = 'finished' then o_now end)
        on conflict do nothing
        returning 1),
      c as (
        update public.conversations c
           set next_seq = v_next + v_count, revision = o_base + 1, changed_xid = pg_catalog.pg_current_xact_id(),
               metadata = case when v_patch is null then c.metadata else exai.patch_metadata_v1(c.metadata, v_patch) end,
               edited_revision = case when v_patch is null then c.edited_revision else o_base + 1 end,
               updated_at = case when p_header ->> 'updated_at'::text is null then o_now
                                 else greatest(case when not o_made then c.updated_at end,
                                               least((p_header ->> 'updated_at'::text)::timestamptz, o_now)) end
          from t
         where c.id = o_conversation_id and v_grows),
      m as (
        insert into public.messages (conversation_id, seq, turn_id, role, kind, content, metadata, message_key, created_at)
        select o_conversation_id, coalesce(u.seq, v_next + u.ord - 1), p_turn_id, u.role, u.kind,
               case when pg_catalog.starts_with(u.content, E'\x01$exai1$')
                 then exai.place_v1(u.content, o_conversation_id, coalesce(u.seq, v_next + u.ord - 1)) else u.content end,
               coalesce(u.metadata::jsonb, '{}'), u.key, coalesce(u.at::timestamptz, o_now)
          from t cross join unnest(p_roles, p_kinds, p_contents, p_metadata, p_keys, p_times, v_known, o_seqs)
               with ordinality u(role, kind, content, metadata, key, at, known, seq, ord)
         where u.known is null),
      f as (
        insert into public.conversation_files (conversation_id, file_id)
        select o_conversation_id, w.id::uuid from t cross join pg_catalog.unnest(p_files) w(id) order by 2
        on conflict do nothing)
      select exists (select from t) into v_claimed;
      if o_made and not v_claimed then
        raise exception 'the request key was used for another conversation meanwhile' using errcode = '40001';
      end if;
    end if;
  end if;

  if v_claimed then
    o_status := 'new';
    o_turn_id := p_turn_id;
    o_revision := o_base + v_grows::integer;
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
  elsif v_hash <> p_hash then
    o_status := 'conflict_key';
  elsif p_continuation_id is not null and v_owned <> o_conversation_id then
    select c.cut_from is not null into v_cut from public.conversations c where c.id = v_owned and c.former_name = p_continuation_id;
    o_status := case when v_cut is null then 'conflict_key' when v_cut then 'old' else 'deleted' end;
    o_detail := case when v_cut then 'cut' end;
  else
    o_status := 'old';
    o_conversation_id := v_owned;
  end if;
end
$function$
;

CREATE OR REPLACE FUNCTION exai.strip_marks_v1(p_text text)
 RETURNS text
 LANGUAGE plpgsql
 IMMUTABLE PARALLEL SAFE
 SET search_path TO 'pg_catalog', 'pg_temp'
 SET standard_conforming_strings TO 'on'
AS $function$
declare
  v_text text collate "C" := p_text;
begin
  if octet_length(v_text) = length(v_text)
     or v_text !~ E'[\u00C0-\u024F\u0300-\u036F\u0370-\u052F\u0590-\u06FF\u1E00-\u1FFF]' then
    return v_text;
  end if;
  v_text := normalize(v_text, NFD);
  v_text := regexp_replace(
    v_text,
    E'[\u0300-\u036F\u0591-\u05BD\u05BF\u05C1\u05C2\u05C4\u05C5\u05C7\u064B-\u065F\u0670\u06D6-\u06DC]+', '', 'g');
  v_text := normalize(v_text, NFC);
  v_text := replace(replace(v_text, E'\u00E6', 'ae'), E'\u0153', 'oe');
  -- o, d, h, l and t with a stroke, eth, dotless i.
  return translate(v_text, E'\u00F8\u0111\u0127\u0142\u0167\u00F0\u0131', 'odhltdi');
end
$function$
;

CREATE OR REPLACE FUNCTION exai.sweep_contents_v1(p_grace interval, p_limit integer)
 RETURNS TABLE(contents bigint, blobs bigint)
 LANGUAGE plpgsql
 ROWS 1
 SET search_path TO 'pg_catalog', 'pg_temp'
 SET lock_timeout TO '2s'
AS $function$
declare
  v_before constant timestamptz := clock_timestamp() - p_grace;
  v_owners text[];
  v_digests text[];
  v_contents bigint;
  v_blobs bigint;
begin
  select array_agg(x.owner), array_agg(x.sha256) into v_owners, v_digests
    from (select c.owner, c.sha256
            from exai.contents c
           where c.used_at < v_before
             and not exists (select from public.files f where f.owner = c.owner and f.sha256 = c.sha256)
           limit p_limit
             for update skip locked) x;
  delete from exai.contents c
   using unnest(v_owners, v_digests) w(owner, sha256)
   where c.owner = w.owner and c.sha256 = w.sha256
     and not exists (select from public.files f where f.owner = c.owner and f.sha256 = c.sha256);
  get diagnostics v_contents = row_count;
  delete from exai.blobs b
   where b.id = any(array(
     select x.id from exai.blobs x
      where x.begun_at < v_before and not exists (select from exai.contents c where c.blob_id = x.id)
      limit p_limit
        for update skip locked));
  get diagnostics v_blobs = row_count;
  return query select v_contents, v_blobs;
end
$function$
;

CREATE OR REPLACE FUNCTION exai.sweep_threads_v1(p_threads uuid[], p_runs text[])
 RETURNS void
 LANGUAGE plpgsql
 SET search_path TO 'pg_catalog', 'pg_temp'
AS $function$
begin
  with recursive heads as (
    select distinct on (c.thread, c.namespace)
           c.thread, c.namespace, c.checkpoint_id, c.parent_id, c.versions, c.delta_channels
      from exai.checkpoints c
     where c.thread = any(p_threads) and p_runs is null
     order by c.thread, c.namespace, c.checkpoint_id desc),
  kept(thread, namespace, checkpoint_id, parent_id, missing) as (
    select h.thread, h.namespace, h.checkpoint_id, h.parent_id,
           array(select m.channel from unnest(h.delta_channels) m(channel)
                  where (select true from exai.checkpoint_blobs b
                          where b.thread = h.thread and b.namespace = h.namespace and b.channel = m.channel
                            and b.version = h.versions ->> m.channel and b.value_type <> 'empty'
                          limit 1) is null)
      from heads h
    union all
    select c.thread, c.namespace, c.checkpoint_id, c.parent_id,
           array(select m.channel from unnest(k.missing) m(channel)
                  where (select true from exai.checkpoint_blobs b
                          where b.thread = c.thread and b.namespace = c.namespace and b.channel = m.channel
                            and b.version = c.versions ->> m.channel and b.value_type <> 'empty'
                          limit 1) is null)
      from kept k
     cross join lateral (
       select p.thread, p.namespace, p.checkpoint_id, p.parent_id, p.versions
         from exai.checkpoints p
        where p.thread = k.thread and p.namespace = k.namespace and p.checkpoint_id = k.parent_id
        limit 1) c
     where cardinality(k.missing) > 0),
  gone as (
    delete from exai.checkpoints c
     where c.thread = any(p_threads)
       and case when p_runs is null
                then not exists (select from kept k where k.thread = c.thread and k.namespace = c.namespace
                                                      and k.checkpoint_id = c.checkpoint_id)
                else c.run_id = any(p_runs) end
    returning c.thread, c.namespace, c.checkpoint_id)
  delete from exai.checkpoint_writes w
   using gone g
   where w.thread = g.thread and w.namespace = g.namespace and w.checkpoint_id = g.checkpoint_id;
  if p_runs is null then
    update exai.checkpoints c
       set parent_id = null
     where c.thread = any(p_threads) and c.parent_id is not null
       and not exists (select from exai.checkpoints p where p.thread = c.thread and p.namespace = c.namespace
                                                        and p.checkpoint_id = c.parent_id);
  end if;
  -- As a set, so that the server can hash it: comparing each value with each checkpoint would be quadratic.
  with used as materialized (
    select distinct c.thread, c.namespace, v.channel, v.version
      from exai.checkpoints c
     cross join lateral jsonb_each_text(c.versions) v(channel, version)
     where c.thread = any(p_threads))
  delete from exai.checkpoint_blobs b
   where b.thread = any(p_threads)
     and not exists (select from used u where u.thread = b.thread and u.namespace = b.namespace
                                           and u.channel = b.channel and u.version = b.version);
end
$function$
;

CREATE OR REPLACE FUNCTION exai.thread_head_v1(p_thread exai.checkpoint_threads)
 RETURNS text
 LANGUAGE sql
 STABLE
 SET search_path TO 'pg_catalog', 'pg_temp'
AS $function$
select jsonb_build_object(
  'id', (p_thread).id, 'thread_id', (p_thread).thread_id, 'revision', (p_thread).revision,
  'copied_from', (p_thread).copied_from, 'ttl_s', (p_thread).ttl_s,
  'expires_at', extract(epoch from (p_thread).expires_at), 'is_deleted', (p_thread).deleted_at is not null,
  'server_epoch', exai.server_epoch_v1())::text
$function$
;

CREATE OR REPLACE FUNCTION exai.turn_v1(t public.turns)
 RETURNS json
 LANGUAGE sql
 STABLE
 SET search_path TO 'pg_catalog', 'pg_temp'
AS $function$
select pg_catalog.json_build_object(
  'id', t.id, 'state', t.state, 'attempt', t.attempt, 'tool', t.tool, 'provider', t.provider, 'model', t.model,
  'input_tokens', t.input_tokens, 'output_tokens', t.output_tokens, 'cached_tokens', t.cached_tokens,
  'reasoning_tokens', t.reasoning_tokens, 'cost', t.cost, 'error', t.error, 'metadata', t.metadata,
  'first_seq', t.first_seq, 'last_seq', t.last_seq, 'reply_last_seq', t.reply_last_seq, 'revision', t.revision,
  'started_at', t.started_at, 'finished_at', t.finished_at,
  'lease_left_s', extract(epoch from t.lease_until - pg_catalog.clock_timestamp()))
$function$
;

CREATE OR REPLACE FUNCTION exai.units_v1(p_text text)
 RETURNS TABLE(place bigint, chunk bigint, word text, form text)
 LANGUAGE sql
 IMMUTABLE PARALLEL SAFE ROWS 300
 SET search_path TO 'pg_catalog', 'pg_temp'
AS $function$
  select u.place, u.chunk, u.word, u.form from exai.spaced_units_v1(exai.spaced_v1(p_text)) u
$function$
;

CREATE OR REPLACE FUNCTION exai.usage_v1(p_owner text, p_by text, p_since timestamp with time zone, p_until timestamp with time zone, p_continuation_id text, p_limit integer, p_zone text)
 RETURNS TABLE(o_part text, o_key text, o_title text, o_turns bigint, o_failed bigint, o_pending bigint, o_input bigint, o_cached bigint, o_output bigint, o_reasoning bigint, o_cost numeric, o_estimated bigint, o_unpriced bigint, o_groups bigint, o_named boolean, o_kept bigint, o_continuation_id text)
 LANGUAGE sql
 STABLE ROWS 20
 SET search_path TO 'pg_catalog', 'pg_temp'
AS $function$
  with asked as (
    select t.id, t.conversation_id, null as name, t.tool, t.model, t.started_at, t.input_tokens, t.cached_tokens,
           t.output_tokens, t.reasoning_tokens, t.cost, t.earlier_cost, t.reserved_prompt, t.is_estimated, t.state,
           t.lease_until, case when t.output_tokens = 0 then t.metadata -> 'from_cache' is not null end as is_kept
      from public.turns t
     where p_continuation_id is null and t.owner = p_owner and t.model is not null
       and t.started_at >= coalesce(p_since, '-infinity') and t.started_at < coalesce(p_until, 'infinity')
    union all
    select t.id, t.conversation_id, null, t.tool, t.model, t.started_at, t.input_tokens, t.cached_tokens,
           t.output_tokens, t.reasoning_tokens, t.cost, t.earlier_cost, t.reserved_prompt, t.is_estimated, t.state,
           t.lease_until, case when t.output_tokens = 0 then t.metadata -> 'from_cache' is not null end as is_kept
      from public.conversations c join public.turns t on t.conversation_id = c.id
     where p_continuation_id is not null and c.owner = p_owner and c.continuation_id = p_continuation_id
       and t.model is not null
       and t.started_at >= coalesce(p_since, '-infinity') and t.started_at < coalesce(p_until, 'infinity')
    union all
    select p.turn_id, p.conversation_id, p.continuation_id, p.tool, p.model, p.started_at, p.input_tokens, p.cached_tokens,
           p.output_tokens, p.reasoning_tokens, p.cost, null, null, p.is_estimated, p.state, '-infinity', null
      from exai.purged_turns p
     where p_continuation_id is null and p.owner = p_owner
       and p.started_at >= coalesce(p_since, '-infinity') and p.started_at < coalesce(p_until, 'infinity')),
  settled as (
    -- The turn of a lost daemon, whose lease has ended, has failed, and cost its prompt.
    select a.*, a.state = 'pending' and a.lease_until <= now() as is_lost,
           case when a.lease_until <= now() then a.reserved_prompt end as lost_usd
      from asked a),
  keyed as (
    select case p_by when 'model' then a.model
                     when 'tool' then a.tool
                     when 'day' then to_char(a.started_at at time zone p_zone, 'YYYY-MM-DD')
                     when 'turn' then a.id::text
                     else a.conversation_id::text end as key, a.*
      from settled a),
  sums as (
    select k.key, grouping(k.key) as is_total, max(k.started_at) as latest, max(k.name) as name,
           min(case when p_by in ('conversation', 'turn') then k.conversation_id::text end) as conversation, count(*) as turns,
           count(*) filter (where k.state = 'failed' or k.is_lost) as failed,
           count(*) filter (where k.state = 'pending' and not k.is_lost) as pending, sum(k.input_tokens)::bigint as input,
           sum(k.cached_tokens)::bigint as cached, sum(k.output_tokens)::bigint as output,
           sum(k.reasoning_tokens)::bigint as reasoning,
           sum(coalesce(k.cost, k.lost_usd, 0) + coalesce(k.earlier_cost, 0)) as cost,
           count(*) filter (where k.is_estimated or (k.cost is null and k.lost_usd is not null)) as estimated,
           count(*) filter (where k.cost is null and k.input_tokens > 0) as unpriced, count(*) filter (where k.is_kept) as kept
      from keyed k
     group by grouping sets ((k.key), ())),
  shown as (
    select s.*, row_number() over (order by s.is_total, case when p_by in ('day', 'turn') then s.latest end desc,
                                            s.cost desc, s.input desc nulls last, s.key) as place
      from sums s)
  select case s.is_total when 1 then 'total' else 'group' end,
         case when p_by = 'conversation' and s.is_total = 0 then coalesce(c.continuation_id, s.name, s.key) else s.key end,
         case when c.deleted_at is null then c.title end, s.turns, s.failed, s.pending,
         coalesce(s.input, 0), coalesce(s.cached, 0), coalesce(s.output, 0), coalesce(s.reasoning, 0),
         coalesce(s.cost, 0), s.estimated, s.unpriced, (select count(*) from sums x where x.is_total = 0),
         p_continuation_id is null or exists (
           select from public.conversations n where n.owner = p_owner and n.continuation_id = p_continuation_id),
         s.kept, case when p_by = 'turn' and s.is_total = 0 and c.deleted_at is null then c.continuation_id end
    from shown s
    left join public.conversations c
      on c.id = case when s.is_total = 0 then s.conversation::uuid end
   where s.place <= p_limit or s.is_total = 1
   order by s.place
$function$
;

CREATE OR REPLACE FUNCTION exai.words_v1(p_key text, p_text text)
 RETURNS TABLE(part smallint, words tsvector)
 LANGUAGE plpgsql
 IMMUTABLE PARALLEL SAFE ROWS 1
 SET search_path TO 'pg_catalog', 'pg_temp'
AS $function$
#variable_conflict use_column
declare
  c_long_bytes constant integer := 100000;
  c_places constant integer := 16000;
  c_long_places constant integer := 4000;
  c_least_places constant integer := 300;
  c_overlap constant integer := 32;
  c_same constant integer := 220;
  c_most_parts constant integer := 32;
  v_text text collate "C";
  v_words text[];
  v_places bigint[];
  v_places_of_part integer;
begin
  v_text := exai.spaced_v1(p_text);
  if octet_length(p_text) < c_long_bytes then
    part := 0;
    words := exai.spaced_words_v1(p_key, v_text);
    if words is not null then
      return next;
      return;
    end if;
  end if;
  with units as materialized (
    select u.word, u.place from exai.spaced_units_v1(v_text) u),
  forms as (
    select u.word, u.place from units u
     union all
    select b.word, u.place
      from units u
     cross join lateral (select exai.strip_marks_v1(u.word) as word offset 0) b
     where octet_length(u.word) > length(u.word) and b.word <> u.word and b.word <> '')
  select array_agg(f.word), array_agg(f.place) into v_words, v_places from forms f;
  if v_words is null then
    return;
  end if;
  v_places_of_part := case when octet_length(p_text) < c_long_bytes then c_places else c_long_places end;
  if cardinality(v_words) > c_same then
    while v_places_of_part > c_least_places and exists (
      select from unnest(v_words, v_places) u(word, place)
       group by u.word, (u.place - 1) / v_places_of_part
      having count(*) > c_same)
    loop
      v_places_of_part := v_places_of_part * 3 / 4;
    end loop;
  end if;
  if octet_length(p_text) < c_long_bytes and v_places_of_part = c_places and cardinality(v_words) <= c_places then
    return query
    select 0::smallint, string_agg('''' || p_key || u.word || ''':' || u.place, ' ')::tsvector
      from unnest(v_words, v_places) u(word, place);
    return;
  end if;
  -- Each word once, for the server counts them before it joins them.
  return query
  with places as (
    select u.word, u.place - 1 as place, least((u.place - 1) / v_places_of_part, c_most_parts - 1) as part
      from unnest(v_words, v_places) u(word, place)),
  parts as (
    select p.part, p.word, p.place from places p
     union all
    select p.part - 1, p.word, p.place
      from places p
     where p.part > 0 and p.place - p.part * v_places_of_part < c_overlap),
  words as (
    select p.part, p.word, string_agg((1 + (p.place - p.part * v_places_of_part) % c_places)::text, ',') as places
      from parts p
     group by p.part, p.word)
  select w.part::smallint,
         string_agg('''' || p_key || w.word || ''':' || w.places, ' ')::tsvector
         || case when count(*) over () > 1 then exai.segment_mark_v1(p_key) else '' end
    from words w
   group by w.part;
end
$function$
;

CREATE OR REPLACE FUNCTION monitoring.aggregate_metrics(p_metrics jsonb, p_batch_id uuid DEFAULT NULL::uuid, p_source text DEFAULT NULL::text)
 RETURNS TABLE(status text, batch_id uuid, received integer, stored integer, rejected integer, late integer, future integer, error text)
 LANGUAGE plpgsql
 SET search_path TO 'pg_catalog', 'pg_temp'
AS $function$
#variable_conflict use_column
declare
  c_kept constant interval := '7 days';
  c_ahead constant interval := '5 minutes';
  c_clocks constant interval := '10 seconds';
  c_erasing constant bigint := 7311701100470826099;
  c_most constant integer := 10000;
  c_type_chars constant integer := 200;
  c_shown_chars constant integer := 80;
  v_id constant uuid := coalesce(p_batch_id, gen_random_uuid());
  v_now constant timestamptz := clock_timestamp();
  v_status text := 'stored';
  v_counts integer[] := '{0,0,0,0,0}';
  v_error text;
begin
  if p_metrics is null then
    v_error := 'the metrics must be a JSON array, not NULL';
  elsif jsonb_typeof(p_metrics) <> 'array' then
    v_error := format('the metrics must be a JSON array, not %s: %s', jsonb_typeof(p_metrics),
                      left(p_metrics::text, c_shown_chars));
  elsif jsonb_array_length(p_metrics) > c_most then
    v_error := format('a batch holds at most %s metrics, not %s', c_most, jsonb_array_length(p_metrics));
  end if;
  if v_error is not null then
    v_status := 'refused';
  else
    begin
      perform pg_advisory_xact_lock_shared(c_erasing);
      insert into monitoring.metrics_processing_log as l (batch_id, status, source, processed_at)
      values (v_id, 'stored', p_source, v_now)
      on conflict (batch_id) where status = 'stored' do nothing;
      if not found then
        return query
          select 'duplicate', l.batch_id, l.received, l.stored, l.rejected, l.late, l.future, l.error
            from monitoring.metrics_processing_log l
           where l.batch_id = v_id and l.status = 'stored';
        return;
      end if;
      with given as materialized (
        select e.ord - 1 as place, e.metric -> 'type' as type, e.metric,
               case when coalesce(jsonb_typeof(e.metric -> 'timestamp'), 'null') = 'null' then v_now
                    else monitoring.read_time_v1(e.metric -> 'timestamp') end as at
          from jsonb_array_elements(p_metrics) with ordinality e(metric, ord)),
      judged as materialized (
        select g.place, g.type #>> '{}' as type, g.metric, g.at,
               case when jsonb_typeof(g.metric) <> 'object' then 'is not an object'
                    when coalesce(jsonb_typeof(g.type), '') <> 'string' or g.type = '""' then 'has no type'
                    when length(g.type #>> '{}') > c_type_chars then 'has too long a type'
                    when g.at is null then 'has a timestamp that is no time' end as problem,
               exists (select from monitoring.erased_owners e
                        where e.digest = encode(sha256(convert_to(coalesce(g.metric #>> '{data,labels,owner}',
                                                                           g.metric #>> '{labels,owner}'), 'UTF8')), 'hex')
                          and g.at <= e.erased_at + c_clocks) as is_erased
          from given g),
      kept as (
        insert into monitoring.metrics_raw (type, data, "timestamp", created_at)
        select j.type, case when j.metric ? 'data' then coalesce(nullif(j.metric -> 'data', 'null'), '{}')
                            else j.metric - '{type,timestamp}'::text[] end,
               least(greatest(j.at, v_now - c_kept), v_now + c_ahead), v_now
          from judged j
         where j.problem is null and not j.is_erased)
      select array[count(*), count(*) filter (where j.problem is null and not j.is_erased), count(j.problem),
                   count(*) filter (where j.problem is null and j.at < v_now - c_kept),
                   count(*) filter (where j.problem is null and j.at > v_now + c_ahead)],
             (select format('metrics[%s] %s', x.place, x.problem) from judged x
               where x.problem is not null order by x.place limit 1)
        into v_counts, v_error
        from judged j;
      update monitoring.metrics_processing_log l
         set received = v_counts[1], stored = v_counts[2], rejected = v_counts[3], late = v_counts[4],
             future = v_counts[5], error = v_error
       where l.batch_id = v_id and l.status = 'stored';
    exception when others then
      v_status := 'failed';
      v_error := format('%s (%s)', sqlerrm, sqlstate);
    end;
  end if;
  if v_status <> 'stored' then
    v_counts := array[case when jsonb_typeof(p_metrics) = 'array' then jsonb_array_length(p_metrics) else 0 end, 0,
                      case when jsonb_typeof(p_metrics) = 'array' then jsonb_array_length(p_metrics) else 0 end, 0, 0];
    insert into monitoring.metrics_processing_log (batch_id, status, source, processed_at, received, rejected, error)
    values (v_id, v_status, p_source, v_now, v_counts[1], v_counts[3], v_error);
  end if;
  return query select v_status, v_id, v_counts[1], v_counts[2], v_counts[3], v_counts[4], v_counts[5], v_error;
end
$function$
;

CREATE OR REPLACE FUNCTION monitoring.apply_retention(p_raw interval DEFAULT '7 days'::interval, p_1min interval DEFAULT '30 days'::interval, p_1hour interval DEFAULT '400 days'::interval, p_limit integer DEFAULT 10000)
 RETURNS TABLE(what text, removed bigint, remaining bigint)
 LANGUAGE plpgsql
 SECURITY DEFINER
 SET search_path TO 'pg_catalog', 'pg_temp'
 SET "TimeZone" TO 'UTC'
 SET lock_timeout TO '2s'
AS $function$
declare
  c_lock constant bigint := 7311701100470826098;
  c_counted constant bigint := 10;
  v_name text;
begin
  if not pg_try_advisory_xact_lock(c_lock) then
    return;
  end if;
  delete from monitoring.erased_owners e where e.erased_at < now() - p_raw;

  what := 'partitions';
  removed := 0;
  remaining := 0;
  for v_name in
    select c.relname
      from pg_inherits i join pg_class c on c.oid = i.inhrelid
     where i.inhparent = 'monitoring.metrics_raw'::regclass and c.relname ~ '^metrics_raw_[0-9]{8}$'
       and to_date(right(c.relname, 8), 'YYYYMMDD') + 1 <= now() - p_raw
     order by c.relname
  loop
    begin
      execute format('drop table monitoring.%I', v_name);
      removed := removed + 1;
    exception when lock_not_available then
      remaining := remaining + 1;
    end;
  end loop;
  return next;

  what := 'metrics_raw_default';
  delete from monitoring.metrics_raw_default d
   where d.ctid = any(array(select o.ctid from monitoring.metrics_raw_default o
                             where o."timestamp" < now() - p_raw limit p_limit));
  get diagnostics removed = row_count;
  select count(*) into remaining
    from (select from monitoring.metrics_raw_default o where o."timestamp" < now() - p_raw limit c_counted * p_limit) r;
  return next;

  what := 'metrics_processing_log';
  delete from monitoring.metrics_processing_log l
   where l.id = any(array(select o.id from monitoring.metrics_processing_log o
                           where o.processed_at < now() - p_raw order by o.processed_at limit p_limit));
  get diagnostics removed = row_count;
  select count(*) into remaining
    from (select from monitoring.metrics_processing_log o where o.processed_at < now() - p_raw limit c_counted * p_limit) r;
  return next;

  what := 'metrics_1min';
  delete from monitoring.metrics_1min k
   where k.ctid = any(array(select o.ctid from monitoring.metrics_1min o
                             where o.bucket < now() - p_1min limit p_limit));
  get diagnostics removed = row_count;
  select count(*) into remaining
    from (select from monitoring.metrics_1min o where o.bucket < now() - p_1min limit c_counted * p_limit) r;
  return next;

  what := 'metrics_1hour';
  delete from monitoring.metrics_1hour k
   where k.ctid = any(array(select o.ctid from monitoring.metrics_1hour o
                             where o.bucket < now() - p_1hour limit p_limit));
  get diagnostics removed = row_count;
  select count(*) into remaining
    from (select from monitoring.metrics_1hour o where o.bucket < now() - p_1hour limit c_counted * p_limit) r;
  return next;
end
$function$
;

CREATE OR REPLACE FUNCTION monitoring.create_partitions(p_days integer DEFAULT 7)
 RETURNS integer
 LANGUAGE plpgsql
 SECURITY DEFINER
 SET search_path TO 'pg_catalog', 'pg_temp'
 SET "TimeZone" TO 'UTC'
 SET lock_timeout TO '2s'
AS $function$
declare
  c_lock constant bigint := 7311701100470826098;
  c_most_days constant integer := 100;
  v_today constant date := current_date;
  v_day date;
  v_name text;
  v_role text;
  v_made integer := 0;
begin
  if not pg_try_advisory_xact_lock(c_lock) then
    return 0;
  end if;
  for v_offset in 0 .. least(p_days, c_most_days) loop
    v_day := v_today + v_offset;
    v_name := 'metrics_raw_' || to_char(v_day, 'YYYYMMDD');
    continue when to_regclass('monitoring.' || v_name) is not null;
    begin
      execute format('create table monitoring.%I (like monitoring.metrics_raw including defaults including constraints)',
                     v_name);
      execute format('alter table monitoring.%I enable row level security', v_name);
      -- Default privileges may have granted it to the roles of Supabase's API.
      for v_role in select r.rolname from pg_roles r where r.rolname in ('anon', 'authenticated', 'service_role') loop
        execute format('revoke all on monitoring.%I from %I', v_name, v_role);
      end loop;
      if exists (select from monitoring.metrics_raw_default d
                  where d."timestamp" >= v_day and d."timestamp" < v_day + 1) then
        lock table monitoring.metrics_raw_default in access exclusive mode;
        execute format('with moved as (delete from monitoring.metrics_raw_default d'
                       ' where d."timestamp" >= %L and d."timestamp" < %L returning d.*)'
                       ' insert into monitoring.%I select m.* from moved m', v_day, v_day + 1, v_name);
      end if;
      execute format('alter table monitoring.metrics_raw attach partition monitoring.%I for values from (%L) to (%L)',
                     v_name, v_day, v_day + 1);
      v_made := v_made + 1;
    exception when invalid_object_definition then
      -- The partition of an older system's table already covers the day.
      null;
    end;
  end loop;
  return v_made;
end
$function$
;

CREATE OR REPLACE FUNCTION monitoring.fill_metric_v1()
 RETURNS trigger
 LANGUAGE plpgsql
 SET search_path TO 'pg_catalog', 'pg_temp'
AS $function$
begin
  new.data := coalesce(new.data, '{}');
  new.type := coalesce(new.type, new.data ->> 'type', new.data ->> 'name', 'unknown');
  new.created_at := coalesce(new.created_at, clock_timestamp());
  new."timestamp" := coalesce(new."timestamp", new.created_at);
  return new;
end
$function$
;

CREATE OR REPLACE FUNCTION monitoring.get_recent_metrics(p_type text DEFAULT NULL::text, p_minutes integer DEFAULT 60, p_limit integer DEFAULT 100)
 RETURNS TABLE(id bigint, type text, data jsonb, "timestamp" timestamp with time zone, created_at timestamp with time zone)
 LANGUAGE plpgsql
 STABLE
 SET search_path TO 'pg_catalog', 'pg_temp'
AS $function$
#variable_conflict use_column
declare
  c_most constant integer := 1000;
  v_since constant timestamptz := now() - make_interval(mins => greatest(coalesce(p_minutes, 60), 0));
  v_limit constant integer := least(greatest(coalesce(p_limit, 100), 0), c_most);
begin
  if p_type is null then
    return query
      select m.id, m.type, m.data, m."timestamp", m.created_at
        from monitoring.metrics_raw m
       where m."timestamp" > v_since
       order by m."timestamp" desc, m.id desc
       limit v_limit;
  else
    return query
      select m.id, m.type, m.data, m."timestamp", m.created_at
        from monitoring.metrics_raw m
       where m.type = p_type and m."timestamp" > v_since
       order by m."timestamp" desc, m.id desc
       limit v_limit;
  end if;
end
$function$
;

CREATE OR REPLACE FUNCTION monitoring.history_v1(p_type text, p_since timestamp with time zone, p_until timestamp with time zone, p_step interval, p_by text[], p_where jsonb, p_owner text, p_limit integer)
 RETURNS TABLE(at timestamp with time zone, labels jsonb, count bigint, sum double precision, min double precision, max double precision, buckets jsonb)
 LANGUAGE plpgsql
 STABLE
 SET search_path TO 'pg_catalog', 'pg_temp'
 SET "TimeZone" TO 'UTC'
AS $function$
#variable_conflict use_column
declare
  c_hour constant numeric := 3600;
  v_hourly constant boolean := mod(extract(epoch from p_step), c_hour) = 0 and date_trunc('hour', p_since) = p_since;
begin
  return query
    with chosen as (
      select h.bucket, h.labels, h.count, h.sum, h.min, h.max, h.buckets
        from monitoring.metrics_1hour h
       where v_hourly and h.type = p_type and h.bucket >= p_since and h.bucket < p_until
      union all
      select m.bucket, m.labels, m.count, m.sum, m.min, m.max, m.buckets
        from monitoring.metrics_1min m
       where not v_hourly and m.type = p_type and m.bucket >= p_since and m.bucket < p_until),
    labelled as (
      select date_bin(p_step, c.bucket, p_since) as at, c.count, c.sum, c.min, c.max, c.buckets,
             coalesce((select jsonb_object_agg(l.key, l.value) from jsonb_each(c.labels) l where l.key = any(p_by)),
                      '{}') as labels
        from chosen c
       where c.labels @> p_where
         and (p_owner is null or not c.labels ? 'owner' or c.labels ->> 'owner' = p_owner))
    select l.at, l.labels, sum(l.count)::bigint, sum(l.sum), min(l.min), max(l.max),
           monitoring.sum_buckets_v1(jsonb_agg(l.buckets) filter (where l.buckets is not null))
      from labelled l
     group by l.at, l.labels
     order by l.at, l.labels
     limit p_limit;
end
$function$
;

CREATE OR REPLACE FUNCTION monitoring.insert_metric(p_type text, p_data jsonb DEFAULT '{}'::jsonb, p_at timestamp with time zone DEFAULT clock_timestamp())
 RETURNS bigint
 LANGUAGE plpgsql
 SET search_path TO 'pg_catalog', 'pg_temp'
AS $function$
declare
  c_kept constant interval := '7 days';
  c_ahead constant interval := '5 minutes';
  v_now constant timestamptz := clock_timestamp();
  v_at constant timestamptz := coalesce(p_at, v_now);
  v_id bigint;
begin
  if coalesce(p_type, '') = '' then
    raise exception 'a metric needs a type' using errcode = '22004';
  end if;
  insert into monitoring.metrics_raw (type, data, "timestamp", created_at)
  values (p_type, coalesce(p_data, '{}'), least(greatest(v_at, v_now - c_kept), v_now + c_ahead), v_now)
  returning id into v_id;
  if v_at < v_now - c_kept or v_at > v_now + c_ahead then
    insert into monitoring.metrics_processing_log (batch_id, status, source, received, stored, late, future)
    values (gen_random_uuid(), 'moved', p_type, 1, 1, (v_at < v_now - c_kept)::integer,
            (v_at > v_now + c_ahead)::integer);
  end if;
  return v_id;
end
$function$
;

CREATE OR REPLACE FUNCTION monitoring.read_number_v1(p_value jsonb)
 RETURNS double precision
 LANGUAGE sql
 IMMUTABLE PARALLEL SAFE
 SET search_path TO 'pg_catalog', 'pg_temp'
AS $function$
select case when jsonb_typeof(p_value) <> 'number' then null
            when abs(p_value::numeric) > 1e300 then null
            when abs(p_value::numeric) < 1e-300 then 0
            else p_value::double precision end
$function$
;

CREATE OR REPLACE FUNCTION monitoring.read_time_v1(p_value jsonb)
 RETURNS timestamp with time zone
 LANGUAGE plpgsql
 STABLE
 SET search_path TO 'pg_catalog', 'pg_temp'
 SET "TimeZone" TO 'UTC'
AS $function$
declare
  v_time timestamptz;
begin
  if jsonb_typeof(p_value) = 'number' then
    v_time := to_timestamp((p_value #>> '{}')::double precision);
  elsif jsonb_typeof(p_value) = 'string' then
    v_time := (p_value #>> '{}')::timestamptz;
  end if;
  return case when isfinite(v_time) then v_time end;
exception when data_exception then
  return null;
end
$function$
;

CREATE OR REPLACE FUNCTION monitoring.refresh_metrics_views()
 RETURNS void
 LANGUAGE plpgsql
 SET search_path TO 'pg_catalog', 'pg_temp'
AS $function$
begin
  perform monitoring.create_partitions();
end
$function$
;

CREATE OR REPLACE FUNCTION monitoring.roll_up_v1()
 RETURNS trigger
 LANGUAGE plpgsql
 SECURITY DEFINER
 SET search_path TO 'pg_catalog', 'pg_temp'
AS $function$
declare
  c_epoch constant timestamptz := '1970-01-01 00:00:00+00';
  c_type_chars constant integer := 200;
  c_labels_bytes constant integer := 1000;
begin
  with counted as materialized (
    select f."timestamp" as at, left(f.type, c_type_chars) as type,
           case when jsonb_typeof(f.data -> 'labels') <> 'object' then '{}'::jsonb
                when octet_length((f.data -> 'labels')::text) > c_labels_bytes then '{"labels": "too long"}'::jsonb
                else f.data -> 'labels' end as labels,
           case when monitoring.read_number_v1(f.data -> 'count') between 0 and 1e15
                then monitoring.read_number_v1(f.data -> 'count')::bigint else 1 end as number,
           coalesce(monitoring.read_number_v1(f.data -> 'sum'), monitoring.read_number_v1(f.data -> 'value')) as total,
           coalesce(monitoring.read_number_v1(f.data -> 'min'), monitoring.read_number_v1(f.data -> 'value')) as low,
           coalesce(monitoring.read_number_v1(f.data -> 'max'), monitoring.read_number_v1(f.data -> 'value')) as high,
           case when jsonb_typeof(f.data -> 'buckets') = 'array' then f.data -> 'buckets' end as buckets
      from fresh f
     where isfinite(f."timestamp")),
  minutes as (
    insert into monitoring.metrics_1min as k (bucket, type, labels, count, sum, min, max, buckets)
    select date_bin('1 minute', c.at, c_epoch), c.type, coalesce(c.labels, '{}'), sum(c.number), sum(c.total), min(c.low),
           max(c.high), monitoring.sum_buckets_v1(jsonb_agg(c.buckets) filter (where c.buckets is not null))
      from counted c
     group by 1, 2, 3
     order by 1, 2, 3
    on conflict (bucket, type, labels) do update
      set count = k.count + excluded.count,
          sum = case when k.sum is null then excluded.sum else k.sum + coalesce(excluded.sum, 0) end,
          min = least(k.min, excluded.min),
          max = greatest(k.max, excluded.max),
          buckets = case when k.buckets is null or excluded.buckets is null then coalesce(k.buckets, excluded.buckets)
                         else monitoring.sum_buckets_v1(jsonb_build_array(k.buckets, excluded.buckets)) end)
  insert into monitoring.metrics_1hour as k (bucket, type, labels, count, sum, min, max, buckets)
  select date_bin('1 hour', c.at, c_epoch), c.type, coalesce(c.labels, '{}'), sum(c.number), sum(c.total), min(c.low),
         max(c.high), monitoring.sum_buckets_v1(jsonb_agg(c.buckets) filter (where c.buckets is not null))
    from counted c
   group by 1, 2, 3
   order by 1, 2, 3
  on conflict (bucket, type, labels) do update
    set count = k.count + excluded.count,
        sum = case when k.sum is null then excluded.sum else k.sum + coalesce(excluded.sum, 0) end,
        min = least(k.min, excluded.min),
        max = greatest(k.max, excluded.max),
        buckets = case when k.buckets is null or excluded.buckets is null then coalesce(k.buckets, excluded.buckets)
                       else monitoring.sum_buckets_v1(jsonb_build_array(k.buckets, excluded.buckets)) end;
  return null;
end
$function$
;

CREATE OR REPLACE FUNCTION monitoring.sum_buckets_v1(p_arrays jsonb)
 RETURNS jsonb
 LANGUAGE sql
 IMMUTABLE PARALLEL SAFE
 SET search_path TO 'pg_catalog', 'pg_temp'
AS $function$
select jsonb_agg(s.total order by s.place)
  from (select n.place,
               sum(trunc(least(greatest(coalesce(monitoring.read_number_v1(n.value), 0), 0), 1e15))::bigint) as total
          from jsonb_array_elements(case when jsonb_typeof(p_arrays) = 'array' then p_arrays end) a(counts)
         cross join lateral jsonb_array_elements(case when jsonb_typeof(a.counts) = 'array' then a.counts end)
               with ordinality n(value, place)
         where n.place <= 100
         group by n.place) s
$function$
;

CREATE OR REPLACE FUNCTION public.cleanup_orphaned_files(p_grace interval DEFAULT '01:00:00'::interval, p_limit integer DEFAULT 1000)
 RETURNS TABLE(id uuid, owner text, sha256 text, storage_path text)
 LANGUAGE plpgsql
 SET search_path TO '$user', 'public', 'extensions', 'pg_temp'
 SET lock_timeout TO '2s'
AS $function$
#variable_conflict use_column
declare
  v_ids uuid[];
begin
  v_ids := array(
    select f.id
      from public.files f
     where f.used_at < pg_catalog.clock_timestamp() - p_grace
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

CREATE OR REPLACE FUNCTION public.exai_page(p_continuation_id text, p_before_seq bigint DEFAULT NULL::bigint, p_limit integer DEFAULT 50)
 RETURNS TABLE(seq bigint, role text, kind text, content text, metadata jsonb, turn_id uuid, created_at timestamp with time zone)
 LANGUAGE sql
 STABLE ROWS 50
 SET search_path TO 'pg_catalog', 'pg_temp'
AS $function$
select m.seq, m.role, m.kind, m.content, m.metadata, m.turn_id, m.created_at
  from public.conversations c
 cross join lateral exai.shared_page_v1(
   c.id, coalesce(p_before_seq, 9223372036854775807), least(greatest(coalesce(p_limit, 50), 1), 200)) m
 where c.continuation_id = p_continuation_id and c.deleted_at is null
   and c.owner = (select nullif(current_setting('request.jwt.claims', true), '')::jsonb ->> 'sub')
 order by m.seq desc
$function$
;
