"""TCP and TLS streams to providers, on asyncio's transports.

httpcore's own streams register and deregister their socket for every read, which is most of the cost of a short piece
of an answer. These stay registered and take their turn in `ReadTurns`.

Invariant: at most `MAX_HELD_BYTES` and one read of the transport are held for a stream that is not read.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any, Final

import httpcore

from exai.providers.network.turns import READ_BYTES, ReadTurns

MAX_HELD_BYTES: Final = 65_536

STAGGER_S: Final = 0.25
"""Time after which the next address of a name is tried beside the one before (RFC 8305)."""


class _Receiver(asyncio.Protocol):
    """The bytes received on one connection."""

    def __init__(self) -> None:
        self.held = bytearray()
        self.is_over = False
        self.error: Exception | None = None
        self.arrival: asyncio.Future[None] | None = None
        self.drained: asyncio.Future[None] | None = None
        self.is_full = False
        self.transport: Any = None
        self._is_paused = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.held += data
        if len(self.held) > MAX_HELD_BYTES and not self._is_paused:
            self._is_paused = True
            self.transport.pause_reading()
        self._wake()

    def eof_received(self) -> bool:
        self.is_over = True
        self._wake()
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self.is_over, self.error = True, self.error or exc
        self._wake()
        self.resume_writing()

    def pause_writing(self) -> None:
        self.is_full = True

    def resume_writing(self) -> None:
        self.is_full = False
        if self.drained is not None and not self.drained.done():
            self.drained.set_result(None)

    def take(self, most_bytes: int) -> bytes:
        """Return the beginning of the received bytes."""
        taken = bytes(self.held[:most_bytes])
        del self.held[:most_bytes]
        if self._is_paused and len(self.held) <= MAX_HELD_BYTES // 2 and not self.is_over:
            self._is_paused = False
            self.transport.resume_reading()
        return taken

    def _wake(self) -> None:
        if self.arrival is not None and not self.arrival.done():
            self.arrival.set_result(None)


class PacedStream(httpcore.AsyncNetworkStream):
    """One connection. `turns` are shared by all streams of the process."""

    def __init__(self, receiver: _Receiver, turns: ReadTurns) -> None:
        self._receiver, self._turns = receiver, turns
        self._loop = asyncio.get_running_loop()

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        """Return the next bytes, none at the end of the stream."""
        receiver = self._receiver
        if not receiver.held and not receiver.is_over:
            receiver.arrival = self._loop.create_future()
            try:
                await (receiver.arrival if timeout is None else asyncio.wait_for(receiver.arrival, timeout))
            except TimeoutError as error:
                raise httpcore.ReadTimeout(str(error)) from error
            finally:
                receiver.arrival = None
        await self._turns.take()
        if receiver.held:
            return receiver.take(min(max_bytes, READ_BYTES))
        if receiver.error is not None:
            raise httpcore.ReadError(str(receiver.error)) from receiver.error
        return b""

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:
        """Send bytes; return when the connection takes more."""
        receiver = self._receiver
        if not buffer:
            return
        if receiver.error is not None or receiver.transport.is_closing():
            raise httpcore.WriteError(str(receiver.error or "the connection is closed")) from receiver.error
        receiver.transport.write(buffer)
        if receiver.is_full:
            receiver.drained = self._loop.create_future()
            with _translated(httpcore.WriteTimeout, httpcore.WriteError):
                async with _limit(timeout):
                    await receiver.drained

    async def aclose(self) -> None:
        """Close the connection at once; unsent bytes are lost."""
        self._receiver.transport.abort()

    async def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore.AsyncNetworkStream:
        """Return the same connection with TLS."""
        receiver = self._receiver
        with _translated(httpcore.ConnectTimeout, httpcore.ConnectError):
            try:
                async with _limit(timeout):
                    secured = await self._loop.start_tls(
                        receiver.transport, receiver, ssl_context, server_hostname=server_hostname
                    )
                if secured is None:
                    raise ConnectionAbortedError("the connection was lost during the TLS handshake")
            except BaseException:
                receiver.transport.abort()
                raise
        receiver.transport = secured
        return self

    def get_extra_info(self, info: str) -> Any:
        """Return a fact by httpcore's name of it, None if it is not known."""
        receiver = self._receiver
        if info == "is_readable":
            return bool(receiver.held) or receiver.is_over
        names = {"ssl_object": "ssl_object", "client_addr": "sockname", "server_addr": "peername", "socket": "socket"}
        return receiver.transport.get_extra_info(names[info]) if info in names else None


class PacedBackend(httpcore.AsyncNetworkBackend):
    """Opens the connections of a pool."""

    def __init__(self, turns: ReadTurns) -> None:
        self._turns = turns

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,  # noqa: ARG002 - the signature is httpcore's
        socket_options: Iterable[Any] | None = None,  # noqa: ARG002
    ) -> httpcore.AsyncNetworkStream:
        """Connect to the first address of a host that answers."""
        with _translated(httpcore.ConnectTimeout, httpcore.ConnectError):
            async with _limit(timeout):
                loop = asyncio.get_running_loop()
                found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
                receiver = await _first_of(list(dict.fromkeys(str(each[4][0]) for each in found)), port)
        return PacedStream(receiver, self._turns)


async def _first_of(addresses: list[str], port: int) -> _Receiver:
    """Return the first connection of several attempts, of which each begins a moment after the one before."""
    attempts: list[asyncio.Task[_Receiver]] = []
    running: set[asyncio.Task[_Receiver]] = set()
    winner: _Receiver | None = None
    try:
        while winner is None and (running or len(attempts) < len(addresses)):
            if len(attempts) < len(addresses):
                attempts.append(asyncio.create_task(_open(addresses[len(attempts)], port)))
                running.add(attempts[-1])
            pause_s = STAGGER_S if len(attempts) < len(addresses) else None
            done, running = await asyncio.wait(running, timeout=pause_s, return_when=asyncio.FIRST_COMPLETED)
            winner = next((each.result() for each in attempts if each in done and not each.exception()), None)
    finally:
        await _abandon(attempts, winner)
    if winner is None:
        errors = [error for each in attempts if (error := each.exception()) is not None]
        raise errors[0] if errors else OSError("the name has no address")
    return winner


async def _open(address: str, port: int) -> _Receiver:
    _, receiver = await asyncio.get_running_loop().create_connection(_Receiver, address, port)
    return receiver


async def _abandon(attempts: Iterable[asyncio.Task[_Receiver]], winner: _Receiver | None) -> None:
    """End the attempts that are not needed, and the connections that they have made meanwhile."""
    for each in attempts:
        each.cancel()
    for outcome in await asyncio.gather(*attempts, return_exceptions=True):
        if isinstance(outcome, _Receiver) and outcome is not winner:
            outcome.transport.abort()


@asynccontextmanager
async def _limit(timeout_s: float | None) -> AsyncIterator[None]:
    if timeout_s is None:
        yield
        return
    async with asyncio.timeout(timeout_s):
        yield


@contextmanager
def _translated(late: type[Exception], broken: type[Exception]) -> Iterator[None]:
    """Raise the errors that httpcore expects, with the system's as their cause."""
    try:
        yield
    except TimeoutError as error:
        raise late(str(error)) from error
    except OSError as error:
        raise broken(str(error)) from error
