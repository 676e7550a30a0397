"""A proxy between a client and its server, which injects faults on command.

Invariant: in the mode `pass`, without latency, rate, cut or drop, every byte is forwarded unchanged and in order. A
change of mode takes effect at once, also for held bytes.

    pass        forward everything
    stall       accept connections and forward nothing
    stall_down  forward requests and hold replies: requests are executed without a reply
    reset       reset every connection, existing or new
    refuse      reset new connections only
"""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any, Literal, Self

Mode = Literal["pass", "stall", "stall_down", "reset", "refuse"]

CHUNK_BYTES = 65536
RESET = struct.pack("ii", 1, 0)


@dataclass(eq=False)
class Link:
    """The two connections of one client: to the proxy, and on to the server."""

    client: asyncio.StreamWriter
    server: asyncio.StreamWriter | None = None
    last_sender: Literal["client", "server"] = "server"
    dropping: bool = False
    tail: bytes = b""
    tasks: list[asyncio.Task[None]] = field(default_factory=list)

    def reset(self) -> None:
        """Reset both connections."""
        for writer in (self.client, self.server):
            if writer is not None:
                break_off(writer)


def break_off(writer: asyncio.StreamWriter) -> None:
    """Send RST instead of FIN, if the transport supports it and is open."""
    connection = writer.get_extra_info("socket")
    if connection is not None and connection.fileno() >= 0 and connection.family != socket.AF_UNIX:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
    writer.transport.abort()


class FaultProxy:
    """`async with FaultProxy(("127.0.0.1", 5432)) as proxy:` and connect to `proxy.port`.

    `upstream` is an address or the path of a socket; `path` makes the proxy itself listen on a socket. `round_trips`
    counts the runs of client bytes that follow server bytes, which are the round trips of a client that sends requests
    one at a time.
    """

    def __init__(self, upstream: tuple[str, int] | str, *, path: str | None = None) -> None:
        self.upstream, self.path = upstream, path
        self.host, self.port = "127.0.0.1", 0
        self.latency_s = 0.0
        self.rate_bytes_s: float | None = None
        self.accepted = self.round_trips = self.up_bytes = self.down_bytes = 0
        self._mode: Mode = "pass"
        self._changed = asyncio.Event()
        self._cut_after: int | None = None
        self._needle: bytes | None = None
        self._unwanted: bytes | None = None
        self._then: Callable[[], None] = lambda: None
        self._dropped: asyncio.Future[None] | None = None
        self._links: set[Link] = set()
        self._server: asyncio.Server | None = None

    async def __aenter__(self) -> Self:
        if self.path is not None:
            self._server = await asyncio.start_unix_server(self._accept, self.path)
        else:
            self._server = await asyncio.start_server(self._accept, self.host, 0)
            self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        self._server.close()
        links = list(self._links)
        self.reset()
        tasks = [task for link in links for task in link.tasks]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    @property
    def mode(self) -> Mode:
        return self._mode

    @mode.setter
    def mode(self, mode: Mode) -> None:
        self._mode = mode
        self._changed.set()
        self._changed = asyncio.Event()
        if mode == "reset":
            self.reset()

    def reset(self) -> None:
        """Reset all existing connections."""
        for link in list(self._links):
            link.reset()

    def cut_after(self, size_bytes: int) -> None:
        """Forward this many more bytes of replies, then reset the connection, in the middle of a reply."""
        self._cut_after = size_bytes

    def drop_reply_to(self, needle: bytes) -> asyncio.Future[None]:
        """Forward the next request that contains `needle`, and reset the connection when its reply arrives.

        The future is done afterwards: the server has replied, and the client has not received it.
        """
        self._needle = needle
        self._dropped = asyncio.get_running_loop().create_future()
        return self._dropped

    def inject(self, data: bytes) -> None:
        """Send bytes to every client, as if they came from the server."""
        for link in self._links:
            link.client.write(data)

    def lose_request(self, needle: bytes, then: Callable[[], None] = lambda: None) -> None:
        """Reset the connection on which the next bytes with `needle` arrive, and do not forward them.

        `then` is called first, so that it can affect the client before that notices the reset.
        """
        self._unwanted, self._then = needle, then

    def reset_counters(self) -> None:
        self.accepted = self.round_trips = self.up_bytes = self.down_bytes = 0

    def saw_request(self, link: Link, data: bytes) -> None:
        """Hook for subclasses that parse the protocol; called before the bytes are forwarded."""

    def saw_reply(self, link: Link, data: bytes) -> None:
        """Hook for the bytes of the server; called when they arrive, before they are forwarded or dropped."""

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.accepted += 1
        link = Link(writer)
        if self._mode in ("reset", "refuse"):
            link.reset()
            return
        try:
            if isinstance(self.upstream, str):
                back, link.server = await asyncio.open_unix_connection(self.upstream)
            else:
                back, link.server = await asyncio.open_connection(*self.upstream)
        except OSError:
            link.reset()
            return
        self._links.add(link)
        link.tasks = [
            asyncio.create_task(self._pump(link, reader, link.server, self._up)),
            asyncio.create_task(self._pump(link, back, writer, self._down)),
        ]

    async def _pump(
        self,
        link: Link,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        forward: Callable[[Link, bytes, asyncio.StreamWriter], Coroutine[Any, Any, bool]],
    ) -> None:
        try:
            while data := await reader.read(CHUNK_BYTES):
                if self.latency_s:
                    await asyncio.sleep(self.latency_s)
                if not await forward(link, data, writer):
                    break
                await writer.drain()
                if self.rate_bytes_s:
                    await asyncio.sleep(len(data) / self.rate_bytes_s)
        except OSError:
            pass
        finally:
            # The end of one connection ends the other: no protocol that is tested here uses half-closed connections.
            self._links.discard(link)
            self._note_dropped(link)
            for half in (link.client, link.server):
                if half is not None:
                    half.close()

    def _note_dropped(self, link: Link) -> None:
        # If the client leaves before the server has answered, the reply is lost as well.
        if link.dropping and self._dropped is not None and not self._dropped.done():
            self._dropped.set_result(None)

    async def _up(self, link: Link, data: bytes, writer: asyncio.StreamWriter) -> bool:
        while self._mode == "stall":
            await self._changed.wait()
        if self._unwanted is not None and self._unwanted in data:
            self._unwanted = None
            self._then()
            link.reset()
            return False
        if link.last_sender == "server":
            self.round_trips += 1
        link.last_sender = "client"
        self.up_bytes += len(data)
        self.saw_request(link, data)
        if self._needle is not None:
            if self._needle in link.tail + data:
                self._needle, link.dropping = None, True
            else:
                link.tail = (link.tail + data)[-len(self._needle) :]
        writer.write(data)
        return True

    async def _down(self, link: Link, data: bytes, writer: asyncio.StreamWriter) -> bool:
        self.saw_reply(link, data)
        if link.dropping:
            link.reset()
            self._note_dropped(link)
            return False
        while self._mode in ("stall", "stall_down"):
            await self._changed.wait()
        link.last_sender = "server"
        self.down_bytes += len(data)
        if self._cut_after is not None and len(data) >= self._cut_after:
            writer.write(data[: self._cut_after])
            self._cut_after = None
            await writer.drain()
            link.reset()
            return False
        if self._cut_after is not None:
            self._cut_after -= len(data)
        writer.write(data)
        return True
