"""Clients of a daemon for `exai bench --chat`, each kind in a process of its own: one that reads, and many that chat.

Standard input has one line with what to do. The reader prints the seconds of its calls; the chats go on until standard
input ends. Invariant: a call is sent as any client sends it, and a chat asks for progress.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Sequence
from contextlib import AsyncExitStack
from functools import partial
from typing import Any, Final

import uvloop

from exai.bench.door.client import Caller, WebSocketCaller, allow_open_files, call_all, open_callers

HELLO: Final = {"protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": {"name": "bench", "version": "1"}}
READ: Final = "read"
CHAT: Final = "chat"
WARM_UP_CALLS: Final = 100
NOTIFICATION: Final = b'"method":"notifications/'
HEAD_BYTES: Final = 60
"""Where the method of a notification stands."""


class NotifiedCaller(WebSocketCaller):
    """A caller that also receives notifications, such as progress before its answer."""

    def _answer(self, answer: bytes) -> None:
        if NOTIFICATION not in answer[:HEAD_BYTES]:
            super()._answer(answer)


async def main() -> None:
    """Do what the first line says."""
    asked = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(asked), sys.stdin)
    task: dict[str, Any] = json.loads(await asked.readline())
    if task["kind"] == READ:
        sys.stdout.write(json.dumps(await _read(task)) + "\n")
    else:
        await _chat(task, asked)


async def _read(task: dict[str, Any]) -> list[float]:
    message = _called("conversation_get", {"continuation_id": task["name"]})
    kind = partial(NotifiedCaller, token=task["token"])
    async with open_callers(kind, task["port"], 1, message, _message("initialize", HELLO)) as callers:
        await call_all(callers, WARM_UP_CALLS)
        return (await call_all(callers, task["reads"]))[0]


async def _chat(task: dict[str, Any], asked: asyncio.StreamReader) -> None:
    """Chat on a connection each. Ends with an error if a chat ends."""
    kind = partial(NotifiedCaller, token=task["token"])
    models: Sequence[str] = task["models"]
    async with AsyncExitStack() as stack:
        callers: list[Caller] = []
        for number, model in enumerate(models):
            message = _called("chat", {"prompt": "Tell me.", "model": model}, progressToken=1)
            share = len(range(number, task["streams"], len(models)))
            hello = _message("initialize", HELLO)
            callers += await stack.enter_async_context(open_callers(kind, task["port"], share, message, hello))
        chats = [asyncio.create_task(caller.call([1])) for caller in callers]
        ending = asyncio.create_task(asked.read())
        await asyncio.wait([ending, *chats], return_when=asyncio.FIRST_COMPLETED)
        if not ending.done():
            raise SystemExit("a chat has ended")
        for chat in chats:
            chat.cancel()


def _called(tool: str, arguments: dict[str, Any], **meta: Any) -> bytes:
    return _message("tools/call", {"name": tool, "arguments": arguments, **({"_meta": meta} if meta else {})})


def _message(method: str, params: dict[str, Any]) -> bytes:
    return json.dumps({"jsonrpc": "2.0", "id": 1, "method": method, "params": params}).encode()


if __name__ == "__main__":
    allow_open_files()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main())
