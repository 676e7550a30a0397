"""`exai connect`: newline-delimited JSON on standard input and output, one WebSocket to the daemon.

Invariant: every request read from standard input gets exactly one answer on standard output: from the daemon, or from
the bridge if the daemon cannot be reached, is lost, or would not understand the request. Nothing but messages is
written there, and after the end of input only answers. Messages pass as bytes; they are parsed only to
classify them. Every editor window starts a bridge, so it must not import anything heavy.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Mapping
from typing import Any

import orjson
from websockets.asyncio.client import ClientConnection

from exai.mcp.core.jsonrpc import (
    INVALID_REQUEST,
    JsonRpcMessage,
    Malformed,
    Notification,
    Request,
    Response,
    encode_result,
    request_id,
)
from exai.mcp.core.versions import META_SUBSCRIPTION, OVERLOADED
from exai.mcp.stdio.daemon_connection import FRAME_MAX_BYTES, DaemonConnection, send_text
from exai.mcp.stdio.messages import classify, error_of, refusal_of, too_large
from exai.mcp.stdio.open_requests import OpenRequests
from exai.mcp.stdio.pipes import InputLine, start_reading, start_writing

PATIENCE_S = 8.0
"""Time that requests wait for an unreachable daemon, from its loss; editors allow about ten seconds for a start."""

REPLAY_TIMEOUT_S = 10.0
LAST_ANSWERS_TIMEOUT_S = 5.0
"""Time to wait for answers after the end of standard input."""

FLUSH_TIMEOUT_S = 2.0
"""Time to write the remaining output to a client that may no longer read."""

LINE_MAX_BYTES = FRAME_MAX_BYTES
LINES_AHEAD = 4
FRAMES_AHEAD = 64

STDIN, STDOUT = 0, 1
TOO_BIG = 1009
DISCONNECTED = -31004
"""An error code beside the daemon's own, which are in `exai.mcp.core.versions`."""


def run_bridge(
    url: str,
    *,
    headers: Mapping[str, str] | None = None,
    patience_s: float = PATIENCE_S,
    stdin: int = STDIN,
    stdout: int = STDOUT,
) -> int:
    """Carry messages between two descriptors and the daemon until input ends. Returns the exit status."""
    try:
        asyncio.run(_run(url, headers or {}, patience_s, stdin, stdout))
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        pass  # The client has closed standard output, which is how editors end the bridge.
    return 0


async def _run(url: str, headers: Mapping[str, str], patience_s: float, stdin: int, stdout: int) -> None:
    await Bridge(DaemonConnection(url, headers, patience_s), patience_s, stdin, stdout).run()


class Bridge:
    """One standard input and one daemon."""

    def __init__(self, daemon: DaemonConnection, patience_s: float, stdin: int, stdout: int) -> None:
        self._daemon = daemon
        self._patience_s = patience_s
        self._stdin, self._stdout = stdin, stdout
        self._open = OpenRequests()
        self._lines: asyncio.Queue[InputLine | None] = asyncio.Queue(LINES_AHEAD)
        self._unsent: InputLine | None = None
        """The line that was read and is not answered or sent yet."""

        self._outgoing: asyncio.Queue[tuple[bytes, bool] | None] = asyncio.Queue(FRAMES_AHEAD)
        """The messages to write, and whether each is an answer."""

        self._input_ended = asyncio.Event()

    async def run(self) -> None:
        """Run until standard input has ended and every request is answered, or the client no longer reads."""
        loop = asyncio.get_running_loop()
        start_reading(self._stdin, loop, self._lines, self._input_ended, LINE_MAX_BYTES)
        writer = asyncio.create_task(self._write(), name="bridge writer")
        connection = self._daemon.run(self._replay, self._receive, self._fail_lost)
        keeper = asyncio.create_task(connection, name="bridge connection")
        sender = asyncio.create_task(self._forward_lines(), name="bridge sender")
        ended = asyncio.create_task(self._input_ended.wait(), name="bridge input")
        tasks = (keeper, sender, writer, ended)
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        if not writer.done():
            await self._finish(sender, writer)
        for task in tasks:
            task.cancel()
        outcomes = await asyncio.gather(*tasks, return_exceptions=True)
        for outcome in outcomes:
            if isinstance(outcome, Exception):
                raise outcome

    async def _finish(self, sender: asyncio.Task[None], writer: asyncio.Task[None]) -> None:
        """Answer every open request, within limits that hold even if daemon or client no longer respond."""
        await asyncio.wait({sender, writer}, timeout=self._patience_s, return_when=asyncio.FIRST_COMPLETED)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LAST_ANSWERS_TIMEOUT_S):
                await asyncio.wait({sender, writer}, return_when=asyncio.FIRST_COMPLETED)
                while self._open.in_flight and not writer.done():
                    self._open.settled.clear()
                    await self._open.settled.wait()
        is_all_read = sender.done()
        sender.cancel()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(FLUSH_TIMEOUT_S):
                await self._answer_the_rest(is_all_read=is_all_read)
                await self._outgoing.put(None)
                await asyncio.wait({writer})

    async def _answer_the_rest(self, *, is_all_read: bool) -> None:
        problem = "the input has ended, and EXAI has not answered within {:g} s; the call may or may not have been done"
        await self._fail_in_flight(problem.format(LAST_ANSWERS_TIMEOUT_S))
        for key in self._open.listening:
            await self._answer(encode_result(key, {"resultType": "complete", "_meta": {META_SUBSCRIPTION: key}}))
        line = None if is_all_read else self._unsent or await self._lines.get()
        while line is not None:
            message, _, raw_id = classify(line)
            if isinstance(message, Request):
                await self._answer(error_of(message.id, DISCONNECTED, "the input has ended; the call was not sent"))
            elif isinstance(message, Malformed):
                await self._answer(refusal_of(raw_id, message.error))
            line = await self._lines.get()

    # From standard input to the daemon.

    async def _forward_lines(self) -> None:
        while (line := await self._lines.get()) is not None:
            self._unsent = line
            await self._forward(*classify(line))
            self._unsent = None

    async def _forward(self, message: JsonRpcMessage, data: bytes, raw_id: bytes | None) -> None:
        match message:
            case Malformed():
                # Not forwarded: the daemon would refuse it too, and close a connection with many such messages.
                await self._answer(refusal_of(raw_id, message.error))
            case Request():
                if message.id in self._open:
                    problem = f"Invalid Request: id {message.id!r} is already in use"
                    await self._answer(error_of(message.id, INVALID_REQUEST, problem))
                elif (socket := await self._daemon.open_socket()) is None:
                    await self._answer(error_of(message.id, DISCONNECTED, self._daemon.unreachable))
                elif (most := self._daemon.message_max_bytes) is not None and len(data) > most:
                    await self._answer(error_of(message.id, OVERLOADED, too_large(len(data), most)))
                else:
                    # No await between this and the send: if the connection is lost from here on, the request is
                    # among those that fail.
                    self._open.add(message, data)
                    self._unsent = None
                    await send_text(socket, data)
            case Notification() | Response():
                socket = await self._daemon.open_socket()
                if socket is None:
                    return
                if isinstance(message, Notification):
                    self._open.apply_notification(message, data)
                await send_text(socket, data)

    # From the daemon to standard output.

    async def _replay(self, socket: ClientConnection) -> None:
        """Repeat the handshake and subscriptions on a new connection; the client does not receive these answers."""
        handshake = self._open.handshake
        if len(handshake) == 2:
            async with asyncio.timeout(REPLAY_TIMEOUT_S):
                await send_text(socket, handshake[0])
                await socket.recv(decode=False)
                await send_text(socket, handshake[1])
        for line in list(self._open.listening.values()):
            await send_text(socket, line)

    async def _receive(self, socket: ClientConnection) -> None:
        while True:
            data = await socket.recv(decode=False)
            try:
                message = orjson.loads(data)
            except orjson.JSONDecodeError:
                continue
            if not isinstance(message, dict):
                continue
            if b"\n" in data or b"\r" in data:
                data = orjson.dumps(message)
            if "method" in message:
                subscription = _acknowledged_subscription(message)
                # The daemon acknowledges a repeated subscription again; the client has had its acknowledgement.
                if subscription is None or self._open.acknowledge(subscription):
                    await self._outgoing.put((data, False))
            else:
                if request_id(message.get("id")):
                    self._open.settle(message["id"])
                await self._answer(data)

    async def _fail_lost(self, close_code: int | None) -> None:
        """Answer the requests that were in flight on a lost connection."""
        if close_code == TOO_BIG and self._open.in_flight:
            # The daemon did not say which message was too large; it must be the largest.
            largest, size_bytes = self._open.remove_largest()
            self._daemon.message_max_bytes = size_bytes - 1
            await self._answer(error_of(largest, OVERLOADED, too_large(size_bytes, None)))
        await self._fail_in_flight(
            f"the connection to EXAI at {self._daemon.url} was lost ({self._daemon.problem}); the call may or may not "
            "have been carried out. Call again, with the same idempotency key if any"
        )

    async def _fail_in_flight(self, problem: str) -> None:
        for key in self._open.remove_in_flight():
            await self._answer(error_of(key, DISCONNECTED, problem))

    async def _answer(self, data: bytes) -> None:
        await self._outgoing.put((data, True))

    async def _write(self) -> None:
        """Write in a thread, because a pipe without a reader blocks. Ends on request or when the reader is gone."""
        loop = asyncio.get_running_loop()
        jobs = start_writing(self._stdout, loop)
        while (item := await self._outgoing.get()) is not None:
            data, is_answer = item
            if self._input_ended.is_set() and not is_answer:
                continue
            written = loop.create_future()
            jobs.put((data + b"\n", written))
            await written


def _acknowledged_subscription(message: dict[str, Any]) -> Any:
    """Return the id of the subscription that a notification acknowledges, or None for another notification."""
    if message["method"] != "notifications/subscriptions/acknowledged":
        return None
    return message.get("params", {}).get("_meta", {}).get(META_SUBSCRIPTION)
