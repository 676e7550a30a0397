"""Let EXAI itself say what a word is, the same in every database, and give each owner words of its own.

Until here words were what the server's parser and the database's locale made of a text. The new functions make them by
tables of their own. Titles are indexed beside messages, as number 0 of their conversation, so that they cost an insert
nothing. What the release before has indexed (version 1) is searched by its rules until the daemon has indexed it again,
in the background and in portions.

Locks: an instant's exclusive lock on the table of words, and on conversations one that holds back writers for an
instant; a batch of titles keeps conversations from being deleted for as long as it takes. Indexes are built
concurrently.
"""

from alembic import op
from alembic.util import CommandError

from exai.db.migrate import MAX_BATCHES, create_functions, create_index, drop_index, holding, patiently, take_locks

revision = "0022"
down_revision = "0021"

FUNCTIONS = (
    "fold_v1",
    "bare_v1",
    "units_v1",
    "long_mark_v1",
    "words_v1",
    "owner_key_v1",
    "read_query_v1",
    "some_terms_v1",
    "excerpt_v1",
    "has_terms_v1",
    "waiting_v1",
    "matches_v2",
    "index_messages_v2",
    "queue_title_v1",
)
OLDER = ("matches_v1", "search_v1", "index_messages_v1")

TRIGGERS = {
    "exai_queue_title": """
        after insert on public.conversations for each row when (new.title is not null)
        execute function exai.queue_title_v1()
    """,
    "exai_queue_new_title": """
        after update of title, owner on public.conversations for each row
        when (old.title is distinct from new.title or old.owner is distinct from new.owner)
        execute function exai.queue_title_v1()
    """,
}

BATCH = 500
FIRST = "00000000-0000-0000-0000-000000000000"
NEXT = f"""
with batch as materialized (
  select c.id, c.created_at, c.owner, c.title
    from public.conversations c
   where c.id > $1::text::uuid
   order by c.id
   limit {BATCH}),
-- Nobody who deletes is waited for: what is held is for whoever indexes, if it is still there then.
held as materialized (
  select c.id from public.conversations c
   where c.id = any(array(select b.id from batch b where b.title is not null))
     for key share skip locked),
put_off as (
  insert into exai.unindexed_messages (conversation_id, first_seq, last_seq)
  select b.id, 0, 0 from batch b where b.title is not null and b.id not in (select h.id from held h)),
stored as (
  insert into exai.message_words (conversation_id, seq, part, created_at, version, words)
  select b.id, 0, w.part, b.created_at, 2, w.words
    from batch b
   cross join lateral exai.words_v1(exai.owner_key_v1(b.owner), b.title) w
   where b.id in (select h.id from held h)
  on conflict do nothing)
select b.id::text from batch b order by b.id desc limit 1
"""

FORGET = """
with gone as (
  delete from exai.message_words w where w.version >= 2 returning w.conversation_id, w.seq),
ranges as (
  select g.conversation_id, min(g.seq) as first, max(g.seq) as last
    from gone g
   where g.seq > 0
   group by g.conversation_id)
insert into exai.unindexed_messages (conversation_id, first_seq, last_seq)
select r.conversation_id, r.first, r.last from ranges r
"""


def upgrade() -> None:
    take_locks("exai.message_words", "exai.unindexed_messages")
    op.execute(
        "alter table exai.message_words add column if not exists part smallint not null default 0,"
        " add column if not exists version smallint not null default 1"
    )
    op.execute("alter table exai.unindexed_messages add column if not exists done bigint not null default 0")
    create_index("exai", "message_words_part_key", "exai.message_words (conversation_id, seq, part)", unique=True)
    with holding("exai.message_words"):
        op.execute(
            "alter table exai.message_words drop constraint message_words_pkey,"
            " add constraint message_words_pkey primary key using index message_words_part_key"
        )
    # Empty once everything has been indexed again.
    create_index("exai", "message_words_outdated_idx", "exai.message_words (conversation_id, seq) where version < 2")
    create_functions(FUNCTIONS)
    take_locks("conversations", mode="share row exclusive")
    for name, definition in TRIGGERS.items():
        op.execute(f"create trigger {name} {definition}")
    index_titles()
    for name in reversed(OLDER):
        op.execute(f"drop function if exists exai.{name}")


def index_titles() -> None:
    last = FIRST
    with patiently(lock_s=4) as bind:
        for _ in range(MAX_BATCHES):
            rows = bind.exec_driver_sql(NEXT, (last,)).fetchall()
            if not rows:
                return
            last = rows[0][0]
    raise CommandError(f"the work was not done after {MAX_BATCHES} batches; run the migration again")


def downgrade() -> None:
    """What this revision has indexed waits to be indexed again, by the rules of the release before."""
    create_functions(("matches_v1", "searched_v1", "search_v1", "index_messages_v1"))
    take_locks("conversations", mode="share row exclusive")
    for name in TRIGGERS:
        op.execute(f"drop trigger if exists {name} on public.conversations")
    with patiently(lock_s=4):
        op.execute(FORGET)
    for name in reversed(FUNCTIONS):
        op.execute(f"drop function if exists exai.{name}")
    drop_index("exai", "message_words_outdated_idx")
    create_index("exai", "message_words_message_key", "exai.message_words (conversation_id, seq)", unique=True)
    with holding("exai.message_words"):
        op.execute(
            "alter table exai.message_words drop constraint message_words_pkey,"
            " add constraint message_words_pkey primary key using index message_words_message_key"
        )
        op.execute("alter table exai.message_words drop column part, drop column version")
        op.execute("alter table exai.unindexed_messages drop column done")
