"""Create the indexes that the statements rely on.

Locks: built concurrently, so writers continue; outside a transaction, and safe to run again after a failure.
"""

from alembic import op

from exai.db.migrations.migrate import create_index, drop_index

revision = "0004"
down_revision = "0003"

INDEXES = {
    "conversations_recent_idx": "public.conversations (owner, updated_at desc, id desc)",
    "conversations_changed_idx": "public.conversations (changed_xid)",
    "conversations_parent_idx": "public.conversations (parent_id) where parent_id is not null",
    "conversations_deleted_idx": "public.conversations (deleted_at) where deleted_at is not null",
    "conversations_created_idx": "public.conversations (owner, created_at, id)",
    # In the order of code points, so that names with the same beginning are adjacent in any locale.
    "conversations_name_idx": 'public.conversations (owner, continuation_id collate "C")',
    "conversations_former_idx": "public.conversations (owner, former_name) where former_name is not null",
    "removed_conversations_name_idx": "exai.removed_conversations (owner, continuation_id)",
    "conversations_expires_idx": "public.conversations (expires_at) where expires_at is not null",
    "messages_created_idx": "public.messages (conversation_id, created_at desc)",
    "messages_system_idx": "public.messages (conversation_id, seq desc) where role = 'system'",
    "turns_conversation_idx": "public.turns (conversation_id)",
    "turns_pending_idx": "public.turns (conversation_id) where state = 'pending'",
    "turns_asked_idx": "public.turns (owner, started_at) where model is not null",
    # Without appends, which are most turns of some databases, and are not what a list is filtered by.
    "turns_tool_idx": "public.turns (owner, tool, conversation_id) where tool <> 'conversation_append'",
    "turns_model_idx": "public.turns (owner, model, conversation_id) where model is not null",
    "files_storage_path_idx": "public.files (storage_path)",
    "files_recent_idx": "public.files (owner, created_at desc, id desc)",
    "files_content_idx": "public.files (owner, sha256)",
    "conversation_files_file_idx": "public.conversation_files (file_id)",
    "answers_conversation_idx": "exai.answers (conversation_id)",
    "contents_storage_path_idx": "exai.contents (storage_path) where storage_path is not null",
    # `exai.index_messages_v1` empties the list of pending entries as soon as it has filled it; an insert is not to.
    "message_words_words_idx": "exai.message_words using gin (words) with (gin_pending_list_limit = 16384)",
}
UNIQUE = {
    "contents_blob_idx": "exai.contents (blob_id)",
    # By the key first, so that a message is also found without its conversation.
    "messages_key_idx": "public.messages (message_key, conversation_id) where message_key is not null",
}

OLDER = {
    "idx_messages_conversation_created": ("messages", ["conversation_id", "created_at"]),
    "idx_messages_conversation_id_created": ("messages", ["conversation_id", "created_at"]),
    "idx_messages_conversation_id": ("messages", ["conversation_id"]),
    "idx_files_storage_path": ("files", ["storage_path"]),
    "idx_conversation_files_file_id": ("conversation_files", ["file_id"]),
}
"""Indexes of an older system, each equal to one of EXAI's or to its prefix, which would only slow down writes."""

IS_AS_EXPECTED = """
select 1 from pg_catalog.pg_index x
 where x.indexrelid = to_regclass('public.' || $1::text) and x.indrelid = $2::text::regclass
   and not x.indisunique and x.indpred is null and x.indexprs is null
   and (select array_agg(a.attname::text order by k.ord)
          from unnest(x.indkey::smallint[]) with ordinality k(attnum, ord)
          join pg_catalog.pg_attribute a on a.attrelid = x.indrelid and a.attnum = k.attnum) = $3::text[]
"""


UNTIED = "select row ->> 'definition' from exai.quarantine where reason = 'index to be built again'"
BUILT = "delete from exai.quarantine where reason = 'index to be built again'"


def upgrade() -> None:
    for name, definition in (INDEXES | UNIQUE).items():
        create_index(definition.split(".")[0], name, definition, unique=name in UNIQUE)
    for (definition,) in op.get_bind().exec_driver_sql(UNTIED).fetchall():
        # The form of pg_get_indexdef: CREATE INDEX name ON schema.table USING ...
        name, rest = definition.removeprefix("CREATE INDEX ").split(" ON ", 1)
        create_index("public", name, rest)
    op.execute(BUILT)
    for name, (table, columns) in OLDER.items():
        if op.get_bind().exec_driver_sql(IS_AS_EXPECTED, (name, f"public.{table}", columns)).fetchall():
            drop_index("public", name)


def downgrade() -> None:
    for name, definition in (INDEXES | UNIQUE).items():
        drop_index(definition.split(".")[0], name)
