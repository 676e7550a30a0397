"""Wrong stores for the groups isolation and deletion."""

from __future__ import annotations

import re
import unicodedata
import urllib.parse
from collections.abc import Sequence
from typing import Any

from conversation_store_conformance.reference import ReferenceStore
from conversation_store_conformance.store import Item, Store
from conversation_store_conformance.wrong import breaks


class Renames(ReferenceStore):
    """Stores conversations under other names."""

    def renamed(self, name: str) -> str:
        """Return the name that is used instead."""
        return name

    def document(self, name: str) -> dict[str, Any] | None:
        return super().document(self.renamed(name))

    def save(self, name: str, document: Any) -> None:
        super().save(self.renamed(name), document)


@breaks("isolation.case")
class IgnoresCase(Renames):
    """Compares names without their case."""

    def renamed(self, name: str) -> str:
        return name.casefold()


@breaks("isolation.blanks")
class StripsNames(Renames):
    """Strips names."""

    def renamed(self, name: str) -> str:
        return " ".join(name.split())


@breaks("isolation.slashes")
class NamesAreFiles(Renames):
    """Makes a file name of a name."""

    def renamed(self, name: str) -> str:
        return re.sub(r"[^\w-]", "_", name)


@breaks("isolation.escapes")
class DecodesNames(Renames):
    """Decodes names as addresses."""

    def renamed(self, name: str) -> str:
        return urllib.parse.unquote(name)


@breaks("isolation.normal-forms")
class ComposesNames(Renames):
    """Normalizes names, as some file systems do."""

    def renamed(self, name: str) -> str:
        return unicodedata.normalize("NFC", name)


@breaks("isolation.long-names")
class CutsNames(Renames):
    """Cuts names to the length of their column."""

    def renamed(self, name: str) -> str:
        return name[:255]


@breaks("isolation.wildcards")
class DeletesByPattern(ReferenceStore):
    """Deletes by `like`."""

    async def delete(self, name: str) -> None:
        self.execute("delete from conversations where name like ?", name)


@breaks("isolation.prefixes")
class DeletesByPrefix(ReferenceStore):
    """Deletes everything that begins with the name."""

    async def delete(self, name: str) -> None:
        self.execute("delete from conversations where substr(name, 1, ?) = ?", len(name), name)


@breaks("isolation.tenants-read")
class ReadsAllTenants(ReferenceStore):
    """Reads without the tenant."""

    async def read(self, name: str) -> list[Item] | None:
        rows = self.execute("select tenant from conversations where name = ?", name)
        return [item for row in rows for item in await ReferenceStore.read(self._of(row[0]), name) or ()]

    def _of(self, tenant: str) -> ReferenceStore:
        found = self.tenant(tenant)
        assert isinstance(found, ReferenceStore)
        return found


@breaks("isolation.tenants-list")
class ListsAllTenants(ReferenceStore):
    """Lists without the tenant."""

    async def names(self) -> list[str]:
        return [row[0] for row in self.execute("select name from conversations")]


@breaks("isolation.tenants-delete")
class DeletesForAllTenants(ReferenceStore):
    """Deletes without the tenant."""

    async def delete(self, name: str) -> None:
        self.execute("delete from conversations where name = ?", name)


@breaks("isolation.tenant-names")
class JoinsTenantAndName(Renames):
    """Joins tenant and name with a slash."""

    def tenant(self, tenant: str) -> Store:
        other = super().tenant("")
        other.prefix = f"{tenant}/"  # type: ignore[attr-defined]
        return other

    prefix = ""

    def renamed(self, name: str) -> str:
        return self.prefix + name


@breaks("isolation.tenants-retry")
class KeysOfAllTenants(ReferenceStore):
    """Has one namespace of request keys."""

    keys: set[str] = set()

    async def append_once(self, name: str, items: Sequence[Item], key: str) -> None:
        if key not in self.keys:
            self.keys.add(key)
            await super().append_once(name, items, key)


@breaks("deletion.gone")
class DeletesNothing(ReferenceStore):
    """Acknowledges a deletion that it does not make."""

    async def delete(self, name: str) -> None:
        return


@breaks("deletion.not-listed")
class ListsDeleted(ReferenceStore):
    """Keeps a deleted conversation in its list."""

    async def delete(self, name: str) -> None:
        self.save(name, {"items": [], "state": {}, "revision": 0})


@breaks("deletion.siblings")
class DeletesEverything(ReferenceStore):
    """Deletes all conversations."""

    async def delete(self, name: str) -> None:
        self.execute("delete from conversations")


@breaks("deletion.unknown")
class RaisesForUnknownDeletion(ReferenceStore):
    """Raises for an unknown conversation."""

    async def delete(self, name: str) -> None:
        if self.document(name) is None:
            raise KeyError(name)
        await super().delete(name)


@breaks("deletion.name-is-free")
class HidesDeleted(ReferenceStore):
    """Marks a conversation as deleted, and unmarks it by an append."""

    hidden: set[str] = set()

    async def delete(self, name: str) -> None:
        self.hidden.add(name)

    async def append(self, name: str, items: Sequence[Item]) -> None:
        self.hidden.discard(name)
        await super().append(name, items)

    async def read(self, name: str) -> list[Item] | None:
        return None if name in self.hidden else await super().read(name)


@breaks("deletion.children")
class LeavesChildren(ReferenceStore):
    """Leaves the children of a deleted conversation."""

    async def delete(self, name: str) -> None:
        self.execute("delete from conversations where tenant = ? and name = ?", self.own_tenant, name)


@breaks("deletion.ids-are-free")
class RemembersIds(ReferenceStore):
    """Keeps the ids of deleted conversations."""

    known: set[tuple[str, str]] = set()

    async def append_identified(self, name: str, items: Sequence[tuple[str, Item]]) -> None:
        new = [each for each in items if (name, each[0]) not in self.known]
        self.known.update((name, key) for key, _ in new)
        await super().append_identified(name, new)


@breaks("deletion.clear")
class ClearsAll(ReferenceStore):
    """Clears every conversation."""

    async def clear(self, name: str) -> None:
        self.execute("delete from conversations")


@breaks("deletion.pop")
class PopsTheOldest(ReferenceStore):
    """Removes the oldest item."""

    async def pop(self, name: str) -> Item | None:
        document = self.document(name)
        if document is None or not document["items"]:
            return None
        _, item = document["items"].pop(0)
        self.save(name, document)
        return item
