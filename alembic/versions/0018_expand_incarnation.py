"""Let caches notice a recovery of the server, and what bypasses the triggers that note changes.

A server that recovers under the same first process gives out transaction ids again, so the incarnation names the
recovery, too. It also names the files of the tables, which a truncation replaces. Edits and deletions are noted in
sessions that replicate, as well, where ordinary triggers do not run.

Locks: creating and altering triggers waits for writers of both tables and holds them back for an instant.
"""

from alembic import op

from exai.db.migrate import create_functions, take_locks

revision = "0018"
down_revision = "0017"

REPLACED = ("incarnation_v1",)
FUNCTIONS = ("note_truncation_v1",)

TRUNCATION = """
    create trigger exai_note_truncate after truncate on public.messages for each statement
    execute function exai.note_truncation_v1()
"""
ALWAYS = {
    "exai_note_update": "messages",
    "exai_note_delete": "messages",
    "exai_note_truncate": "messages",
    "exai_note_change": "conversations",
    "exai_note_removal": "conversations",
}


def upgrade() -> None:
    create_functions((*REPLACED, *FUNCTIONS))
    take_locks("messages", "conversations", mode="share row exclusive")
    op.execute(TRUNCATION)
    for trigger, table in ALWAYS.items():
        op.execute(f"alter table public.{table} enable always trigger {trigger}")


def downgrade() -> None:
    """The incarnation's text may stay: the release before only compares it."""
    take_locks("messages", "conversations", mode="share row exclusive")
    op.execute("drop trigger if exists exai_note_truncate on public.messages")
    for trigger, table in ALWAYS.items():
        if trigger != "exai_note_truncate":
            op.execute(f"alter table public.{table} enable trigger {trigger}")
    for name in FUNCTIONS:
        op.execute(f"drop function if exists exai.{name}")
