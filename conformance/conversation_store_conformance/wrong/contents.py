"""Wrong stores for the groups order, exactness and reads."""

from __future__ import annotations

import asyncio
import json
import time
import unicodedata
from collections.abc import Sequence
from typing import Any

from conversation_store_conformance.reference import ReferenceStore, Refused
from conversation_store_conformance.store import Item
from conversation_store_conformance.wrong import breaks


@breaks("order.batch")
class ReversesBatches(ReferenceStore):
    """Inserts a batch from its end."""

    def write(self, name: str, items: Sequence[Item]) -> None:
        super().write(name, items[::-1])


@breaks("order.appends")
class PrependsAppends(ReferenceStore):
    """Orders appends newest first."""

    def save(self, name: str, document: Any) -> None:
        super().save(name, {**document, "items": document["items"][-1:] + document["items"][:-1]})


@breaks("order.empty-append")
class StoresEmptyAppends(ReferenceStore):
    """Stores a placeholder for an append without items."""

    async def append(self, name: str, items: Sequence[Item]) -> None:
        await super().append(name, list(items) or [{"role": "user", "content": ""}])


@breaks("order.equal-items")
class DropsEqualItems(ReferenceStore):
    """Takes an equal item for a repetition."""

    def save(self, name: str, document: Any) -> None:
        items: list[Any] = []
        for key, item in document["items"]:
            if all(item != other for _, other in items):
                items.append([key, item])
        super().save(name, {**document, "items": items})


@breaks("order.whole-batches", "order.processes")
class InsertsOneByOne(ReferenceStore):
    """Stores the items of a batch one after the other."""

    async def append(self, name: str, items: Sequence[Item]) -> None:
        for item in self.checked(items):
            self.write(name, [item])
            await asyncio.sleep(0.001)


@breaks("order.own-appends")
class AppendsInBackground(ReferenceStore):
    """Acknowledges an append before it is stored, and stores the newest of several first."""

    held: list[tuple[str, list[Item]]] = []

    async def append(self, name: str, items: Sequence[Item]) -> None:
        self.held.append((name, self.checked(items)))
        if len(self.held) >= 12:
            self.flush()

    async def read(self, name: str) -> list[Item] | None:
        self.flush()
        return await super().read(name)

    def flush(self) -> None:
        """Store what is held."""
        while self.held:
            self.write(*self.held.pop())


@breaks("order.equal-clock", "order.backward-clock")
class OrdersByClock(ReferenceStore):
    """Orders items by the time of their append."""

    def save(self, name: str, document: Any) -> None:
        items = [
            [key if "@" in key else f"{time.time():020.3f}@{hash(str(item)) % 97:02}", item]
            for key, item in document["items"]
        ]
        super().save(name, {**document, "items": sorted(items, key=lambda each: each[0])})


class Alters(ReferenceStore):
    """Alters items before they are stored."""

    def altered(self, text: str) -> str:
        """Return the JSON that is stored instead."""
        return text

    def checked(self, items: Sequence[Item]) -> list[Item]:
        return [json.loads(self.altered(json.dumps(item, ensure_ascii=False))) for item in super().checked(items)]


@breaks("exactness.text")
class KeepsThePlane(Alters):
    """Has columns for characters of the basic plane only."""

    def altered(self, text: str) -> str:
        return "".join(each if ord(each) < 0x10000 else "?" for each in text)


@breaks("exactness.empty-text")
class StripsTexts(ReferenceStore):
    """Strips blanks."""

    def checked(self, items: Sequence[Item]) -> list[Item]:
        return [
            {**item, "content": item["content"].strip()} if "content" in item else item
            for item in super().checked(items)
        ]


@breaks("exactness.line-ends")
class TranslatesLineEnds(Alters):
    """Reads and writes text files."""

    def altered(self, text: str) -> str:
        return text.replace("\\r\\n", "\\n").replace("\\r", "\\n")


@breaks("exactness.normal-forms")
class Composes(Alters):
    """Normalizes texts."""

    def altered(self, text: str) -> str:
        return unicodedata.normalize("NFC", text)


@breaks("exactness.json-types")
class DropsNulls(ReferenceStore):
    """Leaves out fields that are null, as a model with optional fields does."""

    def checked(self, items: Sequence[Item]) -> list[Item]:
        found = super().checked(items)
        return [{k: v for k, v in each.items() if v is not None} if isinstance(each, dict) else each for each in found]


@breaks("exactness.numbers")
class MakesFloats(ReferenceStore):
    """Has one type of number."""

    def document(self, name: str) -> Any:
        found = super().document(name)
        return json.loads(
            json.dumps(found), parse_float=lambda text: int(float(text)) if float(text).is_integer() else float(text)
        )


@breaks("exactness.large-integers")
class RoundsIntegers(Alters):
    """Keeps numbers as doubles."""

    def altered(self, text: str) -> str:
        return json.dumps(json.loads(text, parse_int=lambda digits: int(float(digits))))


@breaks("exactness.not-a-number")
class WritesNull(Alters):
    """Writes null for what is not a number."""

    def altered(self, text: str) -> str:
        return json.dumps(json.loads(text, parse_constant=lambda _: None))


@breaks("exactness.nul")
class CutsAtNul(Alters):
    """Leaves out U+0000."""

    def altered(self, text: str) -> str:
        return text.replace("\\u0000", "")


@breaks("exactness.surrogates")
class ReplacesSurrogates(Alters):
    """Replaces what UTF-8 cannot hold."""

    def altered(self, text: str) -> str:
        return text.encode("utf-8", "replace").decode()


@breaks("exactness.depth")
class CutsDepth(ReferenceStore):
    """Writes deep values as text."""

    def checked(self, items: Sequence[Item]) -> list[Item]:
        return [{**item, "value": str(item["value"])} if "value" in item else item for item in super().checked(items)]


@breaks("exactness.megabyte")
class RefusesLargeItems(ReferenceStore):
    """Has a small limit."""

    def checked(self, items: Sequence[Item]) -> list[Item]:
        if len(json.dumps(list(items))) > 400_000:
            raise Refused("a batch has at most 400000 bytes")
        return super().checked(items)


@breaks("exactness.six-megabytes")
class CutsLargeTexts(ReferenceStore):
    """Cuts what is longer than its column."""

    def checked(self, items: Sequence[Item]) -> list[Item]:
        return [
            {**each, "content": each["content"][:4_000_000]} if "content" in each else each
            for each in super().checked(items)
        ]


@breaks("exactness.key-names")
class UsesItsOwnFields(ReferenceStore):
    """Writes its own time into items."""

    def checked(self, items: Sequence[Item]) -> list[Item]:
        return [{**item, "created_at": "now"} if "created_at" in item else item for item in super().checked(items)]


@breaks("reads.unknown")
class RaisesForUnknown(ReferenceStore):
    """Raises for an unknown conversation."""

    async def read(self, name: str) -> list[Item] | None:
        found = await super().read(name)
        if found is None:
            raise KeyError(name)
        return found


@breaks("reads.unknown-is-not-made")
class MakesWhatItReads(ReferenceStore):
    """Makes a conversation by reading it."""

    async def read(self, name: str) -> list[Item] | None:
        found = await super().read(name)
        if found is None:
            self.save(name, {"items": [], "state": {}, "revision": 0})
        return found


@breaks("reads.again")
class ReadsOnce(ReferenceStore):
    """Gives a conversation to its first reader only."""

    seen: set[str] = set()

    async def read(self, name: str) -> list[Item] | None:
        found = await super().read(name)
        if name in self.seen:
            return []
        self.seen.add(name)
        return found


@breaks("reads.long")
class ReadsAPage(ReferenceStore):
    """Reads at most 500 items."""

    async def read(self, name: str) -> list[Item] | None:
        return (await super().read(name) or [])[-500:]


@breaks("reads.result-is-a-copy", "reads.argument-is-copied")
class KeepsObjects(ReferenceStore):
    """Keeps the objects of its callers, and gives them out."""

    objects: dict[str, list[Item]] = {}

    async def append(self, name: str, items: Sequence[Item]) -> None:
        self.objects.setdefault(name, []).extend(items)

    async def read(self, name: str) -> list[Item] | None:
        return self.objects.get(name)


@breaks("reads.newest")
class NewestFirst(ReferenceStore):
    """Returns the newest items newest first."""

    async def newest(self, name: str, count: int) -> list[Item]:
        return (await super().newest(name, count))[::-1]


@breaks("reads.newest-zero")
class ZeroIsAll(ReferenceStore):
    """Takes 0 for no limit, as `items[-0:]` does."""

    async def newest(self, name: str, count: int) -> list[Item]:
        return (await self.read(name) or [])[-count:]


@breaks("reads.newest-of-fewer")
class NeedsEnough(ReferenceStore):
    """Returns nothing if there are fewer items."""

    async def newest(self, name: str, count: int) -> list[Item]:
        found = await super().newest(name, count)
        return found if len(found) == count else []


@breaks("reads.newest-negative")
class SlicesNegative(ReferenceStore):
    """Slices with any number."""

    async def newest(self, name: str, count: int) -> list[Item]:
        return (await self.read(name) or [])[-count:] if count else []


@breaks("reads.pages")
class RepeatsABoundary(ReferenceStore):
    """Begins a page with the last item of the one before."""

    async def page(self, name: str, cursor: Any, limit: int) -> tuple[list[Item], Any]:
        items, after = await super().page(name, cursor, limit)
        return items, after if after is None or limit == 1 else after - 1


@breaks("reads.pages-under-appends")
class CountsFromTheEnd(ReferenceStore):
    """Pages by a number of newest items to skip."""

    async def page(self, name: str, cursor: Any, limit: int) -> tuple[list[Item], Any]:
        items = await self.read(name) or []
        end = len(items) - (cursor or 0)
        return items[max(0, end - limit) : end], (cursor or 0) + limit if end > limit else None
