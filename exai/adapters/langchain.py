"""A mirror of LangChain agents: `create_agent(..., middleware=[ExaiMirror()])`.

Messages of a thread are stored in a conversation with the thread's id as its name, before the agent starts and after it
has ended, so that other clients can read, search and continue it. The agent's state stays where its checkpointer keeps
it.

Invariant: a message is stored once. One that the agent removes or replaces afterwards stays in the mirror.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final

from langchain.agents.middleware import AgentMiddleware
from langchain_core.messages import BaseMessage, message_to_dict
from langgraph.config import get_config

from exai.adapters.histories import blocks_of, completed, shown
from exai.adapters.names import session_name, storable_id
from exai.adapters.stores import StoreSource
from exai.client import BlockingStore
from exai.client.blocking import LoopThread
from exai.client.connection import TokenSource
from exai.client.store import DEFAULT_URL
from exai.conversations.requests import AppendRequest
from exai.errors import InvalidArgument
from exai.items import dump_item
from exai.models import LOCAL_OWNER, NewMessage, Owner, Role
from exai.store import Store

TOOL: Final = "langchain"
ROLES: Final[Mapping[str, Role]] = {"human": "user", "ai": "assistant", "system": "system", "tool": "tool"}
MAX_THREADS: Final = 10_000
"""Threads whose last stored message is remembered; of others all messages are sent, and the known ones skipped."""


class ExaiMirror(AgentMiddleware):
    """Middleware that mirrors the messages of an agent.

    `store` is an open store, one of `exai.client.blocking`, or the address of a daemon, which is connected to at the
    first call. An agent that is invoked synchronously needs one of the latter two. `owner` is that of the conversation,
    or a function that returns it from the context of the run; `thread` returns the id of the thread from the
    configuration of the run.
    """

    def __init__(
        self,
        store: Store | BlockingStore | str = DEFAULT_URL,
        *,
        owner: str | Callable[[Any], str] = LOCAL_OWNER,
        token: TokenSource = None,
        thread: Callable[[Mapping[str, Any]], str] | None = None,
    ) -> None:
        super().__init__()
        self._blocking = store if isinstance(store, BlockingStore) else None
        self._source = None if isinstance(store, BlockingStore) else StoreSource(store, token)
        self._is_address, self._owner, self._thread_of = isinstance(store, str), owner, thread or _thread_of
        self._loop: LoopThread | None = None
        # The last stored message of each thread.
        self._last: OrderedDict[tuple[Owner, str], str] = OrderedDict()

    def before_agent(self, state: Any, runtime: Any) -> None:
        """Store the messages that the agent starts with."""
        self._mirror_blocking(state, runtime)

    async def abefore_agent(self, state: Any, runtime: Any) -> None:
        """Store the messages that the agent starts with."""
        await self._mirror(state, runtime)

    def after_agent(self, state: Any, runtime: Any) -> None:
        """Store the messages that the agent has added."""
        self._mirror_blocking(state, runtime)

    async def aafter_agent(self, state: Any, runtime: Any) -> None:
        """Store the messages that the agent has added."""
        await self._mirror(state, runtime)

    def close(self) -> None:
        """Close the connections of synchronous calls to a daemon."""
        if self._loop is not None and self._source is not None:
            self._loop.wait(self._source.close())
            self._loop.close()
            self._loop = None

    async def aclose(self) -> None:
        """Close the connections of this event loop to a daemon; a store that was given stays open."""
        if self._source is not None:
            await self._source.close()

    async def _mirror(self, state: Any, runtime: Any) -> None:
        owner, thread, new = self._new(state, runtime)
        if self._source is None:
            raise InvalidArgument("store", "is a blocking one", "Invoke the agent synchronously, or give another store")
        await completed(self._store(self._source, owner, thread, new))

    def _mirror_blocking(self, state: Any, runtime: Any) -> None:
        owner, thread, new = self._new(state, runtime)
        if self._blocking is not None:
            for request in _requests(owner, thread, new):
                self._blocking.conversations.append(request)
            self._note(owner, thread, new)
        elif self._is_address and self._source is not None:
            self._loop = self._loop or LoopThread()
            self._loop.wait(self._store(self._source, owner, thread, new))
        else:
            raise InvalidArgument(
                "store", "belongs to an event loop", "Use ainvoke, a blocking store, or the address of a daemon"
            )

    async def _store(self, source: StoreSource, owner: Owner, thread: str, new: Sequence[BaseMessage]) -> None:
        for request in _requests(owner, thread, new):
            await (await source.open()).conversations.append(request)
        self._note(owner, thread, new)

    def _new(self, state: Any, runtime: Any) -> tuple[Owner, str, Sequence[BaseMessage]]:
        """Return the messages after the last stored one, all if it is not among them."""
        owner = Owner(self._owner(runtime.context) if callable(self._owner) else self._owner)
        thread = self._thread_of(get_config())
        messages, last = state["messages"], self._last.get((owner, thread))
        for place in range(len(messages) - 1, -1, -1):
            if messages[place].id == last is not None:
                return owner, thread, messages[place + 1 :]
        return owner, thread, messages

    def _note(self, owner: Owner, thread: str, new: Sequence[BaseMessage]) -> None:
        if new and new[-1].id is not None:
            self._last[owner, thread] = new[-1].id
            self._last.move_to_end((owner, thread))
            if len(self._last) > MAX_THREADS:
                self._last.popitem(last=False)


def message_of(message: BaseMessage) -> NewMessage:
    """Return a message of LangChain as one of EXAI."""
    calls = [f"{call['name']}({dump_item(call['args'])})" for call in getattr(message, "tool_calls", ())]
    text = "\n".join(filter(None, [str(message.text), *calls]))
    key = None if message.id is None else storable_id(message.id)
    return NewMessage(ROLES.get(message.type, "user"), shown(text), key=key, item=dump_item(message_to_dict(message)))


def _requests(owner: Owner, thread: str, new: Sequence[BaseMessage]) -> Iterator[AppendRequest]:
    for block in blocks_of(map(message_of, new)):
        yield AppendRequest(owner, block, session_name(thread), create=True, tool=TOOL)


def _thread_of(config: Mapping[str, Any]) -> str:
    thread = config.get("configurable", {}).get("thread_id")
    if not thread:
        raise InvalidArgument(
            "thread_id", "is missing in the configuration of the run", 'Give {"configurable": {"thread_id": "..."}}'
        )
    return str(thread)
