"""Number the messages of an older system by time and then by id, conversation by conversation, and index their words.

Does nothing without older tables. Readers and writers continue; an interrupted run continues when it is run again.
The rules: a message without a time comes last; one without a conversation gets one; an unknown role or content is
mapped, and the original kept under `adopted` in the metadata; of conversations with one name, the one used last keeps
it; a duplicate link, or a link to a missing row, is moved to exai.quarantine as JSON; a future updated_at becomes
now.

Words are made by the functions that `exai.index_messages_v1` uses; revision 0004 builds the index on them. Triggers
queue messages that are stored, edited or deleted meanwhile. A long message, and a message of a conversation that
another session has locked, is queued for the daemon.

Locks: at most two thousand messages of two hundred conversations at a time, each batch in a transaction of its own. A
batch waits for no row while it holds others: a locked row is left for a later batch, so no client waits longer than a
batch takes, and no client is aborted by a deadlock. Creating the triggers waits for writers of messages and
conversations and blocks them for that moment. A batch of words delays the deletion of its conversations.
"""

import time

from alembic import op
from alembic.util import CommandError
from sqlalchemy import Connection
from sqlalchemy.exc import DBAPIError

from exai.db.migrations import migrate
from exai.db.migrations.adoption import TABLES, columns_of, older_time
from exai.db.migrations.migrate import (
    create_functions,
    create_index,
    create_triggers,
    drop_index,
    patiently,
    take_locks,
)

revision = "0002"
down_revision = "0001"

RECOVER_NAMELESS = """
with lost as materialized (
  select m.ctid as at from public.messages m where m.conversation_id is null limit 1000 for update nowait),
home as materialized (
  select exai.recover_conversation_v1('e8a10000-0000-4000-8000-000000000000', x.first, x.last)
    from (select pg_catalog.min({time}) as first, pg_catalog.max({time}) as last
            from public.messages m where m.conversation_id is null) x
   where exists (select from lost)),
moved as (
  update public.messages m set conversation_id = 'e8a10000-0000-4000-8000-000000000000'
    from lost where m.ctid = lost.at and (select pg_catalog.count(*) from home) = 1
  returning 1)
select pg_catalog.count(*) from moved
"""
"""The foreign key is checked at the end of the statement, when the conversation exists."""

RECOVER_ORPHANS = """
select coalesce(pg_catalog.sum(exai.recover_conversation_v1(x.conversation_id, x.first, x.last)), 0)
  from (select m.conversation_id, pg_catalog.min({time}) as first, pg_catalog.max({time}) as last
          from public.messages m where m.conversation_id is not null
           and not exists (select from public.conversations c where c.id = m.conversation_id)
         group by m.conversation_id limit 1000) x
"""

NUMBER = """
create or replace function exai.number_older(
  p_from uuid, p_inclusive boolean, p_conversations integer, p_messages integer,
  out o_from uuid, out o_seen integer, out o_done integer)
language plpgsql
set lock_timeout = '300ms'
as $$
declare
  c record;
  v_at tid[];
  v_next bigint;
  v_count bigint;
  v_left integer := p_messages;
begin
  o_from := p_from;
  o_seen := 0;
  o_done := 0;
  for c in
    select x.id, x.created_at, x.updated_at
      from public.conversations x where x.next_seq is null and x.id >= p_from and (p_inclusive or x.id > p_from)
     order by x.id
     limit p_conversations
       for no key update skip locked
  loop
    o_seen := o_seen + 1;
    -- Locked first, so that no other session moves a row between its numbering and its update.
    begin
      v_at := array(
        select m.ctid from public.messages m
         where m.conversation_id = c.id and m.seq is null
         order by m.conversation_id, {time}, {tie}
         limit v_left
           for update nowait);
    exception when lock_not_available then
      -- Another session has locked one of the messages: the conversation is left for the next round.
      o_from := c.id;
      continue;
    end;
    select coalesce(pg_catalog.max(m.seq), 0) into v_next from public.messages m
     where m.conversation_id = c.id and m.seq is not null;
    update public.messages m
       set seq = v_next + u.n,
           created_at = coalesce({time}, c.updated_at, c.created_at, pg_catalog.now()),
           -- Most rows need neither function; their calls took as long as the rest of the update.
           metadata = case when m.role in ('system', 'user', 'assistant', 'tool') and m.content is not null
                                and ({created} is not null or m.created_at is null) and coalesce(
                                  pg_catalog.jsonb_typeof(m.metadata), 'object') = 'object'
                           then coalesce(m.metadata, '{{}}')
                           else exai.adopted_metadata_v1(m.metadata, m.role, m.content,
                                                         case when {created} is null then m.created_at::text end) end,
           role = case when m.role in ('system', 'user', 'assistant', 'tool') then m.role
                       else exai.adopted_role_v1(m.role) end,
           content = coalesce(m.content, '')
      from pg_catalog.unnest(v_at) with ordinality u(at, n)
     where m.ctid = u.at;
    get diagnostics v_count = row_count;
    if v_count <> pg_catalog.cardinality(v_at) then
      raise exception 'a message moved while it was numbered' using errcode = '40001';
    end if;
    o_done := o_done + v_count;
    -- The next batch begins with the rest of a long conversation.
    exit when v_count = v_left;
    v_left := v_left - v_count;
    -- Sets the metadata to itself, so that a trigger checks it.
    update public.conversations x
       set next_seq = v_next + v_count + 1,
           metadata = x.metadata,
           created_at = coalesce(x.created_at, (select pg_catalog.min(m.created_at) from public.messages m
                                                 where m.conversation_id = c.id), pg_catalog.now())
     where x.id = c.id;
    o_from := c.id;
    o_done := o_done + 1;
  end loop;
end
$$
"""
FIRST = "00000000-0000-0000-0000-000000000000"
CONVERSATIONS = 200
MESSAGES = 2_000
NEXT = f"""
select o_from::text, o_seen, o_done
  from exai.number_older($1::text::uuid, $2::boolean, {CONVERSATIONS}, {MESSAGES})
"""
UNNUMBERED = "select exists (select from public.conversations c where c.next_seq is null)"
STRAY = """
with stray as (
  select distinct m.conversation_id as id from public.messages m where m.seq is null limit 1000),
again as (
  update public.conversations c set next_seq = null from stray s where c.id = s.id and c.next_seq is not null
  returning 1)
select pg_catalog.count(*) from again
"""
"""A conversation that its client created again after its messages had lost it."""

LOCKED = ("55P03", "40P01", "40001")
LOCK_S = 0.3
"""Wait for a lock on a whole table; there is no wait for rows."""

WAIT_S = 0.5
MAX_WAITS = 240
"""Consecutive pauses without progress."""

FILL_FILES = """
with empty as (
  select f.id from public.files f where f.created_at is null limit 1000 for update nowait),
filled as (
  update public.files f set created_at = pg_catalog.now() from empty where f.id = empty.id returning 1)
select pg_catalog.count(*) from filled
"""

RENAME_DUPLICATES = """
with ranked as (
  select c.id, pg_catalog.row_number() over (partition by c.owner, c.continuation_id
                                             order by c.updated_at desc, c.id desc) as n
    from public.conversations c),
locked as (
  select c.id from public.conversations c
   where c.id = any(array(select r.id from ranked r where r.n > 1 limit 1000)) for update nowait),
renamed as (
  update public.conversations c
     set continuation_id = c.continuation_id || '~' || c.id::text,
         metadata = c.metadata || pg_catalog.jsonb_build_object('duplicate_of', c.continuation_id)
    from locked l where l.id = c.id
  returning 1)
select pg_catalog.count(*) from renamed
"""
"""The conversation used last keeps the name; the others get a name of their own and lose nothing."""

QUARANTINE_LINKS = """
with bad as materialized (
  select l.ctid as at, 'refers to nothing' as reason from public.conversation_files l
   where l.conversation_id is null or l.file_id is null
      or not exists (select from public.conversations c where c.id = l.conversation_id)
      or not exists (select from public.files f where f.id = l.file_id)
   union all
  select x.at, 'there twice' from (
    select l.ctid as at, pg_catalog.row_number() over (partition by l.conversation_id, l.file_id order by l.ctid) as n
      from public.conversation_files l where l.conversation_id is not null and l.file_id is not null) x
   where x.n > 1
   limit 2000),
locked as materialized (
  select l.ctid as at from public.conversation_files l
   where l.ctid = any(array(select b.at from bad b)) for update nowait),
gone as (
  delete from public.conversation_files l
   where l.ctid = any(array(select k.at from locked k))
  returning l.ctid as at, pg_catalog.to_jsonb(l) as row),
kept as (
  insert into exai.quarantine (table_name, reason, row)
  select 'conversation_files', b.reason, g.row
    from gone g join (select x.at, pg_catalog.min(x.reason) as reason from bad x group by x.at) b on b.at = g.at
  returning 1)
select pg_catalog.count(*) from kept
"""


PUT_BACK = """
with ahead as materialized (
  select c.id from public.conversations c
   where c.id > $1::text::uuid and c.updated_at > pg_catalog.now() order by c.id limit 1000
     for no key update skip locked),
moved as (
  update public.conversations c set updated_at = pg_catalog.now() from ahead a where c.id = a.id)
select a.id::text from ahead a order by a.id desc limit 1
"""

QUEUE = (
    "exai_queue_insert", "exai_queue_update", "exai_queue_delete", "exai_queue_truncate", "exai_queue_title",
    "exai_queue_new_title",
)  # fmt: skip
FIRST_MESSAGE = (FIRST, 0)
INDEX_MESSAGES = """
with messages as (
  select m.conversation_id, m.seq, m.created_at, m.content,
         pg_catalog.sum(pg_catalog.octet_length(m.content)) over (order by m.conversation_id, m.seq)
         operator(pg_catalog.-) pg_catalog.octet_length(m.content) as preceding
    from (select x.conversation_id, x.seq, x.created_at, x.content from public.messages x
           where (x.conversation_id, x.seq) > ($1::text::uuid, $2::bigint)
           order by x.conversation_id, x.seq limit 1000) m),
batch as materialized (
  select m.conversation_id, m.seq, m.created_at, m.content from messages m where m.preceding < 1000000),
-- Who deletes a conversation is not waited for.
held as materialized (
  select c.id, exai.owner_key_v1(c.owner) as key from public.conversations c
   where c.id = any(array(select b.conversation_id from batch b)) for key share skip locked),
missing as materialized (
  select b.conversation_id, b.seq, b.created_at, b.content, h.key,
         case when h.id is null then 0 when pg_catalog.length(b.content) > 50000 then b.seq end as queued
    from batch b
    left join held h on h.id = b.conversation_id
   where not exists (select from exai.message_words w where w.conversation_id = b.conversation_id and w.seq = b.seq)),
put_off as (
  insert into exai.unindexed_messages (conversation_id, first_seq, last_seq)
  select m.conversation_id, pg_catalog.min(m.seq), pg_catalog.max(m.seq)
    from missing m where m.queued is not null group by m.conversation_id, m.queued),
stored as (
  insert into exai.message_words (conversation_id, seq, part, created_at, words)
  select m.conversation_id, m.seq, w.part, m.created_at, w.words
    from missing m cross join lateral exai.words_v1(m.key, m.content) w where m.queued is null
  on conflict do nothing)
select b.conversation_id::text, b.seq from batch b order by b.conversation_id desc, b.seq desc limit 1
"""
INDEX_TITLES = """
with batch as materialized (
  select c.id, c.created_at, c.owner, c.title
    from public.conversations c where c.id > $1::text::uuid order by c.id limit 500),
titled as materialized (
  select b.id, b.created_at, b.owner, b.title from batch b
   where b.title is not null
     and not exists (select from exai.message_words w where w.conversation_id = b.id and w.seq = 0)),
held as materialized (
  select c.id from public.conversations c
   where c.id = any(array(select t.id from titled t)) for key share skip locked),
put_off as (
  insert into exai.unindexed_messages (conversation_id, first_seq, last_seq)
  select t.id, 0, 0 from titled t where t.id not in (select h.id from held h)),
stored as (
  insert into exai.message_words (conversation_id, seq, part, created_at, words)
  select t.id, 0, w.part, t.created_at, w.words
    from titled t cross join lateral exai.words_v1(exai.owner_key_v1(t.owner), t.title) w
   where t.id in (select h.id from held h)
  on conflict do nothing)
select b.id::text from batch b order by b.id desc limit 1
"""


def upgrade() -> None:
    adopted = {row[0] for row in op.get_bind().exec_driver_sql("select name from exai.adopted_tables").fetchall()}
    mend(*(table for table in TABLES if table in adopted))
    if {"conversations", "messages"} & adopted:
        walk(PUT_BACK, (FIRST,))
        take_locks("messages", "conversations", mode="share row exclusive")
        create_triggers(QUEUE)
        walk(INDEX_MESSAGES, FIRST_MESSAGE)
        walk(INDEX_TITLES, (FIRST,))


def walk(statement: str, last: tuple[object, ...]) -> None:
    """Run a statement repeatedly for the rows after `last`, which it returns, until there are none left."""
    with patiently(lock_s=4) as bind:
        for _ in range(migrate.MAX_BATCHES):
            rows = bind.exec_driver_sql(statement, last).fetchall()
            if not rows:
                return
            last = tuple(rows[0])
    raise CommandError(f"the work was not done after {migrate.MAX_BATCHES} batches; run the migration again")


def mend(*tables: str) -> None:
    """Make the rows of an older system's tables satisfy the constraints that the next revision adds."""
    if {"conversations", "messages"} & {*tables}:
        number()
    if "conversations" in tables:
        work_off(RENAME_DUPLICATES)
    if "files" in tables:
        work_off(FILL_FILES)
    if "conversation_files" in tables:
        work_off(QUARANTINE_LINKS)


def number() -> None:
    columns = columns_of(op.get_bind(), "messages")
    expression = older_time(columns)
    created = older_time({"created_at": columns["created_at"]})
    keys = ["conversation_id", f"({expression})", *(["id"] if "id" in columns else [])]
    create_index("public", "messages_conversation_seq_key", "public.messages (conversation_id, seq)", unique=True)
    create_index("public", "messages_unnumbered_idx", f"public.messages ({', '.join(keys)}) where seq is null")
    create_index("public", "conversations_unnumbered_idx", "public.conversations (id) where next_seq is null")
    with patiently():
        op.execute(NUMBER.format(time=expression, created=created, tie="m.id" if "id" in columns else "m.ctid"))
    # Missing after a downgrade of the last revision.
    create_functions(["recover_conversation_v1"])
    work_off(RECOVER_NAMELESS.format(time=expression))
    work_off(RECOVER_ORPHANS.format(time=expression))
    number_all()
    while work_off(STRAY):
        number_all()
    with patiently():
        op.execute("drop function exai.number_older")
    drop_index("public", "messages_unnumbered_idx")
    drop_index("public", "conversations_unnumbered_idx")


def number_all() -> None:
    """Number all conversations; those that other sessions have locked are tried again."""
    waited = 0
    with patiently(lock_s=LOCK_S) as bind:
        while bind.exec_driver_sql(UNNUMBERED).scalar():
            waited = 0 if number_once(bind) else wait(waited)


def number_once(bind: Connection) -> int:
    """Number the conversations that are not locked, in one round; return 0 if nothing could be done."""
    start, seen, total = FIRST, 1, 0
    try:
        while seen:
            start, seen, done = bind.exec_driver_sql(NEXT, (start, start == FIRST)).fetchall()[0]
            total += done
    except DBAPIError as error:
        check_is_locked(error)
    return total


def work_off(statement: str) -> int:
    """Run a statement in batches until no rows are left for it; locked rows are tried again."""
    total = waited = 0
    with patiently(lock_s=LOCK_S) as bind:
        while True:
            try:
                done = bind.exec_driver_sql(statement).scalar() or 0
            except DBAPIError as error:
                check_is_locked(error)
                waited = wait(waited)
                continue
            if not done:
                return total
            total, waited = total + done, 0


def wait(waited: int) -> int:
    """Pause, so that other sessions can finish; returns the number of consecutive pauses."""
    if waited == MAX_WAITS:
        raise CommandError(
            "another session has kept a conversation locked for too long; end that session or run the migration again"
        )
    time.sleep(WAIT_S)
    return waited + 1


def check_is_locked(error: DBAPIError) -> None:
    if getattr(error.orig, "sqlstate", None) not in LOCKED:
        raise error


def downgrade() -> None:
    """Keep the numbers, which older clients do not read."""
