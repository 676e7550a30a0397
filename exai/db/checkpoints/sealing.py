"""Checkpoints as rows: encrypted for the thread and the place where they are, if content is encrypted.

Invariant: a copy of a thread is read by the name of the thread for which its rows were encrypted, which the copy names.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, Final, TypeAlias

from exai.encryption.codec import Codec, Unseen
from exai.encryption.places import open_bytes, seal_bytes
from exai.encryption.reasons import MOVED
from exai.errors import ContentUnreadable

BODY: Final = "checkpoint"
METADATA: Final = "metadata"
VALUE: Final = "value"
WRITE: Final = "write"

RowPlace: TypeAlias = tuple[str, ...]
"""What tells a row from the others of a thread."""


class CheckpointSeal:
    """Encrypts and decrypts the rows of an owner that belong to one thread."""

    def __init__(self, codec: Codec, owner: str, thread_id: str, copied_from: Collection[str] = ()) -> None:
        self._codec, self._owner, self._thread_id, self._from = codec, owner, thread_id, copied_from

    def sealed(self, field: str, place: RowPlace, data: bytes) -> bytes:
        """Return the stored form of bytes."""
        return seal_bytes(self._codec, self._owner, (field, self._thread_id, *place), data)

    def opened(self, field: str, place: RowPlace, data: bytes, key_name: str | None, bound_to: str | None) -> bytes:
        """Return bytes as they were given. Raises `ContentUnreadable`."""
        if key_name is None:
            return data
        place = (field, self._bound(field, bound_to), *place)
        return open_bytes(self._codec, self._owner, place, data, key_name)

    def document(self, place: RowPlace, facts: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return the stored form of the facts of a checkpoint."""
        return self._codec.document(self._owner, _name(self._thread_id, place), facts)

    def opened_document(self, place: RowPlace, facts: Mapping[str, Any], bound_to: str | None) -> Mapping[str, Any]:
        """Return the facts of a checkpoint as they were given. Raises `ContentUnreadable`."""
        names = (_name(self._bound("facts", bound_to), place),)
        opened = self._codec.opened_document(self._owner, names, facts)
        if isinstance(opened, Unseen):
            raise opened.why
        return opened

    def _bound(self, field: str, bound_to: str | None) -> str:
        if bound_to is not None and bound_to not in self._from:
            raise ContentUnreadable(field, *MOVED)
        return self._thread_id if bound_to is None else bound_to


def _name(thread_id: str, place: RowPlace) -> str:
    return "\0".join((BODY, thread_id, *place))
