"""A model provider on loopback that answers as Kimi or GLM do, or fails in the way a script says.

Within a test: `async with ProviderServer() as server`, then `server.script(...)`; each chat request takes the next
reply of the script, and the default answer when there is none. As a program: `python tests/support/provider_server.py
--port 0 --script replies.json` prints its address; `GET /__requests` lists what it received, `POST /__script` adds
replies, `POST /__gate` opens the gate. Invariant: every request is recorded, in order, before anything is answered.
"""

from __future__ import annotations

import argparse
import asyncio
import gzip
import json
import socket
import struct
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import h11

Break = Literal["fin", "rst"]
Step = bytes | float | Literal["gate", "hang", "fin", "rst"]
"""Bytes are sent; a number sleeps; the gate is waited for; `hang` ends with the client; the breaks end at once."""

Framing = Literal["chunked", "length", "close"]
UsagePlace = Literal["choice", "top", "chunk", "none"]

ECHO_CHARS = 200
MAX_BODY_BYTES = 64 * 1_048_576
KIMI_USAGE = {"prompt_tokens": 11, "completion_tokens": 7, "total_tokens": 18, "cached_tokens": 4}
GLM_USAGE = {
    "prompt_tokens": 11,
    "completion_tokens": 7,
    "total_tokens": 18,
    "prompt_tokens_details": {"cached_tokens": 4},
    "completion_tokens_details": {"reasoning_tokens": 3},
}


@dataclass(frozen=True)
class Reply:
    """What happens after a request was read. Without `head` the steps run before any status line."""

    steps: Sequence[Step]
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    framing: Framing = "chunked"
    head: bool = True


@dataclass
class Received:
    """One request. `gone` is set when the client closed before the reply had ended, `ended` when the reply had."""

    method: str
    path: str
    headers: dict[str, str]
    body: Any
    raw: bytes = b""
    gone: asyncio.Event = field(default_factory=asyncio.Event)
    ended: asyncio.Event = field(default_factory=asyncio.Event)

    def as_json(self) -> dict[str, Any]:
        """For a test in another process."""
        return {
            "method": self.method,
            "path": self.path,
            "headers": self.headers,
            "body": self.body,
            "gone": self.gone.is_set(),
            "ended": self.ended.is_set(),
        }


def event(value: Any) -> bytes:
    """One server-sent event."""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return f"data: {text}\n\n".encode()


def chunk(delta: Mapping[str, Any], *, model: str = "kimi-k3", finish: str | None = None, **more: Any) -> bytes:
    """One chunk of a chat completion; `more` goes beside `choices`, `choice_usage` into the choice."""
    choice: dict[str, Any] = {"index": 0, "delta": dict(delta), "finish_reason": finish}
    if (usage := more.pop("choice_usage", None)) is not None:
        choice["usage"] = usage
    head = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": model}
    return event({**head, "choices": [choice], **more})


def kimi_answer(
    content: Sequence[str] | str = ("Hello", " there"),
    reasoning: Sequence[str] | str = ("Thinking",),
    *,
    model: str = "kimi-k3",
    finish: str = "stop",
    usage: Mapping[str, Any] = KIMI_USAGE,
    usage_in: UsagePlace = "choice",
    done: bool = True,
) -> Reply:
    """An answer as Kimi streams it: role, reasoning_content, content, then usage in the last choice or apart."""
    steps: list[Step] = [chunk({"role": "assistant", "content": ""}, model=model)]
    steps += [chunk({"reasoning_content": piece}, model=model) for piece in _pieces(reasoning)]
    steps += [chunk({"content": piece}, model=model) for piece in _pieces(content)]
    last: dict[str, Any] = {"choice_usage": usage} if usage_in == "choice" else {}
    last |= {"usage": usage} if usage_in == "top" else {}
    steps.append(chunk({}, model=model, finish=finish, **last))
    if usage_in == "chunk":
        steps.append(event({"id": "chatcmpl-1", "model": model, "choices": [], "usage": usage}))
    steps += [event("[DONE]")] if done else []
    return stream(*steps, headers={"x-trace-id": "trace-kimi-1"})


def glm_answer(
    content: Sequence[str] | str = ("Hello", " there"),
    reasoning: Sequence[str] | str = ("Thinking",),
    *,
    model: str = "glm-5.3",
    finish: str = "stop",
    usage: Mapping[str, Any] = GLM_USAGE,
) -> Reply:
    """An answer as GLM streams it: request_id in each chunk, usage with details in the last, then [DONE]."""
    more = {"model": model, "request_id": "glm-request-1"}
    steps: list[Step] = [
        chunk({"role": "assistant", "reasoning_content": piece}, **more) for piece in _pieces(reasoning)
    ]
    steps += [chunk({"role": "assistant", "content": piece}, **more) for piece in _pieces(content)]
    steps.append(chunk({"role": "assistant", "content": ""}, finish=finish, usage=usage, **more))
    return stream(*steps, event("[DONE]"))


def stream(*steps: Step, headers: Mapping[str, str] = {}, framing: Framing = "chunked") -> Reply:
    """An event stream made of any steps."""
    return Reply(steps, headers={"content-type": "text/event-stream", **headers}, framing=framing)


def failure(status: int, body: Any = None, headers: Mapping[str, str] = {}, content_type: str = "") -> Reply:
    """A plain reply: JSON, or text as given."""
    text = body if isinstance(body, str) else json.dumps(body if body is not None else {"error": {"message": "no"}})
    kind = content_type or ("text/html" if isinstance(body, str) else "application/json")
    return Reply([text.encode()], status, {"content-type": kind, **headers}, framing="length")


def kimi_error(status: int, kind: str, message: str = "no", headers: Mapping[str, str] = {}) -> Reply:
    """An error as Kimi words it."""
    return failure(status, {"error": {"type": kind, "message": message}}, {"x-trace-id": "trace-kimi-1", **headers})


def glm_error(status: int, code: str, message: str = "no") -> Reply:
    """An error as GLM words it."""
    return failure(status, {"error": {"code": code, "message": message}, "request_id": "glm-request-1"})


def hang_before_headers() -> Reply:
    """The request is taken and nothing comes back."""
    return Reply(["hang"], head=False)


def break_before_headers(how: Break = "fin") -> Reply:
    """The connection ends instead of an answer."""
    return Reply([how], head=False)


def break_after_first_token(how: Break = "fin", token: str = "Hel", *, gate: bool = False) -> Reply:
    """The connection ends inside the answer; with a gate, when the test opens it."""
    waits: list[Step] = ["gate"] if gate else []
    return stream(chunk({"content": token}), *waits, how)


def hang_after_first_token(token: str = "Hel") -> Reply:
    """A first piece, then silence."""
    return stream(chunk({"content": token}), "hang")


def gated_answer(first: str = "Hel", rest: str = "lo", reasoning: str = "") -> Reply:
    """A first piece, the rest of the answer when the gate opens."""
    begin = [chunk({"reasoning_content": reasoning})] if reasoning else []
    end = chunk({}, finish="stop", choice_usage=KIMI_USAGE)
    return stream(*begin, chunk({"content": first}), "gate", chunk({"content": rest}), end, event("[DONE]"))


def drip(token: str = "Hel", pause_s: float = 0.005) -> Reply:
    """A first piece, then one byte of a comment after another, for as long as the client listens."""
    steps: list[Step] = [chunk({"content": token})]
    for _ in range(10_000):
        steps += [b":", pause_s]
    return stream(*steps)


def gzip_bomb(unpacked_bytes: int = 64 * 1_048_576) -> Reply:
    """A small reply that unpacks to a large one, although no compression was asked for."""
    packed = gzip.compress(b"data: " + b"0" * unpacked_bytes)
    return stream(packed, headers={"content-encoding": "gzip"})


def huge_line(size_bytes: int = 4 * 1_048_576) -> Reply:
    """One line without an end."""
    piece = b"x" * 65_536
    return stream(b"data: ", *[piece] * (size_bytes // len(piece)), "hang")


REPLIES: dict[str, Callable[..., Reply]] = {
    made.__name__: made
    for made in (
        kimi_answer,
        glm_answer,
        failure,
        kimi_error,
        glm_error,
        hang_before_headers,
        break_before_headers,
        break_after_first_token,
        hang_after_first_token,
        gated_answer,
        drip,
        gzip_bomb,
        huge_line,
    )
}


def replies_from_json(script: Sequence[Mapping[str, Any]]) -> list[Reply]:
    """Each entry names one of `REPLIES` as `reply`; its other fields are that function's arguments."""
    return [REPLIES[entry["reply"]](**{key: entry[key] for key in entry if key != "reply"}) for entry in script]


def echo(body: Any) -> Reply:
    """The default answer: the number of messages and the text of the last user message."""
    messages = body.get("messages", []) if isinstance(body, dict) else []
    model = str(body.get("model", "")) if isinstance(body, dict) else ""
    asked = [message["content"] for message in messages if message.get("role") == "user"]
    said = asked[-1][:ECHO_CHARS] if asked else ""
    content = [f"{len(messages)} messages.", f" You said: {said}"]
    tokens = sum(len(message["content"]) for message in messages) // 4 + 1
    usage = {"prompt_tokens": tokens, "completion_tokens": sum(map(len, content)) // 4 + 1}
    answer = glm_answer if model.startswith("glm") else kimi_answer
    return answer(content, model=model, usage=usage)


class ProviderServer:
    """The server within a test's event loop; leaving its context ends every connection."""

    def __init__(self, *, default: Callable[[Any], Reply] = echo, models: Sequence[Mapping[str, Any]] = ()) -> None:
        self.default, self.models = default, list(models)
        self.routes: dict[str, Any] = {}
        self.files: Callable[[Received], Reply] | None = None
        self.hangs = False
        self.vectors: Callable[[str], Any] | None = None
        self.received: list[Received] = []
        self.gate = asyncio.Event()
        self.port = 0
        self.connections = 0
        self._script: deque[Reply] = deque()
        self.changed = asyncio.Condition()
        self._handlers: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None

    @property
    def origin(self) -> str:
        """Scheme, host and port."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def base_url(self) -> str:
        """The base URL for a provider's settings."""
        return f"{self.origin}/v1"

    @property
    def chats(self) -> list[Received]:
        """The chat requests so far, in order."""
        return [request for request in self.received if request.path.endswith("/chat/completions")]

    def script(self, *replies: Reply) -> None:
        """Add replies for the next chat requests."""
        self._script.extend(replies)

    async def arrived(self, count: int) -> Received:
        """Wait until `count` chat requests have come; return the last of them."""
        async with self.changed:
            await self.changed.wait_for(lambda: len(self.chats) >= count)
        return self.chats[count - 1]

    async def start(self, port: int = 0, host: str = "127.0.0.1") -> None:
        """Listen on a free port, or the one given."""
        self._server = await asyncio.start_server(self._connected, host, port, limit=1_048_576)
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        """Stop listening and drop every connection."""
        if self._server is not None:
            self._server.close()
        for handler in self._handlers:
            handler.cancel()
        await asyncio.gather(*self._handlers, return_exceptions=True)

    async def __aenter__(self) -> ProviderServer:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        handler = asyncio.current_task()
        assert handler is not None
        self._handlers.add(handler)
        self.connections += 1
        try:
            early = b""
            while (request := await _read_request(reader, early)) is not None:
                early = await self._answer(request, reader, writer)
        except (ConnectionError, _Broken, asyncio.CancelledError):
            pass
        finally:
            writer.transport.abort()
            with suppress(OSError):
                await writer.wait_closed()
            self._handlers.discard(handler)

    async def _answer(self, request: Received, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bytes:
        if "/__" in request.path:
            reply = self._control(request)
        else:
            self.received.append(request)
            reply = self._reply(request)
            async with self.changed:
                self.changed.notify_all()
        listening = asyncio.create_task(reader.read(1))
        speaking = asyncio.create_task(self._speak(reply, writer))
        try:
            await asyncio.wait({listening, speaking}, return_when=asyncio.FIRST_COMPLETED)
            if not speaking.done():
                request.gone.set()
                raise _Broken
            await speaking
            request.ended.set()
            if reply.framing == "close":
                raise _Broken
            return await _taken(listening)
        except ConnectionError:
            # Also if the loss was noticed by writing to a client that had already left.
            if not request.ended.is_set():
                request.gone.set()
            raise
        except _Broken:
            if not request.ended.is_set() and not speaking.done():
                request.gone.set()
            raise
        finally:
            for task in (listening, speaking):
                task.cancel()
            await asyncio.gather(listening, speaking, return_exceptions=True)

    def _reply(self, request: Received) -> Reply:
        if self.hangs:
            return hang_before_headers()
        if self.files is not None and request.path.startswith("/v1/files"):
            return self.files(request)
        if request.path in self.routes:
            route = self.routes[request.path]
            return route if isinstance(route, Reply) else failure(200, route)
        if request.path.endswith("/v1/models"):
            return failure(200, {"object": "list", "data": self.models})
        if request.path.endswith("/embeddings") and self.vectors is not None:
            found = self.vectors(request.body["input"])
            return found if isinstance(found, Reply) else failure(200, {"data": [{"index": 0, "embedding": found}]})
        if not request.path.endswith("/chat/completions"):
            return failure(404, {"error": {"message": "no such path"}})
        return self._script.popleft() if self._script else self.default(request.body)

    def _control(self, request: Received) -> Reply:
        if request.path.endswith("/__script"):
            self.script(*replies_from_json(request.body))
        elif request.path.endswith("/__gate"):
            self.gate.set()
        elif request.method == "DELETE":
            self.received.clear()
        return failure(200, {"requests": [each.as_json() for each in self.received]})

    async def _speak(self, reply: Reply, writer: asyncio.StreamWriter) -> None:
        body = b"".join(step for step in reply.steps if isinstance(step, bytes)) if reply.framing == "length" else b""
        if reply.head:
            writer.write(_head(reply, len(body)))
        for step in reply.steps:
            if isinstance(step, bytes):
                framed = f"{len(step):x}\r\n".encode() + step + b"\r\n" if reply.framing == "chunked" else step
                writer.write(framed)
                await writer.drain()
            elif isinstance(step, float):
                await asyncio.sleep(step)
            elif step == "gate":
                await self.gate.wait()
            elif step == "hang":
                await asyncio.Event().wait()
            else:
                await _break(writer, step)
        if reply.framing == "chunked" and reply.head:
            writer.write(b"0\r\n\r\n")
        await writer.drain()


class _Broken(Exception):
    """The connection is to end here."""


async def _break(writer: asyncio.StreamWriter, how: str) -> None:
    if how == "rst":
        sock: socket.socket = writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        writer.transport.abort()
    else:
        writer.close()
        with suppress(ConnectionError):
            await writer.wait_closed()
    raise _Broken


async def _taken(listening: asyncio.Task[bytes]) -> bytes:
    """Bytes that arrived during the reply: the beginning of the next request, which is kept."""
    if not listening.done():
        listening.cancel()
    try:
        return await listening
    except asyncio.CancelledError:
        handler = asyncio.current_task()
        if handler is not None and handler.cancelling():
            # The server stops at the same moment.
            raise
        return b""


def _head(reply: Reply, length: int) -> bytes:
    headers = dict(reply.headers)
    if reply.framing == "chunked":
        headers["transfer-encoding"] = "chunked"
    elif reply.framing == "length":
        headers["content-length"] = str(length)
    else:
        headers["connection"] = "close"
    lines = [f"HTTP/1.1 {reply.status} Scripted", *(f"{name}: {value}" for name, value in headers.items())]
    return "\r\n".join([*lines, "", ""]).encode()


async def _read_request(reader: asyncio.StreamReader, early: bytes) -> Received | None:
    connection = h11.Connection(h11.SERVER)
    if early:
        connection.receive_data(early)
    request: h11.Request | None = None
    body = bytearray()
    while True:
        happened = connection.next_event()
        if happened is h11.NEED_DATA:
            data = await reader.read(65_536)
            if not data and request is None:
                return None
            connection.receive_data(data)
        elif isinstance(happened, h11.Request):
            request = happened
        elif isinstance(happened, h11.Data):
            body += happened.data
            assert len(body) <= MAX_BODY_BYTES
        elif isinstance(happened, h11.EndOfMessage):
            assert request is not None
            headers = {name.decode(): value.decode("latin-1") for name, value in request.headers}
            is_json = body and "multipart/" not in headers.get("content-type", "")
            decoded = json.loads(bytes(body)) if is_json else None
            return Received(request.method.decode(), request.target.decode(), headers, decoded, bytes(body))
        else:
            return None


def _pieces(text: Sequence[str] | str) -> list[str]:
    return ([text] if text else []) if isinstance(text, str) else list(text)


@asynccontextmanager
async def provider_server(*replies: Reply, **options: Any) -> AsyncIterator[ProviderServer]:
    """A server with a script, in one line."""
    async with ProviderServer(**options) as server:
        server.script(*replies)
        yield server


async def _serve(host: str, port: int, script: Path | None) -> None:
    server = ProviderServer()
    if script is not None:
        server.script(*replies_from_json(json.loads(script.read_text())))
    await server.start(port, host)
    print(f"listening on {server.origin}", flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="A scripted model provider on loopback.")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--host", default="127.0.0.1", help="another address only inside a container")
    parser.add_argument("--script", type=Path, help="JSON list of replies, each naming one of the reply functions")
    arguments = parser.parse_args()
    with suppress(KeyboardInterrupt):
        asyncio.run(_serve(arguments.host, arguments.port, arguments.script))
