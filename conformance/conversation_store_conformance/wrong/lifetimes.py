"""Wrong stores for the groups durability, state and histories."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping, Sequence
from typing import Any

from conversation_store_conformance.reference import ReferenceStore, empty
from conversation_store_conformance.store import Item
from conversation_store_conformance.wrong import breaks


class WritesAtTheEnd(ReferenceStore):
    """Keeps everything in memory, and writes it when the client is closed."""

    def __init__(self, place: str, tenant: str = "") -> None:
        super().__init__(place, tenant)
        self.memory: dict[str, list[Item]] = {}

    async def append(self, name: str, items: Sequence[Item]) -> None:
        self.memory.setdefault(name, []).extend(self.checked(items))

    async def read(self, name: str) -> list[Item] | None:
        return [*(await super().read(name) or ()), *self.memory.get(name, ())]

    async def restart(self) -> None:
        self.memory.clear()

    async def lose_cache(self) -> None:
        self.memory.clear()

    def close(self) -> None:
        for name, items in self.memory.items():
            self.write(name, items)
        super().close()


breaks("durability.killed-client", "durability.killed-store", "durability.lost-cache")(WritesAtTheEnd)


@breaks("durability.reopened")
class ForgetsAtTheEnd(WritesAtTheEnd):
    """Never writes."""

    def close(self) -> None:
        self.memory.clear()
        super().close()


@breaks("durability.all-or-nothing")
class WritesItemByItem(ReferenceStore):
    """Commits each item of a batch, with a pause in which it is killed."""

    async def append(self, name: str, items: Sequence[Item]) -> None:
        for item in self.checked(items):
            self.write(name, [item])
            await asyncio.sleep(0.02)


@breaks("durability.writes-after-a-kill")
class LeavesALock(ReferenceStore):
    """Guards a conversation by a file, which a killed process leaves."""

    async def append(self, name: str, items: Sequence[Item]) -> None:
        lock = os.path.join(self.place, f"{name}.lock")  # noqa: PTH118
        try:
            os.close(os.open(lock, os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            raise TimeoutError("the conversation is locked") from None
        await super().append(name, items)
        await asyncio.sleep(0.02)
        os.unlink(lock)  # noqa: PTH108


@breaks("state.shallow-merge")
class ReplacesState(ReferenceStore):
    """Replaces the whole state."""

    async def append_with_state(self, name: str, items: Sequence[Item], changes: Mapping[str, Any]) -> None:
        await self.append(name, items)
        self.save(name, {**(self.document(name) or empty()), "state": dict(changes)})


@breaks("state.with-the-items")
class StateFirst(ReferenceStore):
    """Stores the state before the items."""

    async def append_with_state(self, name: str, items: Sequence[Item], changes: Mapping[str, Any]) -> None:
        await super().append_with_state(name, [], changes)
        await self.append(name, items)


@breaks("state.concurrent-changes")
class MergesWhatItRead(ReferenceStore):
    """Merges into the state that it read before it waited."""

    async def append_with_state(self, name: str, items: Sequence[Item], changes: Mapping[str, Any]) -> None:
        state = {**await self.state(name), **changes}
        await asyncio.sleep(0)
        await self.append(name, items)
        self.save(name, {**(self.document(name) or empty()), "state": state})


@breaks("state.per-conversation")
class OneState(ReferenceStore):
    """Has one state for all conversations."""

    async def append_with_state(self, name: str, items: Sequence[Item], changes: Mapping[str, Any]) -> None:
        await self.append(name, items)
        await super().append_with_state("the state", [], changes)

    async def state(self, name: str) -> Mapping[str, Any]:
        return await super().state("the state")


@breaks("state.result-is-a-copy")
class GivesOutItsState(ReferenceStore):
    """Keeps the state as an object."""

    states: dict[str, dict[str, Any]] = {}

    async def append_with_state(self, name: str, items: Sequence[Item], changes: Mapping[str, Any]) -> None:
        self.states.setdefault(name, {}).update(changes)

    async def state(self, name: str) -> Mapping[str, Any]:
        return self.states.get(name, {})


@breaks("state.fork")
class ForksOneMore(ReferenceStore):
    """Counts items from 0 and includes the last."""

    async def fork(self, name: str, length: int) -> str:
        return await super().fork(name, length + 1)


@breaks("state.fork-diverges", "state.fork-outlives-its-source", "state.rewind-leaves-forks")
class ForksAreNames(ReferenceStore):
    """Makes a second name of the same conversation."""

    async def fork(self, name: str, length: int) -> str:
        await self.rewind(name, length)
        return name


@breaks("state.rewind")
class RewindsByCount(ReferenceStore):
    """Removes so many items instead of all later ones."""

    async def rewind(self, name: str, length: int) -> None:
        items = await self.read(name) or []
        await super().rewind(name, max(0, len(items) - length))


@breaks("state.rewind-frees-ids")
class RemembersRemovedIds(ReferenceStore):
    """Keeps the ids of items that were removed."""

    known: set[tuple[str, str]] = set()

    async def append_identified(self, name: str, items: Sequence[tuple[str, Item]]) -> None:
        new = [each for each in items if (name, each[0]) not in self.known]
        self.known.update((name, key) for key, _ in new)
        await super().append_identified(name, new)


@breaks("histories.random")
class LosesTheThird(ReferenceStore):
    """Loses an item when a conversation that was cleared is popped."""

    def __init__(self, place: str, tenant: str = "") -> None:
        super().__init__(place, tenant)
        self.cleared: set[str] = set()

    async def clear(self, name: str) -> None:
        await super().clear(name)
        self.cleared.add(name)

    async def pop(self, name: str) -> Item | None:
        found = await super().pop(name)
        if name in self.cleared:
            await super().pop(name)
        return found
