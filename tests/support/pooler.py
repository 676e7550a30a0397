"""A transaction-mode pooler with the least favourable permitted behaviour.

After each transaction a client continues on another server connection if one is free. A client that depends on
the state of a session (named statements, settings, advisory locks, temporary tables) fails at once, alone and
without load, whereas with real poolers it fails only sometimes.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import struct
from collections import Counter
from types import TracebackType

from exai.db.driver.address import parse_address
from tests.support.pg_wire import (
    CANCEL_REQUEST,
    Streams,
    dial,
    error,
    hang_up,
    packet,
    read_packet,
    read_start,
    through,
)
from tests.support.scram import Scram

TRACKED = {
    "user", "database", "client_encoding", "DateStyle", "TimeZone", "standard_conforming_strings", "application_name",
}  # fmt: skip
"""Start-up parameters that PgBouncer accepts; it refuses all others."""

ENDS_A_BATCH = (b"S", b"Q", b"F")
LET_IN = b"\0\0\0\0"
COPY_DATA = (b"d", b"c", b"f")


class Session:
    """One connection to the real server."""

    def __init__(self, streams: Streams, greeting: bytes, key: bytes) -> None:
        self.reader, self.writer = streams
        self.greeting, self.key = greeting, key


class Pooler:
    """`async with Pooler(url) as pooler:`, then connect to `pooler.url`; it opens at most `sessions` connections.

    `always_another`: a client waits rather than continue on its latest session, even if all others are busy.
    """

    def __init__(self, upstream_url: str, *, sessions: int = 3, always_another: bool = False) -> None:
        self._upstream_url, self._size, self._always_another = upstream_url, sessions, always_another
        self._server: asyncio.Server | None = None
        self._clients: set[asyncio.Task[None]] = set()
        self._sessions: set[Session] = set()
        self._idle: list[Session] = []
        self._freed = asyncio.Condition()
        self._running: dict[bytes, Session | None] = {}
        self.stats: Counter[str] = Counter()

    @property
    def url(self) -> str:
        assert self._server is not None
        return through(self._upstream_url, self._server.sockets[0].getsockname()[1])

    async def __aenter__(self) -> Pooler:
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
        await hang_up(*(session.writer for session in self._sessions))

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
        if start.cancel is not None:
            await self._cancel(start.cancel)
            return
        unknown = sorted(name for name in start.parameters if name and name not in TRACKED)
        if unknown:
            self.stats["refused"] += 1
            client[1].write(error("08P01", f"unsupported startup parameter: {unknown[0]}"))
            await client[1].drain()
            return
        session = await self._take(None)
        await self._give(session)
        secret = os.urandom(8)
        client[1].write(session.greeting + packet(b"K", secret) + packet(b"Z", b"I"))
        self._running[secret] = None
        await _Client(self, client, secret).run()

    async def _cancel(self, secret: bytes) -> None:
        self.stats["cancels"] += 1
        session = self._running.get(secret)
        if session is not None:
            _, writer = await dial(self._upstream_url)
            writer.write(struct.pack("!II", 8 + len(session.key), CANCEL_REQUEST) + session.key)
            await writer.drain()
            await hang_up(writer)

    async def _connect(self) -> Session:
        """Open a session with the address's password, if the server asks for it; the pooler's clients need none."""
        address = parse_address(self._upstream_url)
        streams = await dial(self._upstream_url)
        words = ["user", address.user or "", "database", address.database or "", "client_encoding", "UTF8", "", ""]
        body = "\0".join(words).encode()
        streams[1].write(struct.pack("!II", len(body) + 8, 196608) + body)
        greeting, key, scram = packet(b"R", LET_IN), b"", Scram(address.password or "")
        try:
            while True:
                kind, body = await read_packet(streams[0])
                if kind == b"S":
                    greeting += packet(kind, body)
                elif kind == b"K":
                    key = body
                elif kind == b"Z":
                    self.stats["sessions"] += 1
                    return Session(streams, greeting, key)
                elif kind == b"E":
                    raise ConnectionRefusedError(body)
                elif kind == b"R" and body != LET_IN:
                    answer = scram.answer(body)
                    if answer is not None:
                        streams[1].write(packet(b"p", answer))
                else:
                    assert kind in b"RN", kind
        except BaseException:
            await hang_up(streams[1])
            raise

    async def _take(self, last: Session | None) -> Session:
        """A session other than `last` if that can be had."""
        async with self._freed:
            while True:
                other = next((session for session in self._idle if session is not last), None)
                if other is None and len(self._sessions) < self._size:
                    other = await self._connect()
                    self._sessions.add(other)
                    self._idle.append(other)
                if other is None and self._idle and not self._always_another:
                    other = self._idle[0]
                if other is not None:
                    self._idle.remove(other)
                    self.stats["switches"] += last is not None and other is not last
                    return other
                await self._freed.wait()

    async def _give(self, session: Session, *, broken: bool = False) -> None:
        async with self._freed:
            if broken:
                await hang_up(session.writer)
                self._sessions.discard(session)
            else:
                self._idle.append(session)
            self._freed.notify_all()


class _Client:
    """One client: linked to a session only while a transaction lasts."""

    def __init__(self, pooler: Pooler, streams: Streams, secret: bytes) -> None:
        self._pooler, self._secret = pooler, secret
        self._reader, self._writer = streams
        self._session: Session | None = None
        self._last: Session | None = None
        self._batches = 0
        self._unsynced = False

    async def run(self) -> None:
        incoming = asyncio.create_task(read_packet(self._reader))
        outgoing: asyncio.Task[tuple[bytes, bytes]] | None = None
        try:
            while True:
                if self._session is not None and outgoing is None:
                    outgoing = asyncio.create_task(read_packet(self._session.reader))
                await asyncio.wait([task for task in (incoming, outgoing) if task], return_when=asyncio.FIRST_COMPLETED)
                if outgoing is not None and outgoing.done():
                    kind, body = outgoing.result()
                    outgoing = None
                    await self._answer(kind, body, more=incoming.done())
                elif incoming.done():
                    kind, body = incoming.result()
                    if kind == b"X":
                        return
                    incoming = asyncio.create_task(read_packet(self._reader))
                    await self._ask(kind, body)
        finally:
            for task in (incoming, outgoing):
                if task is not None:
                    task.cancel()
            await asyncio.gather(*(task for task in (incoming, outgoing) if task), return_exceptions=True)
            self._pooler._running.pop(self._secret, None)
            if self._session is not None:
                # The client left during a transaction, which no other client may continue.
                await self._pooler._give(self._session, broken=True)

    async def _ask(self, kind: bytes, body: bytes) -> None:
        if self._session is None:
            self._session = await self._pooler._take(self._last)
            self._pooler._running[self._secret] = self._session
        if kind in ENDS_A_BATCH:
            self._batches += 1
            self._unsynced = False
        elif kind not in COPY_DATA:
            self._unsynced = True
        self._session.writer.write(packet(kind, body))

    async def _answer(self, kind: bytes, body: bytes, *, more: bool) -> None:
        assert self._session is not None
        self._writer.write(packet(kind, body))
        if kind != b"Z":
            return
        self._batches -= 1
        if self._batches == 0 and not self._unsynced and body == b"I" and not more:
            self._pooler.stats["transactions"] += 1
            session, self._last, self._session = self._session, self._session, None
            self._pooler._running[self._secret] = None
            await self._pooler._give(session)
