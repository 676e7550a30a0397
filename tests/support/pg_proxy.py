"""A proxy that counts the requests of a Postgres client, drops chosen replies, and can add latency.

A round trip is counted each time the client begins to send after the server has sent, so a client that waits for
every reply has exactly its round trips counted. Start-up is counted apart, because a pool does it once.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from types import TracebackType

from tests.support.pg_wire import Streams, dial, hang_up, packet, read_packet, read_start, through

READY = b"Z"


class PgProxy:
    """`async with PgProxy(url) as proxy:` then connect to `proxy.url`."""

    def __init__(self, upstream_url: str, *, latency_s: float = 0.0) -> None:
        self._upstream_url = upstream_url
        self.latency_s = latency_s
        self._server: asyncio.Server | None = None
        self._clients: set[asyncio.Task[None]] = set()
        self._writers: set[asyncio.StreamWriter] = set()
        self._lose: str | None = None
        self._refusing = False
        self.lost = asyncio.Event()
        self.open = asyncio.Event()
        self.open.set()
        self.reset()

    def reset(self) -> None:
        """Set all counters to zero."""
        self.connects = self.cancels = self.round_trips = self.bytes_down = 0
        self.front: Counter[str] = Counter()
        self.statements: list[str] = []

    @property
    def url(self) -> str:
        assert self._server is not None
        return through(self._upstream_url, self._server.sockets[0].getsockname()[1])

    async def __aenter__(self) -> PgProxy:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, problem: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._server is not None
        self._server.close()
        for task in self._clients:
            task.cancel()
        await asyncio.gather(*self._clients, return_exceptions=True)

    def drop(self) -> None:
        """Abort every connection, as by a failure of the network."""
        for writer in self._writers:
            writer.transport.abort()

    def refuse(self) -> None:
        """Abort every connection, and refuse new ones until `serve`, as during a restart of the server."""
        self._refusing = True
        self.drop()

    def serve(self) -> None:
        """Accept new connections again."""
        self._refusing = False

    def lose_reply_to(self, text: str) -> None:
        """Forward the next statement that contains `text`, and drop the reply to it."""
        self._lose = text
        self.lost.clear()

    def stall(self) -> None:
        """Accept connections and forward nothing until `open` is set again."""
        self.open.clear()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._clients.add(task)
        try:
            with contextlib.suppress(OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
                await self._serve((reader, writer))
        finally:
            await hang_up(writer)
            self._clients.discard(task)

    async def _serve(self, client: Streams) -> None:
        start = await read_start(*client)
        await self.open.wait()
        if self._refusing:
            return
        server = await dial(self._upstream_url)
        self._writers |= {client[1], server[1]}
        try:
            server[1].write(start.raw)
            if start.cancel is not None:
                self.cancels += 1
                await server[1].drain()
                await server[0].read()
                return
            self.connects += 1
            await _Link(self, client, server).run()
        finally:
            await hang_up(server[1])
            self._writers -= {client[1], server[1]}

    def _note_packet(self, kind: bytes, body: bytes) -> bool:
        """Count a packet of a client; return whether to drop the reply to it."""
        self.front[kind.decode()] += 1
        if kind not in (b"P", b"Q"):
            return False
        text = (body.split(b"\0")[1] if kind == b"P" else body.split(b"\0")[0]).decode()
        self.statements.append(text)
        if self._lose is not None and self._lose in text:
            self._lose = None
            return True
        return False


class _Link:
    """One client's connection."""

    def __init__(self, proxy: PgProxy, client: Streams, server: Streams) -> None:
        self._proxy, self._client, self._server = proxy, client, server
        self._started = False
        self._server_spoke = True
        self._losing = False

    async def run(self) -> None:
        directions = {asyncio.create_task(self._up()), asyncio.create_task(self._down())}
        try:
            await asyncio.wait(directions, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in directions:
                task.cancel()
            await asyncio.gather(*directions, return_exceptions=True)
            if self._losing:
                # If the client leaves before the server has answered, the reply is lost as well.
                self._proxy.lost.set()

    async def _up(self) -> None:
        while True:
            kind, body = await read_packet(self._client[0])
            if self._started and kind != b"X":
                if self._server_spoke:
                    self._proxy.round_trips += 1
                self._losing = self._proxy._note_packet(kind, body) or self._losing
            self._server_spoke = False
            await self._proxy.open.wait()
            self._server[1].write(packet(kind, body))

    async def _down(self) -> None:
        while True:
            kind, body = await read_packet(self._server[0])
            self._server_spoke = True
            self._proxy.bytes_down += len(body)
            if kind == READY and self._proxy.latency_s:
                await asyncio.sleep(self._proxy.latency_s)
            await self._proxy.open.wait()
            if self._losing:
                if kind == READY:
                    return
                continue
            self._client[1].write(packet(kind, body))
            if kind == READY:
                self._started = True
