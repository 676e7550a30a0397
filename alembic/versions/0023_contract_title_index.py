"""Drop the index of words on the titles: they are indexed beside the messages' words.

Locks: built and dropped concurrently; dropping waits for the transactions that use conversations.
"""

from exai.db.migrate import create_index, drop_index

revision = "0023"
down_revision = "0022"


def upgrade() -> None:
    drop_index("public", "conversations_title_idx")


def downgrade() -> None:
    create_index(
        "public",
        "conversations_title_idx",
        "public.conversations using gin (to_tsvector('simple', left(title, 100000)))"
        " with (gin_pending_list_limit = 64) where title is not null",
    )
