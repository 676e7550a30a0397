"""Wrong stores for the groups atomicity, retries and concurrency."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from typing import Any

from conversation_store_conformance.reference import MAX_BYTES, ReferenceStore, Refused, empty
from conversation_store_conformance.store import Item
from conversation_store_conformance.wrong import breaks


@breaks("atomicity.unserializable", "deletion.read-after-refusal")
class StoresUpToTheError(ReferenceStore):
    """Stores the items before the one that is refused, or makes the conversation for them."""

    async def append(self, name: str, items: Sequence[Item]) -> None:
        try:
            await super().append(name, items)
        except TypeError:
            self.write(name, [{"role": "user", "content": "first"}])
            raise


@breaks("atomicity.too-large")
class StoresUpToTheLimit(ReferenceStore):
    """Stores the items before the one that is too large."""

    async def append(self, name: str, items: Sequence[Item]) -> None:
        for item in items:
            self.write(name, self.checked([item]))


@breaks("atomicity.limit-is-named")
class SaysTooLarge(ReferenceStore):
    """Says that something is too large, and not what is allowed."""

    def checked(self, items: Sequence[Item]) -> list[Item]:
        if len(json.dumps(list(items))) > MAX_BYTES:
            raise Refused("too large")
        return list(items)


@breaks("atomicity.cancelled")
class StoresUntilCancelled(ReferenceStore):
    """Waits between the items of a batch, where it can be cancelled."""

    async def append(self, name: str, items: Sequence[Item]) -> None:
        for item in self.checked(items):
            self.write(name, [item])
            await asyncio.sleep(0)


@breaks("retries.same-request", "retries.other-client", "retries.lost-reply")
class IgnoresKeys(ReferenceStore):
    """Stores every request."""

    async def append_once(self, name: str, items: Sequence[Item], key: str) -> None:
        await self.append(name, items)
        self.reply()


@breaks("retries.other-content")
class ComparesKeysOnly(ReferenceStore):
    """Takes other content under a known key for a repetition."""

    async def append_once(self, name: str, items: Sequence[Item], key: str) -> None:
        if not self.execute("select 1 from requests where tenant = ? and key = ?", self.own_tenant, key):
            await super().append_once(name, items, key)


@breaks("retries.concurrent")
class LooksFirst(ReferenceStore):
    """Looks for the key in one transaction and stores it in another."""

    async def append_once(self, name: str, items: Sequence[Item], key: str) -> None:
        known = self.execute("select 1 from requests where tenant = ? and key = ?", self.own_tenant, key)
        await asyncio.sleep(0)
        if not known:
            self.execute(
                "insert or replace into requests values (?, ?, ?)", self.own_tenant, key, json.dumps([name, items])
            )
            await self.append(name, items)


@breaks("retries.known-id")
class IgnoresIds(ReferenceStore):
    """Stores every item, as the example for Postgres of a well-known SDK does."""

    async def append_identified(self, name: str, items: Sequence[tuple[str, Item]]) -> None:
        await self.append(name, [item for _, item in items])


@breaks("retries.id-in-one-batch")
class ComparesWithStored(ReferenceStore):
    """Compares ids with those that are stored, but not within a batch."""

    async def append_identified(self, name: str, items: Sequence[tuple[str, Item]]) -> None:
        document = self.document(name) or empty()
        known = {key for key, _ in document["items"]}
        document["items"] += [[key, item] for key, item in items if key not in known]
        self.save(name, document)


@breaks("retries.ids-are-per-conversation")
class IdsAreGlobal(ReferenceStore):
    """Has one namespace of ids for all conversations."""

    known: set[str] = set()

    async def append_identified(self, name: str, items: Sequence[tuple[str, Item]]) -> None:
        new = [each for each in items if each[0] not in self.known]
        self.known.update(key for key, _ in new)
        await super().append_identified(name, new)


@breaks("retries.concurrent-ids")
class ReadsIdsFirst(ReferenceStore):
    """Reads the known ids before it stores."""

    async def append_identified(self, name: str, items: Sequence[tuple[str, Item]]) -> None:
        known = {key for key, _ in (self.document(name) or empty())["items"]}
        await asyncio.sleep(0)
        document = self.document(name) or empty()
        document["items"] += [[key, item] for key, item in items if key not in known]
        self.save(name, document)


class WritesWhatItRead(ReferenceStore):
    """Reads a conversation, waits, and writes it whole."""

    async def append(self, name: str, items: Sequence[Item]) -> None:
        document = self.document(name) or empty()
        await asyncio.sleep(0.001)
        document["items"] += [["", item] for item in self.checked(items)]
        self.save(name, document)


breaks("concurrency.first-writers", "concurrency.first-clients")(WritesWhatItRead)


@breaks("concurrency.pops-differ")
class PopsInTwoSteps(ReferenceStore):
    """Reads the newest item, and removes one afterwards."""

    async def pop(self, name: str) -> Item | None:
        items = await self.read(name)
        await asyncio.sleep(0)
        await super().pop(name)
        return items[-1] if items else None


@breaks("concurrency.pop-and-append")
class PopsAnOlderState(ReferenceStore):
    """Writes the conversation as it was before the pop waited."""

    async def pop(self, name: str) -> Item | None:
        document = self.document(name)
        await asyncio.sleep(0.001)
        if not document or not document["items"]:
            return None
        _, item = document["items"].pop()
        self.save(name, document)
        return item

    async def append(self, name: str, items: Sequence[Item]) -> None:
        await asyncio.sleep(0.0005)
        await super().append(name, items)


@breaks("concurrency.stale-writer")
class IgnoresRevisions(ReferenceStore):
    """Accepts every writer."""

    async def append_if(self, name: str, items: Sequence[Item], revision: Any) -> None:
        await self.append(name, items)


@breaks("concurrency.one-winner")
class ComparesBeforeItWaits(ReferenceStore):
    """Compares the revision, waits, and writes."""

    async def append_if(self, name: str, items: Sequence[Item], revision: Any) -> None:
        if await self.revision(name) != revision:
            raise Refused("the conversation has another revision")
        await asyncio.sleep(0)
        await self.append(name, items)


class Caches(ReferenceStore):
    """Keeps what a client has read, until the client writes."""

    def __init__(self, place: str, tenant: str = "") -> None:
        super().__init__(place, tenant)
        self.cache: dict[str, list[Item] | None] = {}

    async def read(self, name: str) -> list[Item] | None:
        if name not in self.cache:
            self.cache[name] = await super().read(name)
        return self.cache[name]

    def save(self, name: str, document: Any) -> None:
        super().save(name, document)
        self.cache.pop(name, None)


breaks("concurrency.second-client", "concurrency.no-older-read", "concurrency.deleted-for-all")(Caches)


@breaks("concurrency.monotonic-reads")
class ReadsReplicas(ReferenceStore):
    """Reads from one of two copies, of which one is behind."""

    reads = 0

    async def read(self, name: str) -> list[Item] | None:
        found = await super().read(name)
        self.reads += 1
        return found[:-4] if found and self.reads % 2 else found


@breaks("concurrency.side-by-side")
class SharesABuffer(ReferenceStore):
    """Collects items of all callers in one buffer, and writes it to the conversation of the last."""

    buffer: list[Item] = []

    async def append(self, name: str, items: Sequence[Item]) -> None:
        self.buffer.extend(self.checked(items))
        await asyncio.sleep(0)
        taken = self.buffer[:]
        self.buffer.clear()
        self.write(name, taken)
