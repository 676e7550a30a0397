"""The conversation store of Pydantic AI: `store = ExaiConversationStore()`.

A conversation of the framework is one of EXAI, named `pydantic-ai/` and its id. An entry is a message with the entry's
id as its key, stored once: also those of branches that the conversation has left, in the order of storing. The record
is in the conversation's metadata. A fork inherits the messages of its origin.

Invariant: entries and record are committed together, and only if the record is the one that the caller read.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from typing import Any, Final, NamedTuple

from pydantic import TypeAdapter
from pydantic_ai.conversation_store import (
    ConversationConflict,
    ConversationEntry,
    ConversationRecord,
    ConversationStore,
)
from pydantic_ai.messages import ModelMessage, ModelRequest

from exai.adapters.histories import blocks_of, completed, list_all, read_header, read_history, shown
from exai.adapters.names import conversation_name, name_prefix, storable_id
from exai.adapters.stores import StoreSource
from exai.client.connection import TokenSource
from exai.client.store import DEFAULT_URL
from exai.conversations.requests import AppendRequest
from exai.db.patches import MetadataPatch
from exai.errors import Conflict, NotFound
from exai.items import dump_item, load_item
from exai.models import LOCAL_OWNER, ContinuationId, Conversation, Message, NewMessage, Owner, Role
from exai.store import Conversations, Store

TOOL: Final = "pydantic_ai"
PREFIX: Final = "pydantic-ai"
RECORD: Final = "pydantic_record"
"""The field of a conversation's metadata with the record, as a JSON text."""

MAX_KNOWN_HEADS: Final = 10_000
MAX_ATTEMPTS: Final = 20

RECORDS: Final[TypeAdapter[ConversationRecord]] = TypeAdapter(ConversationRecord)
MESSAGES: Final[TypeAdapter[ModelMessage]] = TypeAdapter(ModelMessage)


class StoredRecord(NamedTuple):
    """A conversation as it is stored, with its record, if it has one."""

    conversation: Conversation
    record: ConversationRecord | None


class ExaiConversationStore(ConversationStore):
    """A conversation store, in EXAI.

    `store` is an open store, or the address of a daemon, which is connected to at the first call. All conversations are
    those of `owner`; the framework's `scope` is stored with each, and divides them further. A deleted conversation can
    be restored for 7 days; its entries are kept as long as forks need them.
    """

    def __init__(
        self, store: Store | str = DEFAULT_URL, *, owner: str = LOCAL_OWNER, token: TokenSource = None
    ) -> None:
        self._source, self._owner = StoreSource(store, token), Owner(owner)
        # Heads of records that were read or written, with their conversations: a history is then read without a search.
        self._heads: OrderedDict[str, ContinuationId] = OrderedDict()

    async def read_record(self, conversation_id: str) -> ConversationRecord | None:
        """Return the record of a conversation, None if there is none. Costs no database round trip if it is cached."""
        stored = await self._stored(await self._conversations(), _name_of(conversation_id))
        return None if stored is None else self._noted(stored.record, stored.conversation)

    async def read_records(self, *, scope: str | None = None, limit: int | None = None) -> Sequence[ConversationRecord]:
        """Return the records of a scope or of all, the last saved first."""
        found = [
            record
            async for each in list_all(await self._conversations(), self._owner, name_prefix(PREFIX))
            if (record := self._noted(_record_of(each), each)) is not None and scope in (None, record.scope)
        ]
        found.sort(key=lambda record: record.updated_at, reverse=True)
        return found[:limit]

    async def write_record(
        self,
        record: ConversationRecord,
        *,
        new_entries: Sequence[ConversationEntry] = (),
        expected_revision: str | None,
    ) -> None:
        """Store a record and new entries in one statement. Raises `ConversationConflict`."""
        messages = [message_of(entry) for entry in new_entries]
        await completed(self._write_stored(record, new_entries, messages, expected_revision))

    async def delete_record(self, conversation_id: str, *, expected_revision: str) -> None:
        """Delete a conversation. Raises `ConversationConflict`."""
        await completed(self._delete_stored(conversation_id, expected_revision))

    async def read_entry(self, entry_id: str) -> ConversationEntry:
        """Return an entry. Raises `KeyError` if there is none."""
        return _entry_of((await self._find(entry_id))[1])

    async def read_history(self, head_id: str | None, *, limit: int | None = None) -> list[ConversationEntry]:
        """Return the entries up to `head_id`, oldest first, or the last `limit` of them. Raises `KeyError`."""
        if head_id is None or limit == 0:
            return []
        name = self._heads.get(head_id)
        if name is None:
            name = (await self._find(head_id))[0]
        for count in (None,) if limit is None else (limit, None):
            history = await read_history(await self._conversations(), self._owner, name, count)
            by_key = {} if history is None else {each.key: each for each in history.messages}
            chain = list(_chain(by_key, head_id, limit))
            if chain and (len(chain) == limit or chain[-1].parent_id is None):
                return chain[::-1]
        self._heads.pop(head_id, None)
        missing = chain[-1].parent_id if chain else head_id
        raise KeyError(missing)

    async def close(self) -> None:
        """Close the connections to a daemon; a store that was given stays open."""
        await self._source.close()

    async def _write_stored(
        self,
        record: ConversationRecord,
        entries: Sequence[ConversationEntry],
        messages: Sequence[NewMessage],
        expected_revision: str | None,
    ) -> None:
        conversations, name = await self._conversations(), _name_of(record.conversation_id)
        blocks = list(blocks_of(messages)) or [()]
        patch = MetadataPatch({RECORD: RECORDS.dump_json(record).decode()})
        for _ in range(MAX_ATTEMPTS):
            revision = await self._revision_for(conversations, record, entries, expected_revision)
            try:
                for block in blocks[:-1]:
                    # Entries that no record points at are not seen.
                    request = AppendRequest(
                        self._owner, block, name, create=True, tool=TOOL, expected_revision=revision
                    )
                    revision = (await conversations.append(request)).revision
                request = AppendRequest(
                    self._owner, blocks[-1], name, create=True, tool=TOOL, patch=patch, expected_revision=revision
                )
                await conversations.append(request)
            except Conflict as conflict:
                # The record may be the same still: another client may have appended.
                if conflict.reason != "revision":
                    raise
                continue
            self._note(record.head_id, name)
            return
        raise ConversationConflict(record.conversation_id)

    async def _revision_for(
        self,
        conversations: Conversations,
        record: ConversationRecord,
        entries: Sequence[ConversationEntry],
        expected_revision: str | None,
    ) -> int:
        """Return the revision of the record's conversation, which is made as a fork if its history begins elsewhere."""
        name = _name_of(record.conversation_id)
        stored = await self._stored(conversations, name)
        known = None if stored is None or stored.record is None else stored.record.revision
        if known != expected_revision:
            raise ConversationConflict(record.conversation_id)
        root = entries[0].parent_id if entries else record.head_id
        if root is None or (stored and stored.record and root == stored.record.head_id):
            return stored.conversation.revision if stored else 0
        if record.head_id not in {root, *(entry.id for entry in entries)}:
            raise ConversationConflict(record.conversation_id)
        try:
            if stored is None:
                origin, message = await self._find(root)
                return (await conversations.fork(self._owner, origin, at_seq=message.seq, name=name)).revision
            if not await conversations.find(self._owner, [storable_id(root)], continuation_id=name):
                raise ConversationConflict(record.conversation_id)
        except (KeyError, NotFound, Conflict) as error:
            raise ConversationConflict(record.conversation_id) from error
        return stored.conversation.revision

    async def _delete_stored(self, conversation_id: str, expected_revision: str) -> None:
        conversations, name = await self._conversations(), _name_of(conversation_id)
        for _ in range(MAX_ATTEMPTS):
            stored = await self._stored(conversations, name)
            if stored is None or stored.record is None or stored.record.revision != expected_revision:
                break
            # First the record, by revision: every other save or deletion then conflicts.
            request = AppendRequest(
                self._owner,
                (),
                name,
                create=True,
                patch=MetadataPatch(remove=[RECORD]),
                expected_revision=stored.conversation.revision,
            )
            try:
                await conversations.append(request)
                await conversations.delete(self._owner, name)
            except Conflict as conflict:
                if conflict.reason != "revision":
                    raise
                continue
            except NotFound:
                pass
            return
        raise ConversationConflict(conversation_id)

    async def _stored(self, conversations: Conversations, name: ContinuationId) -> StoredRecord | None:
        header = await read_header(conversations, self._owner, name)
        return None if header is None else StoredRecord(header, _record_of(header))

    async def _find(self, entry_id: str) -> tuple[ContinuationId, Message]:
        """Return an entry's message and a conversation that has it. Raises `KeyError`.

        Costs one call, and one for each fork if the conversation is deleted that the entry was stored in.
        """
        conversations, key = await self._conversations(), storable_id(entry_id)
        for each in await conversations.find(self._owner, [key], whole=True):
            if each.continuation_id.startswith(name_prefix(PREFIX)) and each.message.item is not None:
                return each.continuation_id, each.message
        async for fork in list_all(conversations, self._owner, name_prefix(PREFIX)):
            if fork.parent_id is None:
                continue
            name = fork.continuation_id
            for each in await conversations.find(self._owner, [key], continuation_id=name, whole=True):
                return name, each.message
        raise KeyError(entry_id)

    async def _conversations(self) -> Conversations:
        return (await self._source.open()).conversations

    def _noted(self, record: ConversationRecord | None, conversation: Conversation) -> ConversationRecord | None:
        if record is not None:
            self._note(record.head_id, conversation.continuation_id)
        return record

    def _note(self, head_id: str | None, name: ContinuationId) -> None:
        if head_id is not None:
            self._heads[head_id] = name
            self._heads.move_to_end(head_id)
            if len(self._heads) > MAX_KNOWN_HEADS:
                self._heads.popitem(last=False)


def message_of(entry: ConversationEntry) -> NewMessage:
    """Return an entry as a message."""
    message = entry.message
    fields = {"id": entry.id, "parent_id": entry.parent_id, "kind": entry.kind}
    item = dump_item({**fields, "message": MESSAGES.dump_python(message, mode="json")})
    text = "\n".join(filter(None, map(_part_text, message.parts)))
    key, created_at = storable_id(entry.id), getattr(message, "timestamp", None)
    return NewMessage(_role(message), shown(text), key=key, created_at=created_at, item=item)


def _entry_of(message: Message) -> ConversationEntry:
    item = load_item(message.item or "")
    fields = {"id": item["id"], "parent_id": item["parent_id"], "kind": item["kind"]}
    return ConversationEntry(message=MESSAGES.validate_python(item["message"]), **fields)


def _chain(by_key: dict[str | None, Message], head_id: str, limit: int | None) -> Iterator[ConversationEntry]:
    """Yield entries from the head back, as far as they are given."""
    entry_id: str | None = head_id
    count = 0
    while entry_id is not None and count != limit:
        message = by_key.pop(storable_id(entry_id), None)
        if message is None or message.item is None:
            return
        entry = _entry_of(message)
        yield entry
        entry_id, count = entry.parent_id, count + 1


def _record_of(conversation: Conversation) -> ConversationRecord | None:
    text = conversation.metadata.get(RECORD)
    return RECORDS.validate_json(text) if isinstance(text, str) else None


def _name_of(conversation_id: str) -> ContinuationId:
    return conversation_name(PREFIX, conversation_id)


def _role(message: ModelMessage) -> Role:
    if not isinstance(message, ModelRequest):
        return "assistant"
    kinds = {part.part_kind for part in message.parts}
    if "user-prompt" in kinds:
        return "user"
    return "tool" if kinds & {"tool-return", "retry-prompt"} else "system"


def _part_text(part: Any) -> str:
    """Return the readable text of a part of a message."""
    if hasattr(part, "tool_name") and hasattr(part, "args"):
        return f"{part.tool_name}({part.args if isinstance(part.args, str) else dump_item(part.args)})"
    content = getattr(part, "content", "")
    if isinstance(content, list | tuple):
        return "\n".join(each for each in content if isinstance(each, str))
    return content if isinstance(content, str) else str(content)
