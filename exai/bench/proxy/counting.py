"""Count a client's requests to Postgres and Redis from the bytes on the wire; no I/O.

A round trip begins when a client sends after the server has answered, so the count is exact for a client that waits for
every answer. Requests of the service's background tasks (cache reconciliation, health probes) are declared in advance
and count neither as statements nor as round trips of an operation.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final, Protocol

READY: Final = ord("Z")
PARSE, BIND, EXECUTE, QUERY, TERMINATE = (ord(each) for each in "PBEQX")


@dataclass(slots=True)
class Count:
    """Costs since the count began; `requests` are statements, or commands."""

    requests: int = 0
    round_trips: int = 0


class Counter(Protocol):
    """Counts the requests of one connection."""

    def sent(self, data: bytes) -> None:
        """Process bytes from the client."""

    def received(self, data: bytes) -> None:
        """Process bytes from the server."""


def digest(text: bytes) -> str:
    """Length of the prefix by which statements are distinguished."""
    return hashlib.sha256(text).hexdigest()


class _Trips:
    """Derives round trips from the order of requests and answers."""

    def __init__(self, count: Count) -> None:
        self.count = count
        self._server_spoke = True
        self._counted = False

    def begins(self) -> None:
        """Record the first byte of a request."""
        if self._server_spoke:
            self._server_spoke, self._counted = False, False

    def is_of_operation(self) -> None:
        """Count the current request, because it is not a background request."""
        if not self._counted:
            self._counted = True
            self.count.round_trips += 1

    def server_spoke(self) -> None:
        """Record an answer."""
        self._server_spoke = True


class PostgresCounter:
    """One connection of a Postgres client; requests before the first ready-for-query belong to connecting."""

    def __init__(self, count: Count, background: Iterable[str]) -> None:
        self._trips = _Trips(count)
        self._count, self._background = count, frozenset(background)
        self._sent, self._received = bytearray(), bytearray()
        self._connected = self._started = False
        self._is_background = False

    def sent(self, data: bytes) -> None:
        """Implement `Counter`."""
        self._sent += data
        while (message := _take_message(self._sent, has_kind=self._started)) is not None:
            if not self._started:
                self._started = True
            elif self._connected:
                self._on_message(*message)

    def received(self, data: bytes) -> None:
        """Implement `Counter`."""
        self._trips.server_spoke()
        if self._connected:
            return
        self._received += data
        while (message := _take_message(self._received, has_kind=True)) is not None:
            self._connected = self._connected or message[0] == READY
        if self._connected:
            self._received.clear()

    def _on_message(self, kind: int, body: bytes) -> None:
        if kind == TERMINATE:
            return
        self._trips.begins()
        if kind == PARSE:
            self._is_background = digest(body.split(b"\0", 2)[1]) in self._background
        elif kind == QUERY:
            self._is_background = False
        elif kind == BIND and body.split(b"\0", 2)[1]:
            # A named statement was prepared earlier, which the service never does.
            self._is_background = False
        if self._is_background:
            return
        self._trips.is_of_operation()
        if kind in (EXECUTE, QUERY):
            self._count.requests += 1


def _take_message(buffer: bytearray, *, has_kind: bool) -> tuple[int, bytes] | None:
    """Remove one complete message from the front; the first message of a client has no kind."""
    start = 1 if has_kind else 0
    if len(buffer) < start + 4:
        return None
    end = start + int.from_bytes(buffer[start : start + 4], "big")
    if len(buffer) < end:
        return None
    kind, body = buffer[0] if has_kind else 0, bytes(buffer[start + 4 : end])
    del buffer[:end]
    return kind, body


class RedisCounter:
    """One connection of a Redis client; `background` are names of commands and digests of scripts."""

    def __init__(self, count: Count, background: Iterable[str]) -> None:
        self._trips = _Trips(count)
        self._count, self._background = count, frozenset(background)
        self._sent = bytearray()

    def sent(self, data: bytes) -> None:
        """Implement `Counter`."""
        if not self._sent:
            self._trips.begins()
        self._sent += data
        while (words := _take_command(self._sent)) is not None:
            if not self._background.isdisjoint(word.decode(errors="replace") for word in words[:2]):
                continue
            self._trips.is_of_operation()
            self._count.requests += 1

    def received(self, data: bytes) -> None:
        """Implement `Counter`."""
        del data
        self._trips.server_spoke()


def _take_command(buffer: bytearray) -> list[bytes] | None:
    """Remove one complete command, an array of strings, from the front."""
    line_end = buffer.find(b"\r\n")
    if line_end < 0:
        return None
    words, at = [], line_end + 2
    for _ in range(int(buffer[1:line_end])):
        line_end = buffer.find(b"\r\n", at)
        if line_end < 0:
            return None
        start = line_end + 2
        end = start + int(buffer[at + 1 : line_end])
        if len(buffer) < end + 2:
            return None
        words.append(bytes(buffer[start:end]))
        at = end + 2
    del buffer[:at]
    return words
