"""The daemon: all of `open_app`, served on one port until a signal stops it.

Invariant: the shutdown keeps this order: not ready, no new connections, calls finished or answered, sockets closed,
every outcome stored, and only then pools and servers closed.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
from collections.abc import AsyncIterator, Callable, Iterator, Sequence

import structlog
from starlette.routing import Route

from exai import __version__
from exai.app import BLOBS, App, open_app
from exai.background import running
from exai.conversations.changes import Notice
from exai.embedded.launcher import Embedded
from exai.files.moving import moving
from exai.mcp.auth.tokens import authenticator
from exai.mcp.server import GOING_AWAY, SERVICE_RESTART, McpServer
from exai.mcp.transport.asgi import build_asgi
from exai.mcp.transport.listener import open_server
from exai.models import Started
from exai.monitoring.figures import figures
from exai.monitoring.flushing import open_history
from exai.monitoring.memory import watch_memory
from exai.monitoring.stalls import watch_loop
from exai.monitoring.upkeep import Upkeep
from exai.settings.addresses import redact
from exai.settings.load import Settings
from exai.tools.prompts import conversation_uri
from exai.tools.registry import INSTRUCTIONS, build_features, build_tasks, build_tools
from exai.tools.unfinished import UnfinishedOutput
from exai.web.monitoring import monitoring_routes
from exai.web.page import page_routes

RETIRE = b"r"
"""The message by which a parent asks a worker to finish and exit, because another one has replaced it."""

log = structlog.get_logger(__name__)


async def serve(
    settings: Settings,
    announce: Callable[[Started], None],
    *,
    sockets: Sequence[socket.socket] | None = None,
    parent: socket.socket | None = None,
) -> None:
    """Run the daemon until SIGTERM or SIGINT, then drain; a second signal shortens the grace period.

    `announce` is called once, when the port accepts connections. A worker receives bound `sockets` and its `parent`,
    which requests its replacement and whose end ends it; the parent forwards Ctrl-C of a terminal.
    Raises as `open_app`, and `StartupError` for the port.
    """
    with _signals() as (stop, hurry), _parent_watched(parent, stop) as retired, _ended_by(stop) as started:
        async with (
            open_app(settings) as app,
            _history(app),
            moving(app.files),
            watch_loop(app.recorder),
            watch_memory(app.recorder),
        ):
            started()
            server = _mcp_server(app)
            asgi = build_asgi(server, _routes(app, server))
            async with open_server(asgi, settings.server, sockets=sockets) as listening:
                announce(_started(app, listening.port))
                await stop.wait()
                # The first step of the shutdown: health reports not ready before the port closes.
                app.health.stop_accepting()
                log.info("stopping", grace_s=settings.server.shutdown_grace_s)
                code = SERVICE_RESTART if retired.is_set() else GOING_AWAY
                await listening.serve_until(stop, hurry=hurry, code=code)


@contextlib.asynccontextmanager
async def _history(app: App) -> AsyncIterator[None]:
    """Store the events of this process, and remove expired ones, until the block ends."""

    def has_room() -> bool:
        in_use, _, size = app.database.usage()
        return in_use < size

    source = f"{socket.gethostname()}:{os.getpid()}"
    async with (
        open_history(app.events, app.history.store, app.recorder, source=source, has_room=has_room),
        running("metrics-upkeep", Upkeep(app.history, app.recorder).run()),
    ):
        yield


def _mcp_server(app: App) -> McpServer:
    tools = build_tools(app)
    server = McpServer(
        "exai",
        __version__,
        tools=tools,
        instructions=INSTRUCTIONS,
        settings=app.settings.server,
        tool_timeout_s=app.settings.tool_timeout_s,
        authenticate=authenticator(app.settings.server),
        recorder=app.recorder,
        features=build_features(app, tools),
        task_store=build_tasks(app, tools),
        unfinished=UnfinishedOutput.of,
    )
    app.notices.listen(lambda notice: _pass_on(notice, server), lambda: server.notifier.has_subscribers)
    return server


def _routes(app: App, server: McpServer) -> list[Route]:
    monitoring = monitoring_routes(
        app.health,
        app.recorder,
        facts=lambda: figures(app.recorder, app.settings.cache.max_staleness_s),
        may_see_details=server.edge.may_see_details,
    )
    return [*page_routes(__version__, is_guarded=app.settings.server.is_guarded), *monitoring]


def _pass_on(notice: Notice, server: McpServer) -> None:
    server.notifier.add_change(notice.owner, conversation_uri(notice.continuation_id), is_listed=notice.is_listed)


def _started(app: App, port: int) -> Started:
    settings, embedded = app.settings, app.embedded
    return Started(
        host=settings.server.host,
        port=port,
        database=database_words(embedded) if embedded and embedded.postgres_url else app.database.address.shown,
        cache=cache_words(settings, embedded),
        files="in the database" if settings.files.store == "postgres" else str(settings.data_dir / BLOBS),
        providers=tuple(each.name for each in app.providers.status() if each.configured),
        notes=app.notes,
    )


@contextlib.contextmanager
def _signals() -> Iterator[tuple[asyncio.Event, asyncio.Event]]:
    """Set `stop` on the first SIGTERM, SIGINT or SIGHUP, and `hurry` on the second.

    A closed terminal sends SIGHUP; if it is ignored, as under nohup, it stays ignored.
    """
    stop, hurry = asyncio.Event(), asyncio.Event()
    loop = asyncio.get_running_loop()

    def on_signal() -> None:
        (hurry if stop.is_set() else stop).set()

    hangup = (signal.SIGHUP,) if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN else ()
    numbers = (signal.SIGTERM, signal.SIGINT, *hangup)
    for number in numbers:
        loop.add_signal_handler(number, on_signal)
    try:
        yield stop, hurry
    finally:
        for number in numbers:
            loop.remove_signal_handler(number)


@contextlib.contextmanager
def _ended_by(stop: asyncio.Event) -> Iterator[Callable[[], object]]:
    """Let `stop` cancel a start that still waits for its servers, until the yielded function is called."""
    starting = asyncio.current_task()
    watch = asyncio.create_task(stop.wait(), name="stop-while-starting")
    watch.add_done_callback(lambda done: starting.cancel() if starting and not done.cancelled() else None)
    try:
        yield watch.cancel
    except asyncio.CancelledError:
        if watch.cancelled() or not watch.done():
            raise
    finally:
        watch.cancel()


@contextlib.contextmanager
def _parent_watched(parent: socket.socket | None, stop: asyncio.Event) -> Iterator[asyncio.Event]:
    """Set `stop` when the parent is gone, and also the yielded event when it wants this process replaced."""
    retired = asyncio.Event()
    if parent is None:
        yield retired
        return
    loop = asyncio.get_running_loop()

    def on_closed() -> None:
        with contextlib.suppress(BlockingIOError):
            if parent.recv(len(RETIRE)) == RETIRE:
                retired.set()
            else:
                loop.remove_reader(parent)
            stop.set()

    ignored = (signal.SIGINT, signal.SIGHUP)
    for number in ignored:
        loop.remove_signal_handler(number)
        signal.signal(number, signal.SIG_IGN)
    loop.add_reader(parent, on_closed)
    try:
        yield retired
    finally:
        loop.remove_reader(parent)


def database_words(embedded: Embedded) -> str:
    """Return a description of the embedded Postgres and its data directory."""
    return f"embedded Postgres {embedded.postgres_version} in {embedded.data_dir}"


def cache_words(settings: Settings, embedded: Embedded | None) -> str:
    """Return a description of the cache, without its password."""
    if embedded and embedded.valkey_url:
        return f"embedded Valkey {embedded.valkey_version} in {embedded.data_dir}"
    given = settings.cache.url
    return "off" if given is None or isinstance(given, str) else redact(given.get_secret_value())
