"""Let titles be searched, and let forks and changes of a conversation carry a request key.

The functions of the previous release stay until it is gone.

Locks: the index is built concurrently.
"""

from alembic import op

from exai.db.migrate import create_functions, create_index, drop_index

revision = "0011"
down_revision = "0010"

FUNCTIONS = (
    "fork_v2",
    "change_conversation_v2",
)


def upgrade() -> None:
    create_functions(FUNCTIONS)
    # Without a title a conversation is not in it, so that appends to it do not pay for it.
    create_index(
        "public",
        "conversations_title_idx",
        "public.conversations using gin (to_tsvector('simple', left(title, 100000))) where title is not null",
    )


def downgrade() -> None:
    drop_index("public", "conversations_title_idx")
    for name in reversed(FUNCTIONS):
        op.execute(f"drop function if exists exai.{name}")
