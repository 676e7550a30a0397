"""Calls of one script that come in one turn of the event loop, as one command.

Appends that shared a database statement tell Redis of it at the same time, and most of what that costs this process is
the command around each. The invariant is that nobody notices but by the time it takes: the server makes one call after
the other and answers each by itself, and when it refuses all of them, each is made again by itself. So this is for a
script that may be run twice, and that takes two keys for each call, before the arguments of each call their number,
and returns a list of as many replies.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextvars import Context
from functools import partial
from typing import Final, TypeAlias

from exai.cache.client import Client
from exai.cache.faults import REDIS, CacheDown, CacheLost, CacheRefused, ReplyError
from exai.cache.scripts import Script
from exai.cache.wire import Argument, Reply
from exai.errors import CacheError

Keys: TypeAlias = tuple[str, str]

MOST_CALLS: Final = 16
"""In one command; the server does nothing else meanwhile."""

MOST_BYTES: Final = 262_144
"""Arguments of the calls in one command, unless one alone has more."""

CLOSED: Final = "closed"


class _Call:
    """One call, from its beginning to its end. A `reply` of None leaves it to its caller to make it alone."""

    __slots__ = ("args", "keys", "reply")

    def __init__(self, keys: Keys, args: tuple[Argument, ...]) -> None:
        self.keys, self.args = keys, args
        self.reply: asyncio.Future[Reply] = asyncio.get_running_loop().create_future()


class Together:
    """The calls of one script by this process. `close` ends those under way."""

    def __init__(self, client: Client, script: Script) -> None:
        self._client, self._script = client, script
        self._waiting: dict[int, list[_Call]] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    async def run(self, group: int, keys: Keys, args: tuple[Argument, ...]) -> Reply:
        """Run the script in one round trip. Raises `CacheError`; cancelling it harms no other."""
        call = _Call(keys, args)
        waiting = self._waiting.setdefault(group, [])
        if not waiting:
            asyncio.get_running_loop().call_soon(self._go, group, context=Context())
        waiting.append(call)
        reply = await call.reply
        if reply is None:
            (reply,) = await self._send(group, [call])
        if isinstance(reply, ReplyError):
            raise CacheRefused(reply.code, reply.text)
        return reply

    async def close(self) -> None:
        """Leave nobody waiting."""
        for calls in self._waiting.values():
            _fail(calls, CLOSED)
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)

    def _go(self, group: int) -> None:
        for calls in _parts(self._waiting.pop(group)):
            if len(calls) == 1:
                calls[0].reply.set_result(None)
            else:
                task = asyncio.create_task(self._send_all(group, calls), name=f"cache-{self._script.name}")
                self._tasks.add(task)
                task.add_done_callback(partial(self._sent, calls))

    async def _send_all(self, group: int, calls: Sequence[_Call]) -> None:
        replies: Sequence[Reply] = [None] * len(calls)
        try:
            replies = await self._send(group, calls)
        except CacheRefused:
            # The cause may be one call's own, such as a key that holds something else.
            pass
        except CacheError as error:
            _fail(calls, error.problem)
            return
        for call, reply in zip(calls, replies, strict=True):
            if not call.reply.done():
                call.reply.set_result(reply)

    def _sent(self, calls: Sequence[_Call], task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        # One that is cancelled before its first step has not run at all.
        _fail(calls, CLOSED)

    async def _send(self, group: int, calls: Sequence[_Call]) -> list[Reply]:
        keys = tuple(key for call in calls for key in call.keys)
        args = tuple(arg for call in calls for arg in (len(call.args), *call.args))
        replies = await self._client.run(self._script, group, keys, args)
        if not isinstance(replies, list) or len(replies) != len(calls):
            raise CacheDown(f"{REDIS} answered {self._script.name} with something else")
        return replies


def _fail(calls: Sequence[_Call], problem: str) -> None:
    """Tell it to those that have no answer."""
    for call in calls:
        if not call.reply.done():
            call.reply.set_exception(CacheLost(problem))


def _parts(calls: Sequence[_Call]) -> list[list[_Call]]:
    """Cut what waits into commands, in its order, without those whose callers have left."""
    parts: list[list[_Call]] = []
    room = 0
    for call in calls:
        if call.reply.done():
            continue
        size = sum(len(arg) for arg in call.args if not isinstance(arg, int))
        if not parts or len(parts[-1]) == MOST_CALLS or size > room:
            parts.append([])
            room = MOST_BYTES
        parts[-1].append(call)
        room -= size
    return parts
