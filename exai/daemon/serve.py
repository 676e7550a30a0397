"""The daemon: all of `open_app`, served on one port until a signal stops it.

Invariant: the shutdown keeps this order: not ready, no new connections, calls finished or answered, sockets closed,
every outcome stored, and only then pools and servers closed.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import signal
import socket
from collections.abc import AsyncIterator, Callable, Iterator, Sequence

import structlog
from starlette.routing import Route

from exai import __version__
from exai.app import App, open_app
from exai.background import open_background, running
from exai.conversations.changes import Notice
from exai.conversations.retention import Retention
from exai.daemon.control import Parent, parent_watched
from exai.daemon.examination import examination
from exai.daemon.gathering import LIVE, METRICS
from exai.db.driver.address import parse_address
from exai.db.requests import RequestRepository
from exai.embedded.launcher import Embedded
from exai.files.moving import moving
from exai.importers.pipeline import ImportTarget
from exai.logs import log_at
from exai.mcp.auth.tokens import authenticator
from exai.mcp.server import GOING_AWAY, SERVICE_RESTART, McpServer
from exai.mcp.transport.asgi import build_asgi
from exai.mcp.transport.listener import open_server
from exai.models import Finding
from exai.monitoring.exposition import Values, add_up_values, as_json, from_json
from exai.monitoring.figures import figures
from exai.monitoring.flushing import open_history
from exai.monitoring.live import ProcessNumbers, read_numbers
from exai.monitoring.memory import watch_memory
from exai.monitoring.otel import traced
from exai.monitoring.stalls import watch_loop
from exai.monitoring.upkeep import Upkeep
from exai.program import Started
from exai.requests.queue import open_requests
from exai.settings.addresses import redact
from exai.settings.load import LogLevel, LogSettings, Settings
from exai.settings.sections import JwtSettings
from exai.tools.prompts import conversation_uri
from exai.tools.registry import INSTRUCTIONS, build_features, build_tasks, build_tools
from exai.tools.unfinished import UnfinishedOutput
from exai.web.live import PageSources, live_routes
from exai.web.monitoring import ReadMetrics, metrics_reader, monitoring_routes
from exai.web.page import AuthFacts, page_routes
from exai.web.uploading import upload_routes

log = structlog.get_logger(__name__)


async def serve(
    settings: Settings,
    announce: Callable[[Started], None] | None,
    *,
    sockets: Sequence[socket.socket] | None = None,
    parent: socket.socket | None = None,
) -> None:
    """Run the daemon until SIGTERM or SIGINT, then drain; a second signal shortens the grace period.

    `announce` is called once, when the port accepts connections. A worker receives bound `sockets` and the socket of
    its `parent` instead, which announces it, requests its replacement and whose end ends it; the parent forwards Ctrl-C
    of a terminal.
    Raises as `open_app`, and `StartupError` for the port.
    """
    with (
        _signals(is_worker=parent is not None) as (stop, hurry),
        _log_level_switched(settings.log),
        _ended_by(stop) as started,
    ):
        async with (
            parent_watched(parent, stop) as link,
            traced(settings.telemetry),
            open_app(settings) as app,
            _history(app),
            moving(app.files),
            watch_loop(app.recorder),
            watch_memory(app.recorder),
            open_background() as background,
        ):
            started()
            server = _mcp_server(app)
            examined = examination(settings, app.health, background)
            asgi = build_asgi(server, _routes(app, server, link, examined.problems))
            app.recorder.watch(asgi.report)
            async with (
                _stored_requests(app, server),
                open_server(asgi, settings.server, sockets=sockets) as listening,
            ):
                facts = _started(app, listening.port)
                if link is not None:
                    link.report(facts._asdict())
                if announce is not None:
                    announce(facts)
                await stop.wait()
                # The first step of the shutdown: health reports not ready before the port closes.
                app.health.stop_accepting()
                log.info("stopping", grace_s=settings.server.shutdown_grace_s)
                code = SERVICE_RESTART if link is not None and link.is_retired else GOING_AWAY
                await listening.serve_until(stop, hurry=hurry, code=code)
                if link is not None:
                    await link.give_last(METRICS)


def _offer(app: App, link: Parent | None) -> ReadMetrics:
    """Return how the metrics of the daemon are read; a worker offers its own and asks for those of all."""
    app.recorder.gauge("workers", 1)
    if link is None:
        return _own_metrics(app)
    link.readers[METRICS] = lambda: as_json(app.recorder.values())
    link.readers[LIVE] = lambda: app.live.numbers().as_json()

    async def live_of_all(own: ProcessNumbers) -> list[ProcessNumbers]:
        return [read_numbers(each) for each in await link.gather(LIVE)] or [own]

    async def metrics_of_all() -> Values:
        return add_up_values(from_json(each) for each in await link.gather(METRICS))

    app.live.gather_by(live_of_all)
    return metrics_of_all


def _own_metrics(app: App) -> ReadMetrics:
    async def read() -> Values:
        return app.recorder.values()

    return read


@contextlib.asynccontextmanager
async def _history(app: App) -> AsyncIterator[None]:
    """Store the events of this process, and remove expired ones and expired conversations, until the block ends."""

    def has_room() -> bool:
        in_use, _, size = app.database.usage()
        return in_use < size

    source = f"{socket.gethostname()}:{os.getpid()}"
    async with (
        open_history(app.events, app.history.store, app.recorder, source=source, has_room=has_room),
        running("metrics-upkeep", Upkeep(app.history, app.recorder).run()),
        running("retention", Retention(app.maintenance, app.recorder).run()),
    ):
        yield


@contextlib.asynccontextmanager
async def _stored_requests(app: App, server: McpServer) -> AsyncIterator[None]:
    """Answer the requests that clients store in the database, if that is configured, until the block ends."""
    settings = app.settings.requests
    if not settings.enabled:
        yield
        return
    is_own = app.embedded is not None and app.embedded.postgres_url is not None
    given = settings.listen_url.get_secret_value() if settings.listen_url else None
    listen_at = parse_address(given, "EXAI_REQUESTS__LISTEN_URL") if given else app.database.address if is_own else None
    async with open_requests(server, RequestRepository(app.database), settings, app.recorder, listen_at):
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


def _routes(app: App, server: McpServer, link: Parent | None, problems: Callable[[], Sequence[Finding]]) -> list[Route]:
    own, token = app.settings.server, app.settings.server.metrics_token
    monitoring = monitoring_routes(
        app.health,
        _offer(app, link),
        facts=lambda: figures(app.recorder, app.settings.cache.max_staleness_s),
        may_see_details=server.edge.may_see_details,
        may_read_metrics=metrics_reader(
            token.get_secret_value() if token else None,
            is_guarded=own.is_guarded,
            is_admitted=server.edge.is_admitted,
            may_see_details=server.edge.may_see_details,
        ),
    )
    page = page_routes(__version__, is_guarded=own.is_guarded, auth=_auth_of(own.jwt))
    sources = PageSources(app.health, app.live.gather, problems, app.history.read, app.history.events)
    target = ImportTarget(app.conversations, app.files, app.transfer, app.settings.limits)
    uploads = upload_routes(server, target, app.settings.files.import_max_bytes)
    return [*page, *live_routes(server, sources), *uploads, *monitoring]


def _auth_of(jwt: JwtSettings) -> AuthFacts | None:
    """Return where the page signs in, if the operator has set that."""
    if jwt.publishable_key is None or jwt.issuer is None:
        return None
    return AuthFacts(jwt.issuer.rstrip("/"), jwt.publishable_key, jwt.sign_in_with)


def _pass_on(notice: Notice, server: McpServer) -> None:
    server.notifier.add_change(notice.owner, conversation_uri(notice.continuation_id), is_listed=notice.is_listed)


def _started(app: App, port: int) -> Started:
    settings, embedded = app.settings, app.embedded
    return Started(
        host=settings.server.host,
        port=port,
        database=database_words(embedded) if embedded and embedded.postgres_url else app.database.address.shown,
        cache=cache_words(settings, embedded),
        files=app.files.blobs.chosen.shown,
        providers=tuple(each.name for each in app.providers.status() if each.configured),
        notes=app.notes,
    )


@contextlib.contextmanager
def _signals(*, is_worker: bool) -> Iterator[tuple[asyncio.Event, asyncio.Event]]:
    """Set `stop` on the first SIGTERM, SIGINT or SIGHUP, and `hurry` on the second.

    A closed terminal sends SIGHUP; if it is ignored, as under nohup, it stays ignored. A worker ignores what a terminal
    sends, because its parent handles that.
    """
    stop, hurry = asyncio.Event(), asyncio.Event()
    loop = asyncio.get_running_loop()

    def on_signal() -> None:
        (hurry if stop.is_set() else stop).set()

    if is_worker:
        for number in (signal.SIGINT, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
    hangup = (signal.SIGHUP,) if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN else ()
    numbers = (signal.SIGTERM,) if is_worker else (signal.SIGTERM, signal.SIGINT, *hangup)
    for number in numbers:
        loop.add_signal_handler(number, on_signal)
    try:
        yield stop, hurry
    finally:
        for number in numbers:
            loop.remove_signal_handler(number)


@contextlib.contextmanager
def _log_level_switched(settings: LogSettings) -> Iterator[None]:
    """Let SIGUSR1 switch the log between the level debug and the configured one."""
    loop = asyncio.get_running_loop()
    chosen: tuple[LogLevel, LogLevel] = ("debug", settings.level) if settings.level != "debug" else ("info", "debug")
    levels = itertools.cycle(chosen)
    loop.add_signal_handler(signal.SIGUSR1, lambda: log_at(settings, next(levels)))
    try:
        yield
    finally:
        loop.remove_signal_handler(signal.SIGUSR1)


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


def database_words(embedded: Embedded) -> str:
    """Return a description of the embedded Postgres and its data directory."""
    return f"embedded Postgres {embedded.postgres_version} in {embedded.data_dir}"


def cache_words(settings: Settings, embedded: Embedded | None) -> str:
    """Return a description of the cache, without its password."""
    if embedded and embedded.valkey_url:
        return f"embedded Valkey {embedded.valkey_version} in {embedded.data_dir}"
    given = settings.cache.url
    return "off" if given is None or isinstance(given, str) else redact(given.get_secret_value())
