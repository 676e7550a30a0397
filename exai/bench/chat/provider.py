"""A model provider of `exai bench --chat` in its own process: it streams words, and notes when requests came and ended.

Its clock is that of the bench, `time.monotonic`, which all processes of a machine share. Invariant: only the standard
library is used, so that the process costs little beside what is measured.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from typing import Any, Final

HOST: Final = "127.0.0.1"
AT_ONCE: Final = "at-once"
"""The model that sends its whole answer at once."""

STEADY: Final = ("steady-1", "steady-2", "steady-3", "steady-4")
"""Models that send a word at a time until they are stopped, one for each endpoint: an endpoint has 100 connections."""

WORDS: Final = 20
PAUSE_S: Final = 0.05
"""20 words a second."""

MAX_WORDS: Final = 20_000
_HEAD: Final = b"HTTP/1.1 200 OK\r\ncontent-type: %s\r\ntransfer-encoding: chunked\r\n\r\n"


class StreamingProvider:
    """The provider. `times` are the arrival and the end of each request that was answered at once.

    `streams` is the number of answers that are sent a word at a time now, and `words` counts the words of all.
    """

    def __init__(self) -> None:
        self.times: list[tuple[float, float]] = []
        self.words = self.streams = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve one connection until its client closes it."""
        try:
            while (request := await _request(reader)) is not None:
                await self._answer(*request, writer)
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    async def _answer(self, path: str, body: Any, writer: asyncio.StreamWriter) -> None:
        if path.endswith("/times"):
            _send(writer, b"application/json", json.dumps(self.times).encode(), b"")
            self.times = []
        elif path.endswith("/words"):
            facts = {"words": self.words, "streams": self.streams}
            _send(writer, b"application/json", json.dumps(facts).encode(), b"")
        elif path.endswith("/models"):
            listed = {"object": "list", "data": [{"id": name, "object": "model"} for name in (AT_ONCE, *STEADY)]}
            _send(writer, b"application/json", json.dumps(listed).encode(), b"")
        elif not path.endswith("/chat/completions"):
            writer.write(b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n")
        elif body["model"] == AT_ONCE:
            received = time.monotonic()
            _send(writer, b"text/event-stream", *[_word() for _ in range(WORDS)], _END, b"")
            await writer.drain()
            self.times.append((received, time.monotonic()))
        else:
            await self._stream(writer)
        await writer.drain()

    async def _stream(self, writer: asyncio.StreamWriter) -> None:
        writer.write(_HEAD % b"text/event-stream")
        self.streams += 1
        try:
            for _ in range(MAX_WORDS):
                writer.write(_chunk(_word()))
                await writer.drain()
                self.words += 1
                await asyncio.sleep(PAUSE_S)
        finally:
            self.streams -= 1


async def ask_provider(port: int, path: str) -> Any:
    """Return what a running provider states at `path`."""
    reader, writer = await asyncio.open_connection(HOST, port)
    writer.write(f"GET {path} HTTP/1.1\r\nhost: bench\r\n\r\n".encode())
    await reader.readuntil(b"\r\n\r\n")
    size = int(await reader.readline(), 16)
    found = json.loads(await reader.readexactly(size))
    writer.close()
    return found


async def _request(reader: asyncio.StreamReader) -> tuple[str, Any] | None:
    try:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
    except asyncio.IncompleteReadError:
        return None
    first, *lines = head.split("\r\n")
    fields = {name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    body = await reader.readexactly(int(fields.get("content-length", 0)))
    return first.split(" ")[1], json.loads(body) if body else None


def _event(choice: dict[str, Any], **more: Any) -> bytes:
    facts = {"id": "1", "object": "chat.completion.chunk", "created": 1, "model": AT_ONCE, "choices": [choice], **more}
    return b"data: " + json.dumps(facts).encode() + b"\n\n"


def _word() -> bytes:
    return _event({"index": 0, "delta": {"content": "word "}, "finish_reason": None})


_END: Final = (
    _event(
        {"index": 0, "delta": {}, "finish_reason": "stop"},
        usage={"prompt_tokens": 1, "completion_tokens": WORDS, "total_tokens": WORDS + 1},
    )
    + b"data: [DONE]\n\n"
)


def _send(writer: asyncio.StreamWriter, kind: bytes, *pieces: bytes) -> None:
    writer.write(_HEAD % kind + b"".join(_chunk(piece) for piece in pieces))


def _chunk(piece: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(piece), piece)


async def main() -> None:
    """Print the port, and serve until standard input ends."""
    asked = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(asked), sys.stdin)
    # Not as a context, which since Python 3.12 would wait for connections that are kept open.
    server = await asyncio.start_server(StreamingProvider().serve, HOST, 0)
    sys.stdout.write(json.dumps({"port": server.sockets[0].getsockname()[1]}) + "\n")
    sys.stdout.flush()
    await asked.read()
    server.close()


if __name__ == "__main__":
    asyncio.run(main())
