"""A client of a daemon that may die at any moment: many calls at once on one socket, each answered, refused or lost.

Invariant: a call that was sent ends as exactly one of an answer, a `Refused` with the error's facts, or `Lost`, within
its limit.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import orjson
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake

from tests.support.mcp_server import modern, tool_call

CALL_LIMIT_S = 30.0
CLOSE_LIMIT_S = 1.0


class Refused(Exception):
    """The daemon answered with an error; `facts` are its machine-readable fields."""

    def __init__(self, facts: dict[str, Any]) -> None:
        super().__init__(f"{facts.get('code')}: {facts.get('message')}")
        self.facts = facts

    @property
    def code(self) -> str:
        return str(self.facts.get("code"))


class Lost(Exception):
    """No answer will come: the connection ended."""


class Unanswered(AssertionError):
    """The connection lives, and no answer came within the limit."""


class Caller:
    """One connection; made by `calling`."""

    def __init__(self, socket: ClientConnection) -> None:
        self._socket = socket
        self._ids = itertools.count(1)
        self._waiting: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self.is_lost = False
        self.close_code: int | None = None

    async def call(self, tool: str, /, **arguments: Any) -> dict[str, Any]:
        """The structured answer of a tool. Raises Refused, Lost or Unanswered."""
        given = {name: value for name, value in arguments.items() if value is not None}
        key = next(self._ids)
        answer = self._waiting[key] = asyncio.get_running_loop().create_future()
        try:
            await self._socket.send(orjson.dumps(modern(key, "tools/call", tool_call(tool, **given))).decode())
            async with asyncio.timeout(CALL_LIMIT_S):
                message = await answer
        except ConnectionClosed:
            raise Lost from None
        except TimeoutError:
            raise Unanswered(f"{tool} was not answered within {CALL_LIMIT_S:g} s") from None
        finally:
            del self._waiting[key]
        if "error" in message:
            error = message["error"]
            raise Refused(error.get("data") or {"code": error["code"], "message": error["message"]})
        result = message["result"]
        structured: dict[str, Any] = result["structuredContent"]
        if result["isError"]:
            raise Refused(structured["error"])
        return structured

    async def listen(self) -> None:
        """Hand out answers until the connection ends."""
        try:
            async for frame in self._socket:
                message = orjson.loads(frame)
                answer = self._waiting.get(message.get("id"))
                if answer is not None and not answer.done():
                    answer.set_result(message)
        finally:
            self.is_lost = True
            self.close_code = self._socket.close_code
            for answer in self._waiting.values():
                if not answer.done():
                    answer.set_exception(Lost())


@asynccontextmanager
async def calling(url: str) -> AsyncIterator[Caller]:
    """Connect to a daemon. Raises Lost when there is none."""
    try:
        socket = await connect(url, max_size=None, compression=None, proxy=None, close_timeout=CLOSE_LIMIT_S)
    except (OSError, InvalidHandshake, ConnectionClosed, TimeoutError) as error:
        raise Lost from error
    caller = Caller(socket)
    listening = asyncio.create_task(caller.listen())
    try:
        yield caller
    finally:
        listening.cancel()
        await asyncio.gather(listening, return_exceptions=True)
        socket.transport.abort()
        await socket.wait_closed()
