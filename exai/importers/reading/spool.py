"""Keep the records of a conversation on disk until its branches are known."""

from __future__ import annotations

import tempfile
from types import TracebackType
from typing import Final, NamedTuple

MEMORY_BYTES: Final = 4 * 1_048_576


class Place(NamedTuple):
    """Where a record is."""

    offset: int
    size_bytes: int


class Spool:
    """Records, by their place: in memory while they are few, else in a temporary file without a name."""

    def __init__(self) -> None:
        self._file = tempfile.SpooledTemporaryFile(max_size=MEMORY_BYTES)  # noqa: SIM115, closed by __exit__
        self._end = 0

    def __enter__(self) -> Spool:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._file.close()

    def put(self, record: bytes) -> Place:
        """Keep a record."""
        self._file.seek(self._end)
        self._file.write(record)
        place = Place(self._end, len(record))
        self._end += len(record)
        return place

    def get(self, place: Place) -> bytes:
        """Return a record."""
        self._file.seek(place.offset)
        return self._file.read(place.size_bytes)
