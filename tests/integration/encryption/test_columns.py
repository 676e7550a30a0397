"""Every column of every table that can hold a text is declared: encrypted, or readable with the reason."""

from __future__ import annotations

from typing import Any

from exai.conversations import AppendRequest, ChatRequest
from exai.db.lifecycle import ConversationUpdate
from exai.files.loading import FileContent
from exai.models import LOCAL_OWNER, FileSource, NewMessage
from tests.integration.conversations.conftest import Rig
from tests.support.checkpoints import store_checkpoint
from tests.support.migrations import session

COLUMNS = """
select format('%s.%s', n.nspname, c.relname) as "table", a.attname::text as "column"
  from pg_attribute a
  join pg_class c on c.oid = a.attrelid and c.relkind in ('r', 'p') and not c.relispartition
  join pg_namespace n on n.oid = c.relnamespace
 where n.nspname in ('public', 'exai', 'monitoring') and a.attnum > 0 and not a.attisdropped
   and a.atttypid::regtype::text in
       ('text', 'jsonb', 'json', 'bytea', 'text[]', 'tsvector', 'real[]', 'character varying')
"""

NAME = "names and numbers by which rows are found"
STATE = "a state, a kind, or a time"
TOOL = "names of tools and models, by which turns are listed and counted"
BY_CLIENTS = "written or read over PostgREST by clients that have no key"
HASH = "a keyed hash if content is encrypted"

ENCRYPTED = {
    "public.conversations": ("title", "metadata"),
    "public.messages": ("content", "metadata"),
    "public.turns": ("error", "metadata"),
    "exai.blob_parts": ("data",),
    "exai.content_texts": ("text", "note"),
    "exai.contents": ("encoding",),
    "public.files": ("name",),
    "public.conversation_files": ("source",),
    "exai.checkpoints": ("body", "metadata", "facts"),
    "exai.checkpoint_blobs": ("value",),
    "exai.checkpoint_writes": ("value",),
}
READABLE = {
    "public.conversations": {
        "owner": NAME, "continuation_id": NAME, "former_name": NAME, "tags": "lists are filtered by tags",
        "reply_kind": STATE,
    },
    "public.messages": {"role": STATE, "kind": STATE, "message_key": NAME},
    "public.turns": {
        "owner": NAME, "request_key": "the idempotency key as given", "request_hash": HASH, "tool": TOOL,
        "state": STATE,         "provider": TOOL, "model": TOOL,
    },
    "public.files": {
        "owner": NAME, "sha256": NAME, "media_type": STATE, "storage_path": NAME,
    },
    "public.requests": dict.fromkeys(
        ("owner", "tool", "arguments", "state", "progress", "partial", "answer", "result", "error", "continuation_id"),
        BY_CLIENTS,
    ),
    "exai.adopted_tables": dict.fromkeys(("name", "replica_identity"), NAME),
    "exai.alembic_version": {"version_num": NAME},
    "exai.answers": {
        "owner": NAME, "rest": HASH, "embedding": TOOL, "question": HASH,
        "vector": "only with EXAI_STORE__EMBEDDINGS",
    },
    "exai.checkpoint_threads": dict.fromkeys(("owner", "thread_id", "copied_from"), NAME),
    "exai.checkpoints": dict.fromkeys(
        ("owner", "namespace", "checkpoint_id", "parent_id", "run_id", "body_type", "metadata_type", "versions",
         "delta_channels", "key_name", "bound_to"),
        NAME,
    ),
    "exai.checkpoint_blobs": dict.fromkeys(
        ("namespace", "channel", "version", "value_type", "key_name", "bound_to"), NAME
    ),
    "exai.checkpoint_writes": dict.fromkeys(
        ("namespace", "checkpoint_id", "task_id", "task_path", "channel", "value_type", "key_name", "bound_to"), NAME
    ),
    "exai.removed_threads": dict.fromkeys(("owner", "thread_id"), NAME),
    "exai.content_texts": {"owner": NAME, "sha256": NAME, "source": STATE},
    "exai.contents": {"owner": NAME, "sha256": NAME, "store": STATE, "storage_path": NAME},
    "exai.encryption_keys": {"name": NAME, "fingerprint": "of a key", "wrapped": "a key, encrypted"},
    "exai.message_words": {"words": HASH},
    "exai.purged_turns": dict.fromkeys(("owner", "continuation_id", "tool", "state", "provider", "model"), NAME),
    "exai.quarantine": dict.fromkeys(("table_name", "reason", "row"), "rows of an older system that were not adopted"),
    "exai.remote_files": dict.fromkeys(("key_id", "file_id"), NAME),
    "exai.removed_conversations": dict.fromkeys(("owner", "continuation_id"), NAME),
}  # fmt: skip
METRICS = "metrics and records of commands hold no content"

CANARY = "zanzibar"


async def columns(url: str) -> set[tuple[str, str]]:
    """Tables and columns that can hold a text."""
    async with session(url) as connection:
        return {(row["table"], row["column"]) for row in await connection.fetch(COLUMNS)}


async def test_every_column_is_declared(postgres_url: str) -> None:
    """A new one has to be encrypted, or listed with the reason, and in docs/encryption.md."""
    declared = {(table, column) for table, names in ENCRYPTED.items() for column in names}
    declared |= {(table, column) for table, names in READABLE.items() for column in names}
    found = {each for each in await columns(postgres_url) if not each[0].startswith("monitoring.")}
    assert found == declared


async def test_no_table_and_no_key_of_redis_holds_what_is_encrypted(
    rig: Rig, postgres_url: str, redis_url: str
) -> None:
    """A word of every text is looked for in a copy of every table, and in everything that Redis holds."""
    app = rig.app
    message = NewMessage("user", f"{CANARY} message", metadata={"note": f"{CANARY} metadata"})
    request = AppendRequest(LOCAL_OWNER, [message], title=f"{CANARY} title", idempotency_key="once")
    name = (await app.conversations.append(request)).continuation_id
    await app.conversations.append(request)
    answered = await app.chat.run(ChatRequest(LOCAL_OWNER, f"{CANARY}?", continuation_id=name, cache="use"))
    assert answered.content
    await app.chat.run(ChatRequest(LOCAL_OWNER, f"{CANARY}!", system=f"{CANARY} system"))
    update = ConversationUpdate(title=f"{CANARY} new", metadata={"note": CANARY})
    await app.conversations.change(LOCAL_OWNER, name, update, idempotency_key="change")
    await app.conversations.fork(LOCAL_OWNER, name, title=f"{CANARY} fork")
    (file,) = await app.files.put(LOCAL_OWNER, [FileContent(f"{CANARY}.txt", CANARY.encode() * 100)])
    source = FileSource(f"/{CANARY}/{CANARY}.txt", CANARY, CANARY, 800, 1, 2)
    append = AppendRequest(LOCAL_OWNER, [NewMessage("user", CANARY)], name, files=(file.id,), sources={file.id: source})
    await app.conversations.append(append)
    assert (await app.files.list_read(LOCAL_OWNER, name, CANARY, 10))[0].source == source
    await app.conversations.read(LOCAL_OWNER, name)
    await store_checkpoint(app.checkpoints, CANARY)
    await app.checkpoints.copy(LOCAL_OWNER, "thread", "copy")
    await app.checkpoints.get(LOCAL_OWNER, "thread")
    await app.cache.wait_settled()
    await app.maintenance.index_words()
    for text in await copies(postgres_url):
        assert CANARY not in text.lower(), text[:300]
        # As the server shows bytes.
        assert CANARY.encode().hex() not in text.lower(), text[:300]
    client = app.cache._client
    assert client is not None
    held = await everything(client)
    assert held
    assert CANARY not in str(held).lower()


async def copies(url: str) -> list[str]:
    """All rows of all tables as text."""
    tables = sorted({table for table, _ in await columns(url)})
    async with session(url) as connection:
        return [str(row[0]) for table in tables for row in await connection.fetch(f"select t::text from {table} t")]


async def everything(client: Any) -> list[Any]:
    """All keys of Redis with their values, as a dump of the server has them."""
    keys = await client.call(0, "KEYS", "*")
    held = []
    for each in keys:
        kind = await client.call(0, "TYPE", each)
        command = {b"hash": ("HGETALL",), b"string": ("GET",), b"zset": ("ZRANGE", "0", "-1")}.get(kind, ("TYPE",))
        held.append((each, await client.call(0, command[0], each, *command[1:])))
    return held
