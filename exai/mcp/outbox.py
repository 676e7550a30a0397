"""What waits to be sent to one peer, bounded in bytes.

A message goes out at once when nothing waits and the door can take it; only what cannot waits for the reader.

Invariant: the queue holds no more than its limit, save for the last message pushed while there was room and for small
forced ones; messages leave in the order they came; a progress report is dropped when the queue is half full, an answer
never is while the outbox is open.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable

from exai.account import Account
from exai.mcp.protocol import Send

OUTBOX_MAX_BYTES = 4_194_304


class Outbox:
    """Many writers, one reader; what waits is in `account`.

    `send_now` is the door's, and says whether it has sent what it was given.
    """

    def __init__(self, max_bytes: int = OUTBOX_MAX_BYTES, account: Account | None = None) -> None:
        self._account = Account(max_bytes) if account is None else account
        self.send_now: Callable[[bytes], bool] | None = None
        self._is_reader_sending = False
        self._max_bytes = max_bytes
        self._messages: deque[Send] = deque()
        self._size_bytes = 0
        self._filled = asyncio.Event()
        self._room: asyncio.Event | None = None
        """Made for the first that waits: of most peers none ever does."""

        self.is_closed = False

    def __len__(self) -> int:
        return len(self._messages)

    @property
    def has_room(self) -> bool:
        """Whether a message may be pushed without waiting."""
        return self._size_bytes < self._max_bytes or self.is_closed

    async def room(self) -> None:
        """Wait for room; as with `put`, the reader makes it or closes the outbox."""
        while not self.has_room:
            await self._more_room()

    async def put(self, message: Send) -> None:
        """Wait for room, then queue; a message for a closed outbox is dropped, because its peer is gone.

        The wait has no limit of its own: the reader either makes room or closes the outbox.
        """
        while not self.put_now(message):
            await self._more_room()

    async def _more_room(self) -> None:
        if self._room is None:
            self._room = asyncio.Event()
        self._room.clear()
        await self._room.wait()

    def put_now(self, message: Send) -> bool:
        """Do what `put` does unless that has to wait; False when it has to."""
        if self._messages and not self.is_closed and self._size_bytes + len(message.data) > self._max_bytes:
            return False
        self.push(message)
        return True

    def offer(self, message: Send) -> bool:
        """Queue what may be lost; False when it was."""
        if self._size_bytes + len(message.data) > self._max_bytes // 2:
            return False
        return self.push(message)

    def force(self, message: Send) -> None:
        """Queue a small message without waiting; lost only on a peer that reads nothing and is about to be dropped."""
        if self._size_bytes <= 2 * self._max_bytes:
            self.push(message)

    async def get(self) -> Send | None:
        """Return the next message, or None when the outbox is closed and empty; the one before has been sent."""
        self._is_reader_sending = False
        while not self._messages:
            if self.is_closed:
                return None
            self._filled.clear()
            await self._filled.wait()
        message = self._messages.popleft()
        self._size_bytes -= len(message.data)
        self._account.give(len(message.data))
        if self._room is not None:
            self._room.set()
        self._is_reader_sending = True
        return message

    def close(self, *, discard: bool = False) -> None:
        """Take nothing more; what is queued can still be read unless it is discarded."""
        self.is_closed = True
        if discard:
            self._messages.clear()
            self._account.give(self._size_bytes)
            self._size_bytes = 0
        self._filled.set()
        if self._room is not None:
            self._room.set()

    def push(self, message: Send) -> bool:
        """Send or queue a message, for which there must be room; False when its peer is gone."""
        if self.is_closed:
            return False
        is_first = not self._messages and not self._is_reader_sending
        if is_first and self.send_now is not None and self.send_now(message.data):
            return True
        self._messages.append(message)
        self._size_bytes += len(message.data)
        self._account.charge(len(message.data))
        self._filled.set()
        return True
