"""State shared by all transports of one server: its surface, its sessions, and its shutdown.

Invariant: once draining has begun no new call is started, every running call gets an answer, and `drain`
returns within its limits whatever the peers do.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterable

import structlog

from exai.mcp.admission import Edge
from exai.mcp.core.protocol import Call, Connection, Feature, ListKind, Surface
from exai.mcp.features.tasks import Tasks, TaskStore
from exai.mcp.features.tools import Terms, ToolRegistry
from exai.mcp.identity import Admitted, Authenticator, everybody_is_local
from exai.mcp.session.accounting import Tally
from exai.mcp.session.notifier import Notifier
from exai.mcp.session.outbox import Outbox
from exai.mcp.session.quota import Quotas
from exai.mcp.session.session import Session
from exai.mcp.session.timeouts import Timeouts
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
        authenticate: Authenticator = everybody_is_local,
        recorder: Recorder | None = None,
        features: Iterable[Feature] = (),
        task_store: TaskStore | None = None,
    ) -> None:
        self.settings = settings
        self.tools = tools
        self._tool_timeout_s = tool_timeout_s
        self.edge = Edge(settings, authenticate)
        self.quotas = Quotas(settings)
        self.recorder = recorder or _Unrecorded()
        self._tasks = None if task_store is None else Tasks(task_store, settings, self.recorder, self.quieter)
        offered = (
            (tools.feature(), *features)
            if self._tasks is None
            else (tools.feature(self._tasks.run), *features, self._tasks.feature())
        )
        self.surface = Surface(name, version, offered, instructions=instructions)
        self.is_draining = False
        self.watch = Timeouts()
        self.tally = Tally(lambda: self.recorder)
        self._sessions: set[Session] = set()
        self._is_count_due = False
        self.news = Notifier(lambda: self._sessions)
        self._quiet = asyncio.Event()

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
        return Session(self, connection, admitted, peer=peer, outbox=outbox)

    def enlist(self, session: Session) -> None:
        """Count a session that starts, or that takes another request."""
        self._sessions.add(session)
        self._count()

    def forget(self, session: Session) -> None:
        """Stop counting a session that has ended, or that waits for another request."""
        self._sessions.discard(session)
        self._count()
        self.quieter()

    def _count(self) -> None:
        """Schedule the update of the session gauge for the end of this iteration, in which many may start and end."""
        if not self._is_count_due:
            self._is_count_due = True
            asyncio.get_running_loop().call_soon(self._tell_count)

    def _tell_count(self) -> None:
        self._is_count_due = False
        self.recorder.gauge("mcp_sessions", len(self._sessions))

    def quieter(self) -> None:
        """Wake up `drain` to check again: a call or a session has ended."""
        self._quiet.set()

    def terms(self, call: Call) -> Terms:
        """Return the terms of the called tool, or of another method; the label of the latter is empty."""
        return self.tools.terms(call) if call.method.name == "tools/call" else Terms("", call.method.timeout_s)

    def timeout_s(self, terms: Terms) -> float:
        """Return the timeout of such a call: the server's limit, or a shorter one of its tool or method."""
        own = terms.timeout_s
        return self._tool_timeout_s if own is None or own > self._tool_timeout_s else own

    def changed(self, change: ListKind) -> None:
        """Notify every subscribed peer that a list changed."""
        for session in self._sessions:
            session.tell(session.connection.changed(change))

    def updated(self, uri: str) -> None:
        """Notify every subscribed peer that a resource changed."""
        for session in self._sessions:
            session.tell(session.connection.updated(uri))

    async def drain(self, grace_s: float, code: int, hurry: asyncio.Event | None = None) -> None:
        """Let running calls finish for `grace_s` (or until `hurry`), fail the rest, and close every session."""
        self.is_draining = True
        self.news.stop()
        hurry = hurry or asyncio.Event()
        hurried = asyncio.create_task(self._look_again_when(hurry), name="mcp drain hurry")
        try:
            await self._closing_idle(lambda: hurry.is_set() or not self._is_busy, grace_s, code)
            if self._tasks is not None:
                self._tasks.stop()
            # Answered before the sessions are closed: what `refuse_rest` queues is still sent.
            for session in self._sessions:
                session.refuse_rest()
                session.finish(code)
            flush_s = HURRIED_FLUSH_TIMEOUT_S if hurry.is_set() else FLUSH_TIMEOUT_S
            await self._closing_idle(lambda: not self._is_busy, flush_s, code)
        finally:
            hurried.cancel()
        if self._sessions:
            log.warning("sessions did not close in time", sessions=len(self._sessions))

    @property
    def _is_busy(self) -> bool:
        return bool(self._sessions) or (self._tasks is not None and self._tasks.are_running)

    async def _look_again_when(self, event: asyncio.Event) -> None:
        await event.wait()
        self._quiet.set()

    async def _closing_idle(self, done: Callable[[], bool], limit_s: float, code: int) -> None:
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
                    self._quiet.clear()
                    await self._quiet.wait()


class _Unrecorded:
    """A recorder that discards everything, for servers without metrics."""

    def count(self, name: str, value: float = 1, /, **labels: str) -> None:
        """Discard the value."""

    def observe(self, name: str, /, *values: float, **labels: str) -> None:
        """Discard the values."""

    def gauge(self, name: str, value: float, /, **labels: str) -> None:
        """Discard the value."""
