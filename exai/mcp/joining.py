"""Identical calls of one session that run at the same time, as one piece of work.

One client is known to send a `tools/call` again under a new id while the first still runs. The invariant is that work
ends with the last call that waits for it: cancelling one of several takes nothing from the others.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace

from exai.mcp.jsonrpc import Json
from exai.mcp.protocol import Call, CallContext

Progress = Callable[[str], Awaitable[None]]


class _Shared:
    """One piece of work and the calls that wait for it, by their ways to report progress."""

    def __init__(self) -> None:
        self.waiting: list[Progress] = []
        self.task: asyncio.Task[Json] | None = None

    async def say(self, message: str) -> None:
        """Report to all who wait."""
        for progress in list(self.waiting):
            await progress(message)


class Joining:
    """The calls of one session that may be joined, by what makes them identical."""

    def __init__(self) -> None:
        self._running: dict[bytes, _Shared] = {}

    def is_running(self, key: bytes) -> bool:
        """Tell whether a call with this key would join another."""
        return key in self._running

    async def run(self, key: bytes, call: Call, context: CallContext) -> Json:
        """Do the work of `call`, or wait for the identical one that runs; both get the one outcome."""
        shared = self._running.get(key)
        if shared is None:
            shared = self._running[key] = _Shared()
        task = shared.task or self._begin(key, shared, call, context)
        shared.waiting.append(context.progress)
        try:
            return await asyncio.shield(task)
        finally:
            shared.waiting.remove(context.progress)
            if not shared.waiting and not task.done():
                self._forget(key, shared)
                task.cancel()
                # What the work does when it is cancelled, such as recording a turn's outcome, belongs to this call.
                await asyncio.wait({task})

    def _begin(self, key: bytes, shared: _Shared, call: Call, context: CallContext) -> asyncio.Task[Json]:
        assert call.method.work is not None  # noqa: S101 - methods without work are answered by the protocol
        work = call.method.work(call, replace(context, progress=shared.say))
        shared.task = asyncio.ensure_future(work)
        shared.task.add_done_callback(lambda _: self._forget(key, shared))
        return shared.task

    def _forget(self, key: bytes, shared: _Shared) -> None:
        if self._running.get(key) is shared:
            del self._running[key]
