"""Number the messages an older system left behind, by time and then by id, conversation by conversation.

Does nothing where there were none. Readers and writers go on: a conversation is locked only while it is numbered, and
what has been done stays done when this is broken off and run again.

Locks: the rows of twenty conversations at a time. What no key could hold (a link to nothing, a second copy of a link)
is kept as JSON in exai.set_aside.
"""

import time

from alembic import op
from alembic.util import CommandError

from exai.db.adoption import columns_of, older_time
from exai.db.migrate import create_index, drop_index, patiently, until_done

revision = "0002"
down_revision = "0001"

SET_ASIDE = """
create table if not exists exai.set_aside (
    table_name text not null,
    reason text not null,
    row jsonb not null,
    set_aside_at timestamptz not null default now()
)
"""

RECOVER_NAMELESS = """
with lost as (
  select m.ctid as at from public.messages m where m.conversation_id is null limit 1000 for update),
home as (
  insert into public.conversations (id, continuation_id, title, next_seq)
  select 'e8a10000-0000-4000-8000-000000000000'::uuid, 'recovered', 'Messages without a conversation', null::bigint
   where exists (select from lost)
  on conflict (id) do nothing),
moved as (
  update public.messages m set conversation_id = 'e8a10000-0000-4000-8000-000000000000'
    from lost where m.ctid = lost.at
  returning 1)
select count(*) from moved
"""
"""Both at once would not satisfy the key, which is checked at the end of the statement: it is there by then."""

RECOVER_ORPHANS = """
with made as (
  insert into public.conversations (id, continuation_id, title, next_seq)
  select distinct m.conversation_id, m.conversation_id::text, 'Recovered', null::bigint
    from public.messages m
   where m.conversation_id is not null
     and not exists (select from public.conversations c where c.id = m.conversation_id)
   limit 1000
  on conflict do nothing
  returning 1)
select count(*) from made
"""

NUMBER = """
create or replace function exai.number_older(p_limit integer) returns integer
language plpgsql
set lock_timeout = '2s'
set timezone = 'UTC'
as $$
declare
  v_id uuid;
  v_done integer := 0;
  v_count bigint;
begin
  for v_id in
    select c.id from public.conversations c where c.next_seq is null order by c.id limit p_limit
       for no key update skip locked
  loop
    -- Locked first, so that nobody moves a row between its being numbered and its being written.
    perform 1 from public.messages m where m.conversation_id = v_id for update;
    with numbered as (
      select m.ctid as at, {time} as written, row_number() over (order by {time}, {tie}) as n
        from public.messages m
        join public.conversations c on c.id = m.conversation_id
       where m.conversation_id = v_id)
    update public.messages m
       set seq = numbered.n, created_at = numbered.written, role = coalesce(m.role, 'user'),
           content = coalesce(m.content, ''), metadata = coalesce(m.metadata, '{{}}')
      from numbered
     where m.ctid = numbered.at and m.conversation_id = v_id;
    get diagnostics v_count = row_count;
    update public.conversations c
       set next_seq = v_count + 1,
           created_at = coalesce(c.created_at, (select min(m.created_at) from public.messages m
                                                 where m.conversation_id = v_id), now()),
           updated_at = coalesce(c.updated_at, (select max(m.created_at) from public.messages m
                                                 where m.conversation_id = v_id), c.created_at, now())
     where c.id = v_id;
    v_done := v_done + 1;
  end loop;
  return v_done;
end
$$
"""
BATCH = 20
UNNUMBERED = "select exists (select from public.conversations c where c.next_seq is null)"
LOCKED = ("55P03", "40P01")
WAIT_S = 0.5
MAX_WAITS = 240

FILL_FILES = """
with empty as (
  select f.id from public.files f where f.created_at is null limit 1000 for update),
filled as (
  update public.files f set created_at = now() from empty where f.id = empty.id returning 1)
select count(*) from filled
"""

RENAME_DUPLICATES = """
with twice as (
  select c.owner, c.continuation_id from public.conversations c
   group by c.owner, c.continuation_id having count(*) > 1 limit 1000),
ranked as (
  select c.id, row_number() over (partition by c.owner, c.continuation_id order by c.updated_at desc, c.id desc) as n
    from public.conversations c join twice using (owner, continuation_id)),
renamed as (
  update public.conversations c
     set continuation_id = c.continuation_id || '~' || c.id,
         metadata = c.metadata || jsonb_build_object('duplicate_of', c.continuation_id)
    from ranked r where r.id = c.id and r.n > 1
  returning 1)
select count(*) from renamed
"""
"""The one that was used last keeps the name; the others stay whole under a name of their own."""

SET_ASIDE_LINKS = """
with bad as (
  select l.ctid as at, 'refers to nothing' as reason from public.conversation_files l
   where l.conversation_id is null or l.file_id is null
      or not exists (select from public.conversations c where c.id = l.conversation_id)
      or not exists (select from public.files f where f.id = l.file_id)
   union all
  select x.at, 'there twice' from (
    select l.ctid as at, row_number() over (partition by l.conversation_id, l.file_id order by l.ctid) as n
      from public.conversation_files l where l.conversation_id is not null and l.file_id is not null) x
   where x.n > 1
   limit 10000),
gone as (
  delete from public.conversation_files l using bad where l.ctid = bad.at
  returning to_jsonb(l) as row, bad.reason),
kept as (
  insert into exai.set_aside (table_name, reason, row) select 'conversation_files', g.reason, g.row from gone g
  returning 1)
select count(*) from kept
"""


def upgrade() -> None:
    bind = op.get_bind()
    op.execute(SET_ASIDE)
    op.execute("alter table exai.set_aside enable row level security")
    adopted = {row[0] for row in bind.exec_driver_sql("select name from exai.adopted_tables").fetchall()}
    if "conversations" in adopted or "messages" in adopted:
        number()
    with patiently(lock_s=4):
        if "files" in adopted:
            until_done(FILL_FILES)
        if "conversations" in adopted:
            until_done(RENAME_DUPLICATES)
        if "conversation_files" in adopted:
            until_done(SET_ASIDE_LINKS)


def number() -> None:
    columns = columns_of(op.get_bind(), "messages")
    tie = 'm."id"' if "id" in columns else "m.ctid"
    create_index("public", "conversations_unnumbered_idx", "public.conversations (id) where next_seq is null")
    create_index("public", "messages_unnumbered_idx", "public.messages (conversation_id) where seq is null")
    with patiently(lock_s=4):
        op.execute(NUMBER.format(time=older_time(columns), tie=tie))
        until_done(RECOVER_NAMELESS)
        until_done(RECOVER_ORPHANS)
        number_all()
        op.execute("drop function exai.number_older")
    drop_index("public", "messages_unnumbered_idx")
    drop_index("public", "conversations_unnumbered_idx")


def number_all() -> None:
    """Number until nothing is left, coming back to what somebody else holds."""
    for _ in range(MAX_WAITS):
        try:
            until_done("select exai.number_older(:batch)", {"batch": BATCH})
            if not op.get_bind().exec_driver_sql(UNNUMBERED).scalar():
                return
        except Exception as error:
            if getattr(getattr(error, "orig", None), "sqlstate", None) not in LOCKED:
                raise
        time.sleep(WAIT_S)
    raise CommandError("somebody holds a conversation for too long; run the migration again")


def downgrade() -> None:
    op.execute("drop table exai.set_aside")
