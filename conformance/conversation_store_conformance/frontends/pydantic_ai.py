"""Stores of Pydantic AI: `ConversationStore`, with one message for each item."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from conversation_store_conformance.store import Item, Store

ATTEMPTS = 50


class ConversationStoreFrontend(Store):
    """A `ConversationStore`; an item is the metadata of a message. Tenants are scopes.

    A writer that is refused because the conversation has changed loads it again, as an application does.
    """

    def __init__(self, store: Any, *, persistent: bool, scope: str | None = None) -> None:
        from pydantic_ai.conversation import Conversation
        from pydantic_ai.conversation_store import ConversationConflict
        from pydantic_ai.messages import ModelRequest, UserPromptPart

        self._conversation, self._conflict = Conversation, ConversationConflict
        self._request, self._part = ModelRequest, UserPromptPart
        self._store, self.persistent, self._scope = store, persistent, scope  # type: ignore[misc]

    async def append(self, name: str, items: Sequence[Item]) -> None:
        """Load, extend and save the conversation."""
        if not items:
            return
        for attempt in range(ATTEMPTS):
            conversation = await self._load(name) or self._conversation(conversation_id=name)
            try:
                await self._save(conversation, items)
            except self._conflict:
                if attempt == ATTEMPTS - 1:
                    raise
            else:
                return

    async def read(self, name: str) -> list[Item] | None:
        """Load the conversation."""
        conversation = await self._load(name)
        return None if conversation is None else _items(conversation)

    async def newest(self, name: str, count: int) -> list[Item]:
        """Load the last messages."""
        conversation = await self._store.load(name, limit=count, scope=self._scope)
        return [] if conversation is None else _items(conversation)

    async def delete(self, name: str) -> None:
        """Delete the conversation."""
        await self._store.delete(name, scope=self._scope)

    async def revision(self, name: str) -> Any:
        """Return the revision."""
        conversation = await self._load(name)
        return None if conversation is None else conversation.revision

    async def append_if(self, name: str, items: Sequence[Item], revision: Any) -> None:
        """Save a conversation of this revision."""
        conversation = await self._load(name)
        conversation.revision = revision
        await self._save(conversation, items)

    async def fork(self, name: str, length: int) -> str:
        """Fork the conversation."""
        forked = await self._store.fork(name, at=length)
        return str(forked.conversation_id)

    async def rewind(self, name: str, length: int) -> None:
        """Branch the conversation from an earlier message."""
        await self._store.branch(name, at=length, expected_revision=await self.revision(name))

    def tenant(self, tenant: str) -> Store:
        """Return another scope."""
        return ConversationStoreFrontend(self._store, persistent=self.persistent, scope=tenant)

    async def _load(self, name: str) -> Any:
        return await self._store.load(name, scope=self._scope)

    async def _save(self, conversation: Any, items: Sequence[Item]) -> None:
        for item in items:
            text = item.get("content") if isinstance(item, dict) else None
            part = self._part(content=text if isinstance(text, str) else "")
            conversation.messages.append(self._request(parts=[part], metadata={"item": item}))
        await self._store.save(conversation, scope=self._scope)


def _items(conversation: Any) -> list[Item]:
    return [each.metadata["item"] for each in conversation.messages]
