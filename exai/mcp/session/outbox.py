"""The queue of messages to one peer, bounded in bytes.

A message is sent at once if the queue is empty and the transport can take it; otherwise it waits for the reader.

Invariant: the queue exceeds its limit only by the last message pushed while there was room and by small
forced ones; messages leave in the order they came; a progress report is dropped if the queue is half full, an answer
never is while the outbox is open.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable

from exai.account import Account
from exai.mcp.core.protocol import Send

OUTBOX_MAX_BYTES = 4_194_304


class Outbox:
    """A queue with many writers and one reader; queued bytes are counted in `account`.

    `send_now` belongs to the transport, and returns whether it has sent the message.
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
        """Created for the first writer that waits: with most peers no writer ever does."""

        self.is_closed = False

    def __len__(self) -> int:
        return len(self._messages)

    @property
    def has_room(self) -> bool:
        """Return whether a message may be pushed without waiting."""
        return self._size_bytes < self._max_bytes or self.is_closed

    @property
    def size_bytes(self) -> int:
        """Return the bytes that wait to be sent."""
        return self._size_bytes

    async def wait_for_room(self) -> None:
        """Wait for room; as with `put`, the reader makes room or closes the outbox."""
        while not self.has_room:
            await self._wait_for_more_room()

    async def put(self, message: Send) -> None:
        """Wait for room, then queue the message. It is dropped if the outbox is closed, because the peer is gone.

        The wait has no timeout of its own: the reader either makes room or closes the outbox.
        """
        while not self.put_now(message):
            await self._wait_for_more_room()

    async def _wait_for_more_room(self) -> None:
        if self._room is None:
            self._room = asyncio.Event()
        self._room.clear()
        await self._room.wait()

    def put_now(self, message: Send) -> bool:
        """Queue the message like `put` if there is room. Returns False if `put` would wait."""
        if self._messages and not self.is_closed and self._size_bytes + len(message.data) > self._max_bytes:
            return False
        self.push(message)
        return True

    def offer(self, message: Send) -> bool:
        """Queue a message that may be lost. Returns False if it was dropped."""
        if self._size_bytes + len(message.data) > self._max_bytes // 2:
            return False
        return self.push(message)

    def force(self, message: Send) -> None:
        """Queue a small message without waiting. Lost only if the peer reads nothing and is about to be dropped."""
        if self._size_bytes <= 2 * self._max_bytes:
            self.push(message)

    async def get(self) -> Send | None:
        """Return the next message, or None if the outbox is closed and empty; the previous one has been sent."""
        # The reader's return for the next message shows that it has sent the previous one.
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
        """Accept no more messages; queued ones can still be read unless `discard` is set."""
        self.is_closed = True
        if discard:
            self._messages.clear()
            self._account.give(self._size_bytes)
            self._size_bytes = 0
        self._filled.set()
        if self._room is not None:
            self._room.set()

    def push(self, message: Send) -> bool:
        """Send or queue a message, for which there must be room. Returns False if the peer is gone."""
        if self.is_closed:
            return False
        # While the reader sends a message it took out, sending another one directly would change their order.
        is_first = not self._messages and not self._is_reader_sending
        if is_first and self.send_now is not None and self.send_now(message.data):
            return True
        self._messages.append(message)
        self._size_bytes += len(message.data)
        self._account.charge(len(message.data))
        self._filled.set()
        return True
