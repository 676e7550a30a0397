"""The message history of Microsoft's Agent Framework: `Agent(..., context_providers=[ExaiHistoryProvider()])`.

A session is a conversation with the session's id as its name, and a message of the framework a message of it, whose
content is the readable text.

Invariant: `get_messages` returns messages equal to those that were saved, except for what the framework itself leaves
out when it serializes them (`raw_representation`).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, Final

from agent_framework import HistoryProvider
from agent_framework import Message as FrameworkMessage

from exai.adapters.histories import blocks_of, completed, read_history, shown
from exai.adapters.names import session_name
from exai.adapters.stores import StoreSource
from exai.client.connection import TokenSource
from exai.client.store import DEFAULT_URL
from exai.conversations.requests import AppendRequest
from exai.errors import InvalidArgument
from exai.items import dump_item, load_item
from exai.models import LOCAL_OWNER, Message, NewMessage, Owner, Role
from exai.store import Store

TOOL: Final = "agent_framework"
SOURCE: Final = "exai"
ROLES: Final[dict[str, Role]] = {"user": "user", "system": "system", "assistant": "assistant", "tool": "tool"}


class ExaiHistoryProvider(HistoryProvider):
    """A history provider, in EXAI.

    `store` is an open store, or the address of a daemon, which is connected to at the first call. All sessions are
    those of `owner`. `limit` is the number of newest messages that a run loads; None loads all. Further arguments are
    those of `HistoryProvider`.
    """

    def __init__(
        self,
        store: Store | str = DEFAULT_URL,
        *,
        owner: str = LOCAL_OWNER,
        token: TokenSource = None,
        limit: int | None = None,
        source_id: str = SOURCE,
        **options: Any,
    ) -> None:
        if limit is not None and limit < 0:
            raise InvalidArgument("limit", "is negative", "Give the number of messages, or None for all")
        super().__init__(source_id, **options)
        self._source, self._owner, self._limit = StoreSource(store, token), Owner(owner), limit

    async def get_messages(
        self,
        session_id: str | None,
        *,
        state: dict[str, Any] | None = None,  # noqa: ARG002
        **kwargs: Any,  # noqa: ARG002
    ) -> list[FrameworkMessage]:
        """Return the messages of a session, oldest first; none for an unknown session."""
        if self._limit == 0:
            return []
        conversations = (await self._source.open()).conversations
        history = await read_history(conversations, self._owner, session_name(_given(session_id)), self._limit)
        return [] if history is None else list(map(restored, history.messages))

    async def save_messages(
        self,
        session_id: str | None,
        messages: Sequence[FrameworkMessage],
        *,
        state: dict[str, Any] | None = None,  # noqa: ARG002
        **kwargs: Any,  # noqa: ARG002
    ) -> None:
        """Store messages as one block; a cancelled caller does not interrupt it."""
        name, new = session_name(_given(session_id)), list(map(message_of, messages))
        if not new:
            return
        conversations = (await self._source.open()).conversations

        async def store() -> None:
            for block in blocks_of(new):
                await conversations.append(AppendRequest(self._owner, block, name, create=True, tool=TOOL))

        await completed(store())

    async def close(self) -> None:
        """Close the connections to a daemon; a store that was given stays open."""
        await self._source.close()


def message_of(message: FrameworkMessage) -> NewMessage:
    """Return a message of the framework as one of EXAI."""
    content = message.text or "\n".join(filter(None, map(_call_text, message.contents)))
    return NewMessage(
        ROLES.get(str(message.role), "user"), shown(content), item=dump_item(json.loads(message.to_json()))
    )


def restored(message: Message) -> FrameworkMessage:
    """Return the framework's message, also of one that another client stored."""
    if message.item is None:
        return FrameworkMessage(message.role, [message.content])
    restored_message: FrameworkMessage = FrameworkMessage.from_dict(load_item(message.item))
    return restored_message


def _call_text(content: Any) -> str:
    """Return the readable text of a part that is not text: the call of a tool, or its result."""
    if content.type == "function_call":
        return f"{content.name}({content.arguments or ''})"
    if content.type == "function_result":
        return str(content.result or content.exception or "")
    return f"[{content.type}]"


def _given(session_id: str | None) -> str:
    if not session_id:
        raise InvalidArgument("session_id", "is missing", "Run the agent with a session: agent.create_session()")
    return session_id
