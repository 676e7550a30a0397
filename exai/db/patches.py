"""Patches of conversations' metadata, which a statement makes together with an append."""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from exai.models import ContinuationId


@dataclass(frozen=True, slots=True)
class MetadataPatch:
    """A shallow change of a conversation's metadata: the fields `remove` are removed, then `values` are set."""

    values: Mapping[str, Any] = field(default_factory=dict)
    remove: Sequence[str] = ()

    def document(self) -> dict[str, Any]:
        """Return the patch as statements take it."""
        return {"values": dict(self.values), "remove": list(self.remove)}

    def applied(self, metadata: Mapping[str, Any]) -> dict[str, Any]:
        """Return metadata with the change."""
        return {name: value for name, value in metadata.items() if name not in self.remove} | dict(self.values)


@dataclass(frozen=True, slots=True)
class WholePatch(MetadataPatch):
    """Metadata as they are stored, made of those at revision `base`, for metadata that the database cannot read."""

    base: int = 0

    def document(self) -> dict[str, Any]:
        """Return the patch as statements take it."""
        return {"whole": dict(self.values), "base": self.base}


@dataclass(frozen=True, slots=True)
class RecordPatch:
    """A patch of another conversation's metadata, which is made, without messages, if there is none of this name."""

    continuation_id: ContinuationId
    patch: MetadataPatch
    expected_revision: int | None = None

    def document(self) -> dict[str, Any]:
        """Return the patch as statements take it."""
        facts = {"name": self.continuation_id, "id": str(uuid.uuid4()), "expected": self.expected_revision}
        return {**facts, **self.patch.document()}
