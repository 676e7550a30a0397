"""Drop the index of words on the messages: search uses the one beside them, and storing no longer pays for it.

Searches of a daemon of the release before are slow from here on, as long as one still runs, and their hits the same.

Locks: built and dropped concurrently.
"""

from exai.db.migrate import create_index, drop_index

revision = "0016"
down_revision = "0015"


def upgrade() -> None:
    drop_index("public", "messages_text_idx")


def downgrade() -> None:
    create_index(
        "public",
        "messages_text_idx",
        "public.messages using gin (pg_catalog.to_tsvector('simple', pg_catalog.left(content, 100000)))"
        " with (gin_pending_list_limit = 64)",
    )
