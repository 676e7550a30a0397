"""Make the functions for forks, changes, deletion, export and import.

Locks: the index is built concurrently.
"""

from alembic import op

from exai.db.migrate import create_functions, create_index, drop_index

revision = "0007"
down_revision = "0006"

FUNCTIONS = (
    "fork_v1",
    "change_conversation_v1",
    "read_forward_v1",
    "import_v1",
)


def upgrade() -> None:
    create_functions(FUNCTIONS)
    create_index(
        "public", "conversations_deleted_idx", "public.conversations (deleted_at) where deleted_at is not null"
    )


def downgrade() -> None:
    drop_index("public", "conversations_deleted_idx")
    for name in reversed(FUNCTIONS):
        op.execute(f"drop function if exists exai.{name}")
