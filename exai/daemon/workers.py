"""Several processes on one port: the parent binds it, owns the embedded servers, and supervises the workers.

Invariant: the parent never serves and never stops listening. A worker that dies or is replaced takes only its own
connections with it, new ones wait in the port's queue, and when the parent ends every worker ends.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence

import structlog

from exai.backends import own_servers
from exai.background import Background, open_background
from exai.daemon.control import RETIRE, Channel, ControlMessage
from exai.daemon.gathering import Gathering
from exai.daemon.serve import cache_words, database_words, serve
from exai.embedded.launcher import Embedded
from exai.errors import ConfigError, StartupError
from exai.mcp.transport.listener import bind_sockets
from exai.program import Started
from exai.settings.load import Settings

MAX_WORKERS = 64
START_LIMIT_S = 60.0
END_MARGIN_S = 30.0
"""Time that a worker gets beyond its grace period to store outcomes and close pools, before it is killed."""

RESTART_PAUSE_S = 0.5
RESTART_PAUSE_MAX_S = 30.0
SETTLED_S = 60.0
"""Lifetime after which a worker's death is not attributed to its start, so the next pause is the shortest again."""

PROGRAM = (sys.executable, "-P", "-m", "exai", "worker")
"""-P: no module in the working directory can replace one of EXAI's."""


log = structlog.get_logger(__name__)


class Worker:
    """One process. `started` resolves to its report once it serves, or to None if it ended before."""

    def __init__(
        self,
        process: subprocess.Popen[bytes],
        control: socket.socket,
        on_message: Callable[[Worker, ControlMessage], None],
    ) -> None:
        loop = asyncio.get_running_loop()
        self.process = process
        self.started: asyncio.Future[Started | None] = loop.create_future()
        self.is_retiring = False
        self.began_at = loop.time()
        self.channel: Channel | None = None
        self._control, self._on_message = control, on_message
        self._task = asyncio.create_task(self._listen(), name=f"worker {process.pid}")

    async def _listen(self) -> None:
        """Handle the worker's messages, first its report, until its control socket and process have ended."""
        channel = self.channel = await Channel.open(self._control)
        try:
            async for message in channel.messages():
                if "port" in message and not self.started.done():
                    self.started.set_result(_report_of(message))
                else:
                    self._on_message(self, message)
        finally:
            self.channel = None
            channel.close()
        await asyncio.to_thread(self.process.wait)
        if not self.started.done():
            self.started.set_result(None)

    async def wait(self) -> None:
        """Wait until the process has ended."""
        await asyncio.shield(self._task)

    async def wait_started(self) -> Started | None:
        """Return the worker's report, or None if it ended instead. A worker that takes too long is killed."""
        try:
            async with asyncio.timeout(START_LIMIT_S):
                return await asyncio.shield(self.started)
        except TimeoutError:
            log.error("a worker did not start in time", pid=self.process.pid, limit_s=START_LIMIT_S)
            self.signal(signal.SIGKILL)
            await self.wait()
            return None

    def retire(self) -> None:
        """Ask the worker to drain and exit; its clients get the close code for a restart."""
        self.is_retiring = True
        if self.channel is not None:
            self.channel.send({RETIRE: True})

    def signal(self, number: int) -> None:
        """Send a signal; does nothing if the process has ended."""
        self.process.send_signal(number)

    async def wait_ended(self, limit_s: float) -> None:
        """Wait until the process has ended; after the limit it is killed."""
        try:
            async with asyncio.timeout(limit_s):
                await self.wait()
        except TimeoutError:
            log.error("a worker did not end in time", pid=self.process.pid, limit_s=limit_s)
            self.signal(signal.SIGKILL)
            await self.wait()


class WorkerPool:
    """The workers of one parent."""

    def __init__(
        self,
        settings: Settings,
        sockets: Sequence[socket.socket],
        environ: Mapping[str, str],
        program: Sequence[str] = PROGRAM,
        *,
        background: Background,
    ) -> None:
        self._background = background
        self._program = program
        self._sockets = sockets
        self._environ = environ
        self._limit_s = settings.server.shutdown_grace_s + END_MARGIN_S
        self._workers: set[Worker] = set()
        self._gathering = Gathering()
        self._watches: set[asyncio.Task[None]] = set()
        self._is_rolling = asyncio.Lock()
        self._is_stopping = asyncio.Event()

    async def start(self, count: int) -> tuple[Started | None, int]:
        """Start the first worker, then the others. Returns its report, or None and its exit status if it failed.

        The first worker has shown that the settings are valid, so a failure of a later one is temporary: its start is
        retried while the first serves.
        """
        first = self._spawn()
        started = await first.wait_started()
        if started is None:
            return None, max(first.process.returncode or 1, 1)
        workers = [first, *(self._spawn() for _ in range(count - 1))]
        await asyncio.gather(*(worker.wait_started() for worker in workers))
        for worker in workers:
            self._watch(worker)
        return started, 0

    async def roll(self) -> None:
        """Replace the workers one by one, each after its successor serves. Stops at a successor that does not start."""
        async with self._is_rolling:
            for old in [worker for worker in self._workers if not worker.is_retiring]:
                if self._is_stopping.is_set():
                    return
                if old not in self._workers:
                    continue  # It died and has been replaced.
                old.is_retiring = True  # From here on, its successor replaces it even if it fails.
                try:
                    new = self._spawn()
                except OSError as error:
                    log.error("no new worker can be started now, so the old ones stay", error=str(error))
                    self._keep(old)
                    return
                if await new.wait_started() is None:
                    status = new.process.returncode
                    if not self._is_stopping.is_set():
                        log.error("the new worker did not start, so the old ones stay", exit_status=status)
                    self._workers.discard(new)
                    self._keep(old)
                    return
                self._watch(new)
                old.retire()
                await old.wait_ended(self._limit_s)
            log.info("workers were replaced", workers=len(self._workers))

    async def stop(self) -> None:
        """Let all workers drain and exit; return when they have ended."""
        self._is_stopping.set()
        self.signal(signal.SIGTERM)
        await asyncio.gather(*(worker.wait_ended(self._limit_s) for worker in self._workers))
        await asyncio.gather(*self._watches)

    def signal(self, number: int) -> None:
        """Send a signal to every worker."""
        for worker in self._workers:
            worker.signal(number)

    def _spawn(self) -> Worker:
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        numbers = [each.fileno() for each in self._sockets]
        with theirs:
            process = subprocess.Popen(  # noqa: S603 - our own program
                [*self._program, "--control", str(theirs.fileno())] + [f"--socket={number}" for number in numbers],
                env={**os.environ, **self._environ},
                stdin=subprocess.DEVNULL,
                pass_fds=(*numbers, theirs.fileno()),
            )
        worker = Worker(process, ours, self._take)
        self._workers.add(worker)
        return worker

    def _take(self, worker: Worker, message: ControlMessage) -> None:
        if "gather" in message:
            self._background.start("gather", self._answer(worker, message))
        else:
            self._gathering.take(worker.process.pid, message)

    async def _answer(self, worker: Worker, message: ControlMessage) -> None:
        """Give a worker the values of all that serve."""
        serving = [(each.process.pid, each.channel) for each in self._workers if each.channel and each.started.done()]
        gathered = await self._gathering.gather(str(message["gather"]), serving)
        if worker.channel is not None:
            worker.channel.send({"number": message.get("number"), "gathered": gathered})

    def _keep(self, worker: Worker) -> None:
        """Keep a worker whose replacement failed; one that has died meanwhile is started again."""
        worker.is_retiring = False
        if worker not in self._workers:
            self._watch(worker)

    def _watch(self, worker: Worker) -> None:
        name = f"watch over worker {worker.process.pid}"
        task = self._background.start(name, self._replace_when_gone(worker))
        self._watches.add(task)
        task.add_done_callback(self._watches.discard)

    async def _replace_when_gone(self, worker: Worker) -> None:
        await worker.wait()
        self._workers.discard(worker)
        self._gathering.end(worker.process.pid)
        if worker.is_retiring:
            return
        loop = asyncio.get_running_loop()
        pause_s = RESTART_PAUSE_S
        lived_s = loop.time() - worker.began_at
        while not self._is_stopping.is_set():
            status = worker.process.returncode
            log.error("a worker died and is started again", pid=worker.process.pid, exit_status=status, lived_s=lived_s)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(RESTART_PAUSE_S if lived_s >= SETTLED_S else pause_s):
                    await self._is_stopping.wait()
                    return
            try:
                worker = self._spawn()
            except OSError as error:
                # The system lacks processes, memory or files; the other workers keep serving.
                log.error("a worker cannot be started now", error=str(error))
            else:
                if await worker.wait_started() is not None:
                    self._watch(worker)
                    return
                self._workers.discard(worker)
            pause_s, lived_s = min(2 * pause_s, RESTART_PAUSE_MAX_S), 0.0


async def serve_with_workers(
    settings: Settings, count: int, given: Mapping[str, str], announce: Callable[[Started], None]
) -> int:
    """Run `count` workers until SIGTERM or SIGINT; SIGHUP replaces them one by one. Returns the exit status.

    `given` are the variables from the command line, which are passed to the workers. Raises `ConfigError` for `count`,
    `StartupError`, or the errors of starting and migrating the embedded servers; a worker that cannot start has printed
    the reason itself.
    """
    if not 1 <= count <= MAX_WORKERS:
        raise ConfigError("--workers", f"{count} is not a number of workers", f"Give 1 to {MAX_WORKERS}")
    if sys.platform == "win32":
        raise StartupError(
            "--workers", "sockets cannot be handed down on Windows", "Use one worker, or run EXAI in WSL"
        )
    sockets = bind_sockets(settings.server)
    with contextlib.ExitStack() as stack:
        for each in sockets:
            stack.enter_context(each)
        async with own_servers(settings) as embedded, open_background() as background:
            pool = WorkerPool(settings, sockets, {**given, **_addresses(settings, embedded)}, background=background)
            with _signals(pool, background) as stop:
                try:
                    started, status = await pool.start(count)
                    if started is not None:
                        announce(_described(started, settings, embedded, count))
                        await stop.wait()
                finally:
                    await pool.stop()
    return status


async def work(settings: Settings, sockets: Sequence[int], control: int) -> None:
    """Run as a worker: serve on inherited sockets and report the start; end on request, or when the parent ends."""
    with socket.socket(fileno=control) as channel:
        channel.setblocking(False)
        await serve(settings, None, sockets=[socket.socket(fileno=number) for number in sockets], parent=channel)


@contextlib.contextmanager
def _signals(pool: WorkerPool, background: Background) -> Iterator[asyncio.Event]:
    """Set the event on SIGTERM or SIGINT, and pass a second one on to the workers; on SIGHUP replace the workers."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    rolls: set[asyncio.Task[None]] = set()

    def on_stop() -> None:
        if stop.is_set():
            pool.signal(signal.SIGTERM)
        stop.set()

    def on_hangup() -> None:
        # One waiting replacement is enough: it starts workers with the settings at that time.
        if len(rolls) < 2 and not stop.is_set():
            roll = background.start("replace workers", pool.roll())
            rolls.add(roll)
            roll.add_done_callback(rolls.discard)

    actions = {
        signal.SIGTERM: on_stop,
        signal.SIGINT: on_stop,
        signal.SIGHUP: on_hangup,
        signal.SIGUSR1: lambda: pool.signal(signal.SIGUSR1),
    }
    for number, action in actions.items():
        loop.add_signal_handler(number, action)
    try:
        yield stop
    finally:
        for number in actions:
            loop.remove_signal_handler(number)


def _addresses(settings: Settings, embedded: Embedded | None) -> dict[str, str]:
    """Return the variables that give workers the addresses of the parent's servers."""
    if embedded is None:
        return {}
    postgres, valkey = settings.embedded_servers
    found = {"EXAI_DATABASE__URL": embedded.postgres_url or ""} if postgres else {}
    if valkey:
        found["EXAI_CACHE__URL"] = embedded.valkey_url or "off"
    return found


def _described(started: Started, settings: Settings, embedded: Embedded | None, count: int) -> Started:
    notes = (f"{count} workers", *(embedded.notes if embedded else started.notes))
    if embedded is None:
        return started._replace(notes=notes)
    database = database_words(embedded) if embedded.postgres_url else started.database
    return started._replace(database=database, cache=cache_words(settings, embedded), notes=notes)


def _report_of(facts: ControlMessage) -> Started:
    return Started(**{**facts, "providers": tuple(facts["providers"]), "notes": tuple(facts["notes"])})
