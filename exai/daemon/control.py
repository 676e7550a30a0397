"""Messages between a parent and its workers, as lines of JSON on a socket pair, and their handling in a worker.

Invariant: a worker never waits for the parent without a limit, and learns of its end by the end of the socket.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from itertools import count
from typing import Any, Final

import orjson

from exai.background import running

MAX_MESSAGE_BYTES: Final = 67_108_864
GATHER_LIMIT_S: Final = 2.0
"""Time for the parent to answer; it waits for the other workers for half of it."""

RETIRE: Final = "retire"
"""The message by which a parent asks a worker to finish and exit, because another one has replaced it."""

ControlMessage = dict[str, Any]
Reader = Callable[[], Any]
"""Returns a value of this process for JSON."""


class Channel:
    """One end of a socket pair."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer

    @classmethod
    async def open(cls, control: socket.socket) -> Channel:
        """Take over a socket, which the channel closes."""
        return cls(*await asyncio.open_connection(sock=control, limit=MAX_MESSAGE_BYTES))

    def send(self, message: ControlMessage) -> None:
        """Queue a message; does nothing if the other end is closed."""
        with contextlib.suppress(OSError, RuntimeError):
            self._writer.write(orjson.dumps(message) + b"\n")

    async def flush(self) -> None:
        """Wait until all sent messages have left this process."""
        with contextlib.suppress(OSError):
            await self._writer.drain()

    async def messages(self) -> AsyncIterator[ControlMessage]:
        """Yield messages until the other end is closed. A peer that is killed resets the connection."""
        with contextlib.suppress(OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError, ValueError):
            while line := await self._reader.readline():
                message = orjson.loads(line)
                if isinstance(message, dict):
                    yield message

    def close(self) -> None:
        """Close this end."""
        self._writer.close()


class Parent:
    """A worker's view of its parent, by which it reads values of all workers.

    `stop` is set when the parent has ended or replaces this process, `is_retired` in the second case. `readers` are
    the values that this process offers, by name.
    """

    def __init__(self, channel: Channel, stop: asyncio.Event) -> None:
        self._channel, self._stop = channel, stop
        self._numbers = count(1)
        self._waiting: dict[int, asyncio.Future[list[Any]]] = {}
        self.readers: dict[str, Reader] = {}
        self.is_retired = False

    def report(self, facts: Mapping[str, Any]) -> None:
        """Tell the parent that this process serves."""
        self._channel.send(dict(facts))

    async def gather(self, what: str) -> list[Any]:
        """Return the values of all workers. Raises `TimeoutError` if the parent does not answer in time."""
        number = next(self._numbers)
        waiting: asyncio.Future[list[Any]] = asyncio.get_running_loop().create_future()
        self._waiting[number] = waiting
        self._channel.send({"gather": what, "number": number})
        try:
            async with asyncio.timeout(GATHER_LIMIT_S):
                return await waiting
        finally:
            del self._waiting[number]

    async def give_last(self, what: str) -> None:
        """Give the parent a value of this process, which is about to end."""
        self._channel.send({"last": self.readers[what]()})
        await self._channel.flush()

    async def listen(self) -> None:
        """Handle messages until the parent has ended."""
        async for message in self._channel.messages():
            if RETIRE in message:
                self.is_retired = True
                self._stop.set()
            elif "read" in message:
                reader = self.readers.get(message["read"])
                self._channel.send({"number": message["number"], "value": None if reader is None else reader()})
            elif "gathered" in message and (waiting := self._waiting.get(message["number"])) and not waiting.done():
                waiting.set_result(message["gathered"])
        self._stop.set()


@asynccontextmanager
async def parent_watched(control: socket.socket | None, stop: asyncio.Event) -> AsyncIterator[Parent | None]:
    """Yield the parent of a worker, and None in a process without one."""
    if control is None:
        yield None
        return
    channel = await Channel.open(control)
    parent = Parent(channel, stop)
    try:
        async with running("parent", parent.listen()):
            yield parent
    finally:
        channel.close()
