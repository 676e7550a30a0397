"""Make the functions behind the service's statements, and the triggers that note what others write.

Locks: creating a trigger waits for writers of its table and holds them back for an instant.
"""

from alembic import op

from exai.db.migrate import create_functions, take_locks

revision = "0005"
down_revision = "0004"

FUNCTIONS = (
    "incarnation_v1",
    "header_v1",
    "turn_v1",
    "read_page_v1",
    "store_turn_v1",
    "append_v1",
    "begin_turn_v1",
    "finish_turn_v1",
    "turn_state_v1",
    "fix_number_v1",
    "note_edit_v1",
    "note_change_v1",
    "note_removal_v1",
)

TRIGGERS = {
    ("messages", "exai_fix_number"): """
        before update of conversation_id, seq on public.messages for each row
        when (old.seq is not null
              and (old.seq is distinct from new.seq or old.conversation_id is distinct from new.conversation_id))
        execute function exai.fix_number_v1()
    """,
    ("messages", "exai_note_update"): """
        after update on public.messages referencing new table as changed for each statement
        execute function exai.note_edit_v1()
    """,
    ("messages", "exai_note_delete"): """
        after delete on public.messages referencing old table as changed for each statement
        execute function exai.note_edit_v1()
    """,
    ("conversations", "exai_note_change"): """
        before update on public.conversations for each row
        when (new.revision = old.revision and (
            new.owner is distinct from old.owner or new.continuation_id is distinct from old.continuation_id
            or new.title is distinct from old.title or new.metadata is distinct from old.metadata
            or new.tags is distinct from old.tags or new.deleted_at is distinct from old.deleted_at
            or new.parent_id is distinct from old.parent_id or new.parent_seq is distinct from old.parent_seq))
        execute function exai.note_change_v1()
    """,
    ("conversations", "exai_note_removal"): """
        after delete on public.conversations for each row
        execute function exai.note_removal_v1()
    """,
}


def upgrade() -> None:
    create_functions(FUNCTIONS)
    take_locks("messages", "conversations", mode="share row exclusive")
    for (_, name), definition in TRIGGERS.items():
        op.execute(f"create trigger {name} {definition}")


def downgrade() -> None:
    take_locks("messages", "conversations")
    for table, name in TRIGGERS:
        op.execute(f"drop trigger if exists {name} on public.{table}")
    for name in reversed(FUNCTIONS):
        op.execute(f"drop function if exists exai.{name}")
