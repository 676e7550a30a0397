"""Sessions of the OpenAI Agents SDK: `Runner.run(agent, question, session=ExaiSession("conversation"))`.

An item of a session is a message of one conversation, whose content is the item's readable text. The conversation has
the session's id as its name, so that other clients can read, search and continue it.

Invariant: `get_items` returns equal items to those that were added, and a cancelled caller loses no write.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, Protocol

from exai.adapters.histories import blocks_of, completed, read_history, shown
from exai.adapters.names import session_name
from exai.adapters.stores import StoreSource
from exai.client.connection import TokenSource
from exai.client.store import DEFAULT_URL
from exai.conversations.requests import AppendRequest
from exai.errors import InvalidArgument, NotFound
from exai.items import UNSTORABLE, dump_item, load_item
from exai.models import LOCAL_OWNER, Message, NewMessage, Owner, Role
from exai.store import Conversations, Store
from exai.validation import MAX_KIND_CHARS

TOOL: Final = "openai_agents"
PLAIN_ROLES: Final[Mapping[str, Role]] = {"user": "user", "assistant": "assistant", "system": "system"}
"""Roles of items that are stored without a copy if they have a text and nothing else."""

ROLES: Final[Mapping[str, Role]] = {**PLAIN_ROLES, "developer": "system"}
PLAIN_FIELDS: Final = {"role", "content"}
TEXT_FIELDS: Final = ("text", "refusal", "output", "summary", "content", "result", "transcript")
"""Where items have readable text, in the order of reading."""

SessionItem = Any
"""An input item of the Responses API: a mapping of any form."""


class RunContext(Protocol):
    """The SDK's `RunContextWrapper`."""

    @property
    def context(self) -> Any:
        """The context that the program gave to the run."""


class ExaiSession:
    """A session of the SDK, in EXAI.

    `store` is an open store, or the address of a daemon, which is connected to at the first call. `owner` is that of
    the conversation, or a function that returns it from the context of the run. `session_settings` are the SDK's; their
    `limit` is the number of items that are read if the caller gives none.
    """

    def __init__(
        self,
        session_id: str,
        store: Store | str = DEFAULT_URL,
        *,
        owner: str | Callable[[Any], str] = LOCAL_OWNER,
        token: TokenSource = None,
        session_settings: Any = None,
    ) -> None:
        self.session_id, self.session_settings = session_id, session_settings
        self._name, self._owner = session_name(session_id), owner
        self._source = StoreSource(store, token)

    async def get_items(self, limit: int | None = None, *, wrapper: RunContext | None = None) -> list[SessionItem]:
        """Return the newest `limit` items, oldest first; all for a negative number, or without a limit."""
        count = self._default_limit() if limit is None else limit
        if count == 0:
            return []
        conversations, owner = await self._open(wrapper)
        history = await read_history(conversations, owner, self._name, None if count is None or count < 0 else count)
        found = () if history is None else map(item_of, history.messages)
        return [each for each in found if each is not None]

    async def add_items(self, items: Sequence[SessionItem], *, wrapper: RunContext | None = None) -> None:
        """Store items as one block. Raises `TypeError` or `ValueError` for one that is not JSON."""
        messages = [message_of(item) for item in items]
        conversations, owner = await self._open(wrapper)

        async def store() -> None:
            for block in blocks_of(messages):
                request = AppendRequest(owner, block, self._name, create=True, tool=TOOL)
                await conversations.append(request)

        await completed(store())

    async def pop_item(self, *, wrapper: RunContext | None = None) -> SessionItem | None:
        """Remove the newest item and return it, None if there is none. Concurrent callers receive different items."""
        conversations, owner = await self._open(wrapper)
        return await completed(self._pop(conversations, owner))

    async def clear_session(self, *, wrapper: RunContext | None = None) -> None:
        """Remove all items. They can be restored for 7 days."""
        conversations, owner = await self._open(wrapper)

        async def clear() -> None:
            try:
                await conversations.rewind(owner, self._name, to_seq=0)
            except NotFound:
                return

        await completed(clear())

    async def close(self) -> None:
        """Close the connections to a daemon; a store that was given stays open."""
        await self._source.close()

    async def _pop(self, conversations: Conversations, owner: Owner) -> SessionItem | None:
        while True:
            try:
                rewound = await conversations.rewind(owner, self._name, drop=1)
            except NotFound:
                return None
            if not rewound.cut:
                return None
            item = item_of(rewound.cut[-1])
            if item is not None:
                return item

    async def _open(self, wrapper: RunContext | None) -> tuple[Conversations, Owner]:
        owner = self._owner
        if callable(owner):
            if wrapper is None:
                raise InvalidArgument("wrapper", "is missing; it has the owner", "Give the context of the run")
            owner = owner(wrapper.context)
        return (await self._source.open()).conversations, Owner(owner)

    def _default_limit(self) -> int | None:
        settings = self.session_settings
        limit: int | None = settings.get("limit") if isinstance(settings, Mapping) else getattr(settings, "limit", None)
        return limit


def message_of(item: SessionItem) -> NewMessage:
    """Return an item as a message."""
    text = dump_item(item)
    if not isinstance(item, Mapping):
        return NewMessage("user", shown(str(item)), item=text)
    role, kind = item.get("role"), str(item.get("type") or "message")
    plain = PLAIN_ROLES.get(role) if isinstance(role, str) else None
    if plain is not None and item.keys() == PLAIN_FIELDS and _is_storable(item["content"]):
        return NewMessage(plain, item["content"])
    return NewMessage(_role(role, kind), shown(_text(item)), shown(kind)[:MAX_KIND_CHARS], item=text)


def _is_storable(content: object) -> bool:
    return isinstance(content, str) and UNSTORABLE.search(content) is None


def item_of(message: Message) -> SessionItem | None:
    """Return the item of a message, also of one that another client stored; None if its item is damaged."""
    text = message.item
    if text is None:
        return {"role": PLAIN_ROLES.get(message.role, "user"), "content": message.content}
    try:
        return load_item(text)
    except ValueError:
        return None


def _role(role: object, kind: str) -> Role:
    if isinstance(role, str) and role in ROLES:
        return ROLES[role]
    return "tool" if kind.endswith("_output") else "assistant"


def _text(item: Mapping[str, Any]) -> str:
    """Return the readable text of an item: its texts, or the call of a tool with its arguments."""
    lines = [f"{item['name']}({item.get('arguments', item.get('input', ''))})"] if "name" in item else []
    for name in TEXT_FIELDS:
        lines += _texts(item.get(name))
    return "\n".join(lines)


def _texts(value: object) -> list[str]:
    if isinstance(value, str):
        return [value]
    if isinstance(value, Mapping):
        return [text for name in TEXT_FIELDS if isinstance(text := value.get(name), str)]
    if isinstance(value, list | tuple):
        # Texts of parts only: what is deeper is data.
        return [text for part in value if isinstance(part, str | Mapping) for text in _texts(part)]
    return []
