"""Index the words of the messages that were there before they were queued, and make search use them.

Goes through the messages in the order of their primary key, each batch in a transaction of its own; broken off and run
again it passes over what has been done. Then the index is built, concurrently.

Locks: a batch keeps conversations from being deleted, for as long as it takes; nothing else waits for it.
"""

from alembic import op
from alembic.util import CommandError

from exai.db.migrate import MAX_BATCHES, create_functions, create_index, drop_index, patiently

revision = "0015"
down_revision = "0014"

FUNCTIONS = ("index_messages_v1", "matches_v1", "searched_v1", "search_v1")

BATCH = 200
"""So few that even the longest messages are done within a second or two."""

FIRST = ("00000000-0000-0000-0000-000000000000", 0)
NEXT = f"""
with batch as materialized (
  select m.conversation_id, m.seq, m.created_at, m.content
    from public.messages m
   where (m.conversation_id, m.seq) > ($1::text::uuid, $2::bigint)
   order by m.conversation_id, m.seq
   limit {BATCH}),
-- Nobody who deletes is waited for: what is held is for whoever indexes, if it is still there then.
held as materialized (
  select c.id from public.conversations c
   where c.id = any(array(select b.conversation_id from batch b))
     for key share skip locked),
put_off as (
  insert into exai.unindexed_messages (conversation_id, first_seq, last_seq)
  select b.conversation_id, pg_catalog.min(b.seq), pg_catalog.max(b.seq)
    from batch b
   where b.conversation_id not in (select h.id from held h)
   group by b.conversation_id),
stored as (
  insert into exai.message_words (conversation_id, seq, created_at, words)
  select b.conversation_id, b.seq, b.created_at, pg_catalog.to_tsvector('simple', exai.searchable_v1(b.content))
    from batch b
   where b.conversation_id in (select h.id from held h) and not exists (
     select from exai.message_words w where w.conversation_id = b.conversation_id and w.seq = b.seq)
  on conflict do nothing)
select b.conversation_id::text, b.seq from batch b order by b.conversation_id desc, b.seq desc limit 1
"""


def upgrade() -> None:
    index_all()
    # Sorted in by whoever indexes, as soon as it is stored: the server is not to do it in between.
    create_index(
        "exai", "message_words_words_idx", "exai.message_words using gin (words) with (gin_pending_list_limit = 16384)"
    )
    create_functions(FUNCTIONS)


def index_all() -> None:
    last = FIRST
    with patiently(lock_s=4) as bind:
        for _ in range(MAX_BATCHES):
            rows = bind.exec_driver_sql(NEXT, last).fetchall()
            if not rows:
                return
            last = (rows[0][0], rows[0][1])
    raise CommandError(f"the work was not done after {MAX_BATCHES} batches; run the migration again")


def downgrade() -> None:
    for name in reversed(FUNCTIONS):
        op.execute(f"drop function if exists exai.{name}")
    drop_index("exai", "message_words_words_idx")
