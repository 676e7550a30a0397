"""The interface that the rules use. A front end implements it over the store under test.

`append` and `read` are required; every other method is a capability, and a store has it if its class overrides the
method. A conversation is named by a text and holds JSON values in order.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any, ClassVar

Item = Any
"""A JSON value; most frameworks store objects."""


class Store:
    """One client of the store under test.

    A method refuses by raising any exception; after a refusal nothing of the call is stored. `persistent` states that
    another client, also of another process, that is opened at the same place has the same conversations, `batches` that
    the items of one append are stored together. `lacks` names methods that the class overrides and whose capability the
    store has not.
    """

    persistent: ClassVar[bool] = False
    batches: ClassVar[bool] = True
    lacks: frozenset[str] = frozenset()

    async def append(self, name: str, items: Sequence[Item]) -> None:
        """Append items to a conversation, which is made if it does not exist."""
        raise NotImplementedError

    async def read(self, name: str) -> list[Item] | None:
        """Return all items, oldest first; None or an empty list for an unknown conversation."""
        raise NotImplementedError

    # Capabilities.

    async def newest(self, name: str, count: int) -> list[Item]:
        """Return the newest items, oldest first."""
        raise NotImplementedError

    async def page(self, name: str, cursor: Any, limit: int) -> tuple[list[Item], Any]:
        """Return a page, oldest first, and the cursor of the next page, None at the end. Pages may go either way."""
        raise NotImplementedError

    async def names(self) -> list[str]:
        """Return the names of the conversations."""
        raise NotImplementedError

    async def delete(self, name: str) -> None:
        """Delete a conversation."""
        raise NotImplementedError

    async def clear(self, name: str) -> None:
        """Remove the items of a conversation."""
        raise NotImplementedError

    async def pop(self, name: str) -> Item | None:
        """Remove and return the newest item, None if there is none."""
        raise NotImplementedError

    async def append_once(self, name: str, items: Sequence[Item], key: str) -> None:
        """Append items; a repetition of the request, which has the same key, changes nothing."""
        raise NotImplementedError

    async def append_identified(self, name: str, items: Sequence[tuple[str, Item]]) -> None:
        """Append items with ids; one whose id the conversation has is skipped."""
        raise NotImplementedError

    async def revision(self, name: str) -> Any:
        """Return a value that changes with every write, for `append_if`."""
        raise NotImplementedError

    async def append_if(self, name: str, items: Sequence[Item], revision: Any) -> None:
        """Append items, or refuse if the conversation has another revision."""
        raise NotImplementedError

    async def fork(self, name: str, length: int) -> str:
        """Make a conversation with the first `length` items of another, and return its name."""
        raise NotImplementedError

    async def rewind(self, name: str, length: int) -> None:
        """Remove all items after the first `length`."""
        raise NotImplementedError

    async def state(self, name: str) -> Mapping[str, Any]:
        """Return the state that is kept beside the items."""
        raise NotImplementedError

    async def append_with_state(self, name: str, items: Sequence[Item], changes: Mapping[str, Any]) -> None:
        """Append items and set the top-level fields in `changes`, both or neither."""
        raise NotImplementedError

    def child(self, name: str, part: str) -> str:
        """Return the name of a conversation that belongs to another one, and is deleted with it."""
        raise NotImplementedError

    def tenant(self, tenant: str) -> Store:
        """Return the store of another tenant."""
        raise NotImplementedError

    def cost(self) -> Mapping[str, float]:
        """Return what this client has cost so far, such as statements and round trips."""
        raise NotImplementedError

    async def restart(self) -> None:
        """Kill the store's own process or server, as a crash does, and start it again."""
        raise NotImplementedError

    async def lose_cache(self) -> None:
        """Empty the store's cache."""
        raise NotImplementedError

    async def lose_reply(self) -> None:
        """Let the reply to the next write be lost after the store has carried it out."""
        raise NotImplementedError


OpenStore = Callable[[str], AbstractAsyncContextManager[Store]]
"""Opens a client of the store at a place, an empty directory: the same place has the same conversations."""

REQUIRED = frozenset({"append", "read"})
CAPABILITIES: tuple[str, ...] = (
    *(
        name
        for name in vars(Store)
        if callable(getattr(Store, name)) and not name.startswith("_") and name not in REQUIRED
    ),
    "persistent",
    "batches",
)
"""Names of all capabilities."""


def capabilities_of(store: Store) -> frozenset[str]:
    """Return the capabilities that a store has."""
    own = {
        name
        for name in CAPABILITIES
        if callable(vars(Store)[name]) and getattr(type(store), name) is not vars(Store)[name]
    }
    declared = {name for name in ("persistent", "batches") if getattr(store, name)}
    return frozenset(own | declared) - store.lacks
