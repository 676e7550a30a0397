"""Make the place where the words of messages are kept beside them, and the queue of those that are not there yet.

An index of words on the messages themselves made up half of what storing a message cost. From here on a message is
queued when it is stored, in its transaction, and its words are indexed afterwards, many at a time; a search looks
through what is still queued. What is there already is indexed by the next revision.

Locks: creating a foreign key and triggers waits for writers of both tables and holds them back for an instant.
"""

from alembic import op

from exai.db.migrate import create_functions, take_locks

revision = "0014"
down_revision = "0013"

FUNCTIONS = ("queue_words_v1", "requeue_words_v1", "searchable_v1")

TABLES = {
    "message_words": """
    create table exai.message_words (
        conversation_id uuid not null,
        seq bigint not null,
        created_at timestamptz not null,
        words tsvector not null,
        constraint message_words_pkey primary key (conversation_id, seq),
        constraint message_words_conversation_fkey foreign key (conversation_id)
            references public.conversations (id) on delete cascade
    )
    """,
    # It empties as it fills: the server is to tidy up after every thousand rows, however large it once was.
    "unindexed_messages": """
    create table exai.unindexed_messages (
        conversation_id uuid not null,
        first_seq bigint not null,
        last_seq bigint not null
    ) with (autovacuum_vacuum_threshold = 1000, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_cost_delay = 0)
    """,
}

TRIGGERS = {
    "exai_queue_insert": """
        after insert on public.messages referencing new table as changed for each statement
        execute function exai.queue_words_v1()
    """,
    "exai_queue_update": """
        after update on public.messages for each row
        when (old.content is distinct from new.content or old.created_at is distinct from new.created_at)
        execute function exai.requeue_words_v1()
    """,
    "exai_queue_delete": """
        after delete on public.messages referencing old table as changed for each statement
        execute function exai.queue_words_v1()
    """,
    "exai_queue_truncate": """
        after truncate on public.messages for each statement
        execute function exai.queue_words_v1()
    """,
}


def upgrade() -> None:
    take_locks("messages", "conversations", mode="share row exclusive")
    for name, statement in TABLES.items():
        op.execute(statement)
        op.execute(f"alter table exai.{name} enable row level security")
    # It has no key, and where every table is published nothing could be taken out of it otherwise.
    op.execute("alter table exai.unindexed_messages replica identity full")
    create_functions(FUNCTIONS)
    for name, definition in TRIGGERS.items():
        op.execute(f"create trigger {name} {definition}")


def downgrade() -> None:
    """What is lost can be made again of the messages."""
    take_locks("messages", "conversations")
    for name in TRIGGERS:
        op.execute(f"drop trigger if exists {name} on public.messages")
    for name in FUNCTIONS:
        op.execute(f"drop function if exists exai.{name}")
    for name in TABLES:
        op.execute(f"drop table if exists exai.{name}")
