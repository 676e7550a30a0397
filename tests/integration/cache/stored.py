"""A stand-in for the database behind a cache: one conversation, whose reads are counted and can be held at a gate."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime

from exai.cache.records import Loaded
from exai.errors import NotFound
from exai.models import LOCAL_OWNER, ContinuationId, Conversation, ConversationId, ConversationKey, Message, Owner

NOW = datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=UTC)
NAME = ContinuationId("thread")


def message(seq: int, content: str | None = None) -> Message:
    return Message(seq, "user" if seq % 2 else "assistant", content or f"message {seq}", NOW)


class Stored:
    """`append` and `edit` commit a change; `load` is what the service gives to `read_through`."""

    def __init__(self, size: int = 3, *, owner: Owner = LOCAL_OWNER, name: ContinuationId = NAME) -> None:
        self.owner, self.name, self.server_epoch, self.revision = owner, name, "epoch-1", 1
        self.id = ConversationId("0198c0de-0000-7000-8000-000000000001")
        self.messages = [message(seq) for seq in range(1, size + 1)]
        self.loads = 0
        self.is_gone = False
        self.gate: asyncio.Event | None = None
        self.loading = asyncio.Event()

    @property
    def key(self) -> ConversationKey:
        return ConversationKey(self.owner, self.name)

    def conversation(self) -> Conversation:
        return Conversation(
            id=self.id,
            continuation_id=self.name,
            owner=self.owner,
            title="A title",
            metadata={"nested": {"list": [1, 2.5, None, True]}},
            last_seq=len(self.messages),
            revision=self.revision,
            created_at=NOW,
            updated_at=NOW,
            tags=("one", "two"),
        )

    def page(self) -> Loaded:
        return Loaded(self.conversation(), tuple(self.messages[-50:]), len(self.messages) <= 50, self.server_epoch)

    async def load(self) -> Loaded:
        """One statement: the snapshot is taken at once, the answer may be held up."""
        self.loads += 1
        if self.is_gone:
            raise NotFound("conversation", self.name, "")
        page = self.page()
        self.loading.set()
        if self.gate is not None:
            await self.gate.wait()
        return page

    def append(self, *contents: str) -> tuple[Message, ...]:
        added = tuple(message(len(self.messages) + nr, text) for nr, text in enumerate(contents, 1))
        self.messages += added
        self.revision += 1
        return added

    def edit(self, content: str) -> None:
        self.messages[-1] = self.messages[-1]._replace(content=content)
        self.revision += 1
