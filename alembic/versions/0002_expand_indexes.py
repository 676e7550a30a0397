"""Make the indexes the statements rely on.

Locks: built concurrently, so writers go on; outside a transaction, and safe to run again after a failure.
"""

from exai.db.migrate import create_index, drop_index

revision = "0002"
down_revision = "0001"

INDEXES = {
    "conversations_recent_idx": "public.conversations (owner, updated_at desc, id desc)",
    "conversations_changed_idx": "public.conversations (changed_xid)",
    "conversations_parent_idx": "public.conversations (parent_id) where parent_id is not null",
    "messages_created_idx": "public.messages (conversation_id, created_at desc)",
    "messages_system_idx": "public.messages (conversation_id, seq desc) where role = 'system'",
    "messages_text_idx": "public.messages using gin (to_tsvector('simple', left(content, 100000)))",
    "turns_conversation_idx": "public.turns (conversation_id)",
    "files_storage_path_idx": "public.files (storage_path)",
    "conversation_files_file_idx": "public.conversation_files (file_id)",
}


def upgrade() -> None:
    for name, definition in INDEXES.items():
        create_index("public", name, definition)


def downgrade() -> None:
    for name in INDEXES:
        drop_index("public", name)
