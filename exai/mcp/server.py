"""State shared by all transports of one server: its surface, its sessions, and its shutdown.

Invariant: once draining has begun no new call is started, every running call gets an answer, and `drain`
returns within its limits for any behaviour of the peers.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterable

import structlog

from exai.mcp.admission import Edge
from exai.mcp.core.connection import Connection
from exai.mcp.core.protocol import Feature, Surface
from exai.mcp.features.tasks import Tasks, TaskStore, Unfinished
from exai.mcp.features.tools import ToolRegistry
from exai.mcp.identity import Admitted, Authenticator, admit_local_owner
from exai.mcp.session.notifier import Notifier
from exai.mcp.session.outbox import Outbox
from exai.mcp.session.runtime import Runtime
from exai.mcp.session.session import Session
from exai.models import Recorder
from exai.settings.load import ServerSettings

FLUSH_TIMEOUT_S = 12.0
"""Time for closing after the last answer was queued: cancelled calls unwind and sockets are flushed."""

HURRIED_FLUSH_TIMEOUT_S = 0.5

GOING_AWAY = 1001
SERVICE_RESTART = 1012

log = structlog.get_logger(__name__)


class McpServer:
    """One MCP server, independent of its transports."""

    def __init__(
        self,
        name: str,
        version: str,
        *,
        tools: ToolRegistry,
        instructions: str,
        settings: ServerSettings,
        tool_timeout_s: float,
        authenticate: Authenticator = admit_local_owner,
        recorder: Recorder | None = None,
        features: Iterable[Feature] = (),
        task_store: TaskStore | None = None,
        unfinished: Unfinished | None = None,
    ) -> None:
        self.settings = settings
        self.edge = Edge(settings, authenticate)
        self.runtime = Runtime(settings, recorder or _Unrecorded(), tool_timeout_s)
        self.quotas, self.recorder = self.runtime.quotas, self.runtime.recorder
        activity = self.runtime.activity
        self._tasks = (
            None if task_store is None else Tasks(task_store, settings, self.recorder, activity.set, unfinished)
        )
        offered = (
            (tools.feature(), *features)
            if self._tasks is None
            else (tools.feature(self._tasks.run), *features, self._tasks.feature())
        )
        self.surface = Surface(name, version, offered, instructions=instructions)
        self._sessions: set[Session] = set()
        # Bound once: a method bound for every session would be kept by each of them.
        self._on_session_end = self.forget
        self._is_count_due = False
        self.notifier = Notifier(lambda: self._sessions)

    @property
    def is_draining(self) -> bool:
        """Return whether shutdown has begun, so that no new call is started."""
        return self.runtime.is_draining

    def open_session(self, admitted: Admitted, *, peer: str, version: str | None = None) -> Session:
        """Start a session; the transport must `end` it."""
        session = self.make_session(admitted, peer=peer, version=version)
        self.enlist(session)
        return session

    def make_session(
        self, admitted: Admitted, *, peer: str, version: str | None = None, outbox: Outbox | None = None
    ) -> Session:
        """Create a session, which is counted while enlisted; a transport may supply its own outbox."""
        connection = Connection(
            self.surface,
            max_in_flight=self.settings.max_in_flight,
            reply_max_bytes=self.settings.reply_max_bytes,
            version=version,
            budget=self.quotas.of(admitted.owner),
        )
        return Session(self.runtime, connection, admitted, peer=peer, on_end=self._on_session_end, outbox=outbox)

    def enlist(self, session: Session) -> None:
        """Count a session that starts, or that takes another request."""
        self._sessions.add(session)
        if not self._is_count_due:
            self._count()

    def forget(self, session: Session) -> None:
        """Stop counting a session that has ended, or that waits for another request."""
        self._sessions.discard(session)
        if not self._is_count_due:
            self._count()
        self.runtime.activity.set()

    def _count(self) -> None:
        """Schedule the update of the session gauge for the end of this iteration, in which many may start and end."""
        self._is_count_due = True
        asyncio.get_running_loop().call_soon(self._report_count)

    def _report_count(self) -> None:
        self._is_count_due = False
        self.recorder.gauge("mcp_sessions", len(self._sessions))

    async def drain(self, grace_s: float, code: int, hurry: asyncio.Event | None = None) -> None:
        """Let running calls finish for `grace_s` (or until `hurry`), fail the rest, and close every session."""
        self.runtime.is_draining = True
        self.notifier.stop()
        hurry = hurry or asyncio.Event()
        hurried = asyncio.create_task(self._wake_drain_at(hurry), name="mcp drain hurry")
        try:
            await self._close_idle_until(lambda: hurry.is_set() or not self._is_busy, grace_s, code)
            if self._tasks is not None:
                self._tasks.stop()
            # Answered before the sessions are closed: what `refuse_rest` queues is still sent.
            for session in self._sessions:
                session.refuse_rest()
                session.finish(code)
            flush_s = HURRIED_FLUSH_TIMEOUT_S if hurry.is_set() else FLUSH_TIMEOUT_S
            await self._close_idle_until(lambda: not self._is_busy, flush_s, code)
        finally:
            hurried.cancel()
        if self._sessions:
            log.warning("sessions did not close in time", sessions=len(self._sessions))

    @property
    def _is_busy(self) -> bool:
        return bool(self._sessions) or (self._tasks is not None and self._tasks.are_running)

    async def _wake_drain_at(self, event: asyncio.Event) -> None:
        await event.wait()
        self.runtime.activity.set()

    async def _close_idle_until(self, done: Callable[[], bool], limit_s: float, code: int) -> None:
        """Wait until `done` for at most `limit_s`, and close sessions as they become idle."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(limit_s):
                while True:
                    for session in self._sessions:
                        if session.is_idle and not session.outbox.is_closed:
                            session.finish(code)
                    # No await between the check and `clear`, so a call that ends cannot be missed.
                    if done():
                        return
                    self.runtime.activity.clear()
                    await self.runtime.activity.wait()


class _Unrecorded:
    """A recorder that discards everything, for servers without metrics."""

    def count(self, name: str, value: float = 1, /, **labels: str) -> None:
        """Discard the value."""

    def observe(self, name: str, /, *values: float, **labels: str) -> None:
        """Discard the values."""

    def gauge(self, name: str, value: float, /, **labels: str) -> None:
        """Discard the value."""
