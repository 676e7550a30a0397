"""Stores that are wrong in one way each, by the rule that has to catch them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from importlib import import_module
from types import SimpleNamespace

from conversation_store_conformance.reference import ReferenceStore
from conversation_store_conformance.store import OpenStore, Store

WRONG: dict[str, type[ReferenceStore]] = {}
OPENERS = SimpleNamespace()
"""The openers of the wrong stores, by the ids of their rules with underscores."""


def breaks(*rules: str) -> Callable[[type[ReferenceStore]], type[ReferenceStore]]:
    """Declare the rules that a store breaks."""

    def declare(kind: type[ReferenceStore]) -> type[ReferenceStore]:
        for rule in rules:
            WRONG[rule] = kind
            setattr(OPENERS, rule.replace(".", "_").replace("-", "_"), opener_of(kind))
        return kind

    return declare


def opener_of(kind: type[ReferenceStore]) -> OpenStore:
    """Return the opener of a kind of store."""

    @asynccontextmanager
    async def open_wrong(place: str) -> AsyncIterator[Store]:
        store = kind(place)
        try:
            yield store
        finally:
            store.close()

    return open_wrong


for _module in ("contents", "requests", "names", "lifetimes"):
    import_module(f"{__name__}.{_module}")
