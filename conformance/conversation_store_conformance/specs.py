"""Openers of stores by name, `MODULE:NAME`, so that another process can open the same store."""

from __future__ import annotations

from importlib import import_module
from typing import cast

from conversation_store_conformance.store import OpenStore


def load(spec: str) -> OpenStore:
    """Return the opener that a spec names. Raises `ValueError`."""
    module, _, name = spec.partition(":")
    try:
        found = import_module(module)
        for part in name.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"{spec} names no opener of a store: {error}") from error
    return cast("OpenStore", found)


def spec_of(opener: OpenStore) -> str | None:
    """Return the spec of an opener, None if another process could not import it."""
    module, name = getattr(opener, "__module__", None), getattr(opener, "__qualname__", "")
    if not module or module == "__main__" or "<" in name:
        return None
    spec = f"{module}:{name}"
    try:
        return spec if load(spec) is opener else None
    except ValueError:
        return None
