"""A peer on a bare TCP socket, which can misbehave in ways that client libraries prevent."""

from __future__ import annotations

import asyncio
import base64
import os
import socket
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

WAIT_S = 5.0


class RawPeer:
    """Bytes in, bytes out; every wait is bounded."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        async with asyncio.timeout(WAIT_S):
            await self.writer.drain()

    async def head(self) -> bytes:
        """The head of an HTTP answer."""
        async with asyncio.timeout(WAIT_S):
            return await self.reader.readuntil(b"\r\n\r\n")

    async def rest(self) -> bytes:
        """Everything up to the end of the connection, however that comes."""
        async with asyncio.timeout(WAIT_S):
            try:
                return await self.reader.read()
            except ConnectionError:
                return b""

    async def upgrade(self, token: str = "") -> None:
        """Become a WebSocket."""
        authorization = f"Authorization: Bearer {token}\r\n" if token else ""
        key = base64.b64encode(os.urandom(16)).decode()
        await self.send(
            f"GET / HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            f"{authorization}Sec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\n\r\n".encode()
        )
        assert b" 101 " in (await self.head()).splitlines()[0]

    async def frame(self, data: bytes, *, opcode: int = 1, declared: int | None = None, fin: bool = True) -> None:
        """Send one masked frame; `declared` lies about its size."""
        size = len(data) if declared is None else declared
        first = bytes([(0x80 if fin else 0) | opcode])
        if size < 126:
            head = first + bytes([0x80 | size])
        elif size < 65_536:
            head = first + bytes([0x80 | 126]) + struct.pack("!H", size)
        else:
            head = first + bytes([0x80 | 127]) + struct.pack("!Q", size)
        await self.send(head + bytes(4) + data)

    async def received_frame(self) -> tuple[int, bytes]:
        """One frame from the server: opcode and payload."""
        async with asyncio.timeout(WAIT_S):
            first, second = await self.reader.readexactly(2)
            size = second & 0x7F
            if size == 126:
                (size,) = struct.unpack("!H", await self.reader.readexactly(2))
            elif size == 127:
                (size,) = struct.unpack("!Q", await self.reader.readexactly(8))
            return first & 0x0F, await self.reader.readexactly(size)

    async def received_message(self) -> bytes:
        """The next message; the server's pings, which come while the machine is slow, are skipped."""
        while True:
            opcode, payload = await self.received_frame()
            if opcode == 1:
                return payload

    async def close_code(self) -> int:
        """The code of the close frame; frames before it are ignored."""
        while True:
            opcode, payload = await self.received_frame()
            if opcode == 8:
                return int.from_bytes(payload[:2], "big")


@asynccontextmanager
async def raw_peer(port: int, *, receive_buffer: int | None = None) -> AsyncIterator[RawPeer]:
    """Connect; a small `receive_buffer` makes the peer slow as soon as it stops reading."""
    opened = socket.socket()
    opened.setblocking(False)
    if receive_buffer is not None:
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
    await asyncio.get_running_loop().sock_connect(opened, ("127.0.0.1", port))
    reader, writer = await asyncio.open_connection(
        sock=opened, limit=2**16 if receive_buffer is None else receive_buffer
    )
    try:
        yield RawPeer(reader, writer)
    finally:
        writer.transport.abort()
