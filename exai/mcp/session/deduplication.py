"""Runs identical concurrent calls of one session as one piece of work.

At least one client repeats a running `tools/call` under a new id. Invariant: the work ends with the last call
that waits for it, so cancelling one of several calls does not affect the others.
"""

from __future__ import annotations

import asyncio
from dataclasses import replace

from exai.mcp.core.jsonrpc import Json
from exai.mcp.core.protocol import Call, CallContext


class _Work:
    """One piece of work, and the progress callbacks of the calls that wait for it."""

    def __init__(self) -> None:
        self.waiting: list[CallContext] = []
        self.task: asyncio.Task[Json] | None = None

    async def report(self, message: str) -> None:
        """Report progress to every waiting call."""
        for context in list(self.waiting):
            await context.progress(message)

    def note(self, message: str) -> None:
        """Set the periodic report of every waiting call."""
        for context in self.waiting:
            context.doing(message)


class SharedWork:
    """The work of the joinable calls of one session, by the key that makes calls identical."""

    def __init__(self) -> None:
        self._running: dict[bytes, _Work] = {}

    def is_running(self, key: bytes) -> bool:
        """Return whether a call with this key would join a running one."""
        return key in self._running

    async def run(self, key: bytes, call: Call, context: CallContext) -> Json:
        """Run the work of `call`, or wait for the identical call that is running; both get the same outcome."""
        shared = self._running.get(key)
        if shared is None:
            shared = self._running[key] = _Work()
        task = shared.task or self._begin(key, shared, call, context)
        shared.waiting.append(context)
        # The task inherits the deadline and the log context of the first call; the others have timeouts of their own.
        try:
            # Shielded: the cancellation of one call must not end the work that others wait for.
            return await asyncio.shield(task)
        finally:
            shared.waiting.remove(context)
            if not shared.waiting and not task.done():
                self._forget(key, shared)
                task.cancel()
                # Wait for the cancelled work to unwind: its last acts, such as storing an outcome, belong to this call.
                await asyncio.wait({task})

    def _begin(self, key: bytes, shared: _Work, call: Call, context: CallContext) -> asyncio.Task[Json]:
        assert call.method.work is not None  # noqa: S101 - methods without work are answered by the protocol
        work = call.method.work(call, replace(context, progress=shared.report, doing=shared.note))
        shared.task = asyncio.ensure_future(work)
        shared.task.add_done_callback(lambda _: self._forget(key, shared))
        return shared.task

    def _forget(self, key: bytes, shared: _Work) -> None:
        if self._running.get(key) is shared:
            del self._running[key]
