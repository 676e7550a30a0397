"""Let the time of a change be the clock's, whatever times the data brings.

A conversation that was imported or taken over with a last change in the future gave that time to every later message.
Times of messages stay as they are.

Locks: creating a trigger waits for writers of its table and holds them back for an instant.
"""

from alembic import op

from exai.db.migrate import create_functions, patiently, take_locks

revision = "0020"
down_revision = "0019"

REPLACED = (
    "append_v1",
    "append_group_v1",
    "store_turn_v1",
    "finish_turn_v1",
    "change_conversation_v1",
    "change_conversation_v2",
    "import_v1",
    "number_message_v1",
    "note_edit_v1",
    "note_change_v1",
)
FUNCTIONS = ("clock_change_v1",)

# Our own statements take the time before it is compared here, so they never call the function.
TRIGGER = """
    create trigger exai_clock before insert or update of updated_at on public.conversations for each row
    when (new.updated_at > clock_timestamp())
    execute function exai.clock_change_v1()
"""


def upgrade() -> None:
    create_functions((*REPLACED, *FUNCTIONS))
    take_locks("conversations", mode="share row exclusive")
    op.execute(TRIGGER)
    with patiently():
        op.execute("update public.conversations set updated_at = now() where updated_at > now()")


def downgrade() -> None:
    """The functions that were replaced may stay."""
    take_locks("conversations", mode="share row exclusive")
    op.execute("drop trigger if exists exai_clock on public.conversations")
    for name in FUNCTIONS:
        op.execute(f"drop function if exists exai.{name}")
