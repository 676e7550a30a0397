"""Parse server-sent events from chunks of bytes of any size; no I/O.

Lines end with CR LF, LF or CR; comments and unknown fields are skipped; several `data` lines are joined by newlines.
A line that is a JSON object without a field's name is an event of its own, as some servers send it.
Invariant: memory is bounded; an event above the limit raises an error.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

_BOM: Final = b"\xef\xbb\xbf"
_CR, _LF = b"\r", b"\n"
_PLAIN: Final = b"data: "


class EventTooLarge(Exception):
    """One event, or one line, is above the limit."""


@dataclass(frozen=True, slots=True)
class Event:
    """One event; `name` is empty unless the server gave one."""

    data: str
    name: str = ""


class SseParser:
    """Parser of a stream: accepts chunks and returns the events that they complete."""

    def __init__(self, max_event_bytes: int) -> None:
        self._max_bytes = max_event_bytes
        self._partial = bytearray()
        self._data: list[bytes] = []
        self._data_bytes = 0
        self._name = ""
        self._skip_lf = False
        self._at_start = True
        self.lines = 0

    def feed(self, chunk: bytes) -> list[Event]:
        """Return the events completed by `chunk`. Raises `EventTooLarge`, after which the parser must not be used."""
        if self._skip_lf and chunk:
            # A CR ended the last chunk and was taken for a line end; an LF right after it belongs to the same end.
            chunk = chunk.removeprefix(_LF)
            self._skip_lf = False
        if self._is_plain_event(chunk):
            self.lines += 1
            return [Event(chunk[len(_PLAIN) : -2].decode(errors="replace"))]
        events: list[Event] = []
        for line in chunk.splitlines(keepends=True):
            self._partial += line
            if self._data_bytes + len(self._partial) > self._max_bytes:
                raise EventTooLarge
            self._skip_lf = line.endswith(_CR)
            if line.endswith((_CR, _LF)):
                self._end_of_line(events)
        return events

    def _is_plain_event(self, chunk: bytes) -> bool:
        """Return whether a chunk is one whole event of one line, as nearly all are; the parser is skipped for it."""
        return (
            chunk.startswith(_PLAIN)
            and chunk.endswith(b"\n\n")
            and chunk.find(b"\n") == len(chunk) - 2
            and b"\r" not in chunk
            and len(chunk) <= self._max_bytes
            and not (self._partial or self._data or self._name or self._at_start)
        )

    def close(self) -> list[Event]:
        """Return the event completed by the end of the stream, because some servers omit the last blank line."""
        events: list[Event] = []
        if self._partial:
            self._end_of_line(events)
        self._dispatch(events)
        return events

    def _end_of_line(self, events: list[Event]) -> None:
        line = bytes(self._partial).rstrip(_CR + _LF)
        self._partial.clear()
        if self._at_start:
            line = line.removeprefix(_BOM)
            self._at_start = False
        if not line:
            self._dispatch(events)
            return
        self.lines += 1
        if line.startswith(b"{"):
            self._dispatch(events)
            events.append(Event(line.decode(errors="replace")))
            return
        field, _, value = line.partition(b":")
        field, value = field.strip().lower(), value.removeprefix(b" ")
        if field == b"data":
            self._data.append(value)
            self._data_bytes += len(value) + 1
        elif field == b"event":
            self._name = value.decode(errors="replace")
        elif field == b"error":
            # Older releases of llama.cpp report errors so.
            self._dispatch(events)
            events.append(Event(value.decode(errors="replace"), "error"))

    def _dispatch(self, events: list[Event]) -> None:
        if self._data:
            events.append(Event(b"\n".join(self._data).decode(errors="replace"), self._name))
        self._data, self._data_bytes, self._name = [], 0, ""
