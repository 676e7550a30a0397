"""What the Postgres proxies of the tests share: packets, start-up, and addresses of one server in another's place."""

from __future__ import annotations

import asyncio
import contextlib
import struct
from dataclasses import dataclass, replace
from urllib.parse import quote

from exai.db.driver.address import Address, parse_address

SSL_REQUEST, GSS_REQUEST, CANCEL_REQUEST = 80877103, 80877104, 80877102
MAX_PACKET = 64 * 1_048_576

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


@dataclass(frozen=True)
class Start:
    """The first packet of a client: its parameters, or the secret of a statement to cancel."""

    raw: bytes
    parameters: dict[str, str]
    cancel: bytes | None


def packet(kind: bytes, body: bytes = b"") -> bytes:
    return kind + struct.pack("!I", len(body) + 4) + body


def error(sqlstate: str, text: str) -> bytes:
    return packet(b"E", f"SFATAL\0VFATAL\0C{sqlstate}\0M{text}\0\0".encode())


async def read_packet(reader: asyncio.StreamReader) -> tuple[bytes, bytes]:
    head = await reader.readexactly(5)
    (size,) = struct.unpack("!I", head[1:])
    assert size <= MAX_PACKET
    return head[:1], await reader.readexactly(size - 4)


async def read_start(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> Start:
    """The start-up or cancel packet; requests for encryption before it are declined."""
    while True:
        head = await reader.readexactly(8)
        size, code = struct.unpack("!II", head)
        body = await reader.readexactly(size - 8)
        if code in (SSL_REQUEST, GSS_REQUEST):
            writer.write(b"N")
            continue
        if code == CANCEL_REQUEST:
            return Start(head + body, {}, body)
        words = [word.decode() for word in body.split(b"\0")]
        return Start(head + body, dict(zip(words[::2], words[1::2], strict=False)), None)


async def dial(url: str) -> Streams:
    """A raw connection to the server that `url` names."""
    host, port = first_host(parse_address(url))
    if host.startswith("/"):
        return await asyncio.open_unix_connection(f"{host}/.s.PGSQL.{port}")
    return await asyncio.open_connection(host, port)


async def hang_up(*writers: asyncio.StreamWriter) -> None:
    """Abort connections, and wait until they are closed."""
    for writer in writers:
        writer.transport.abort()
    for writer in writers:
        with contextlib.suppress(OSError):
            await writer.wait_closed()


def first_host(address: Address) -> tuple[str, int]:
    return address.hosts[0] if address.hosts else ("/var/run/postgresql", 5432)


def through(url: str, port: int) -> str:
    """The address `url` with a local port in place of its server."""
    address = replace(parse_address(url), hosts=())
    password = f":{quote(address.password, safe='')}" if address.password else ""
    user = f"{quote(address.user, safe='')}{password}@" if address.user else ""
    database = quote(address.database or "", safe="")
    return f"postgresql://{user}127.0.0.1:{port}/{database}?sslmode=disable"
