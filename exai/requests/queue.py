"""Claim requests of the queue and run them, in every daemon that is configured to.

Invariant: a claim ends with an outcome, with the request back in the queue, or with a lease that expires; a daemon that
dies loses no request. An idle daemon sends one statement in `POLL_MOST_S`.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Final

import structlog

from exai.background import Background, open_background
from exai.db.driver.address import Address
from exai.db.listening import listen
from exai.db.requests import ClaimedRequest, RequestOutcome, RequestProgress, RequestRepository
from exai.errors import ExaiError
from exai.mcp.server import McpServer
from exai.models import Recorder
from exai.requests.running import GrowingAnswer, Postponed, run_request
from exai.settings.load import RequestSettings

LEASE_S: Final = 60.0
CHANNEL: Final = "exai_requests"
"""Notified by triggers of the table when requests are stored or cancelled."""

POLL_FIRST_S: Final = 1.0
POLL_MOST_S: Final = 15.0
POLL_GROWTH: Final = 1.5
TOUCH_S: Final = 1.0
"""Interval in which progress is stored and cancellations are noticed while requests run."""

SLOW_BYTES: Final = 32_768
"""A longer partial answer is stored less often, because every time the whole of it is written."""

MAX_ATTEMPTS: Final = 3
RETRY_S: Final = (5.0, 30.0)
"""Pauses before the second and the third attempt."""

PRUNE_S: Final = 3_600.0
READ_DAYS: Final = 1.0
END_LIMIT_S: Final = 10.0

log = structlog.get_logger(__name__)


@dataclass(slots=True, eq=False)
class _Running:
    request: ClaimedRequest
    growing: GrowingAnswer = field(default_factory=GrowingAnswer)
    task: asyncio.Task[None] | None = None
    stored_version: int = 0
    stored_progress: str | None = None
    rests: int = 0
    is_cancelled: bool = False


class RequestRunner:
    """The requests that this process runs, `max_running` at most. Created by `open_requests`."""

    def __init__(
        self, server: McpServer, repository: RequestRepository, settings: RequestSettings, recorder: Recorder
    ) -> None:
        self._server, self._repository, self._recorder = server, repository, recorder
        self._settings = settings
        self._running: dict[str, _Running] = {}
        self._woken = asyncio.Event()
        self._has_begun = asyncio.Event()

    def wake(self) -> None:
        """Look into the queue at once."""
        self._woken.set()

    async def claim(self, background: Background) -> None:
        """Claim requests until cancelled: at once after each one that ended, else in growing intervals."""
        pause_s = POLL_FIRST_S
        while True:
            self._woken.clear()
            try:
                is_busy = await self._claim_once(background)
            except ExaiError as error:
                log.warning("requests_not_claimed", reason=str(error))
                is_busy, pause_s = False, POLL_MOST_S
            pause_s = POLL_FIRST_S if is_busy else pause_s
            try:
                async with asyncio.timeout(pause_s):
                    await self._woken.wait()
                pause_s = POLL_FIRST_S
            except TimeoutError:
                pause_s = min(pause_s * POLL_GROWTH, POLL_MOST_S)

    async def _claim_once(self, background: Background) -> bool:
        """Return whether there was something to do."""
        room = self._settings.max_running - len(self._running)
        if room <= 0 or self._server.is_draining:
            return True
        queue = await self._repository.claim(room, lease_s=LEASE_S)
        self._recorder.gauge("requests_waiting", queue.waiting)
        self._recorder.gauge("requests_oldest_age_seconds", queue.oldest_s if queue.waiting else 0.0)
        for request in queue.claimed:
            running = self._running[request.id] = _Running(request)
            running.task = background.start(f"request {request.id}", self._run(running))
        if queue.claimed:
            self._has_begun.set()
        return bool(queue.claimed)

    async def _run(self, running: _Running) -> None:
        """Run one claimed request and store its end. Never raises an error of the request."""
        request, outcome = running.request, "lost"
        try:
            outcome = await self._answer(running)
        except asyncio.CancelledError:
            if not running.is_cancelled:
                # The daemon stops; another one may claim the request at once.
                await self._give_back(request)
                raise
            outcome = "cancelled"
        except ExaiError as error:
            # The lease expires, and the request is claimed again.
            log.warning("request_not_stored", request_id=request.id, reason=str(error))
        except Exception:
            # The error boundary of requests: one that meets a defect must not end the daemon.
            log.exception("internal error", request_id=request.id)
            outcome = "internal"
            await self._fail(request)
        finally:
            del self._running[request.id]
            self._recorder.count("requests_claimed_total", outcome=outcome)
            log.info("request", request_id=request.id, tool=request.tool, owner=request.owner, outcome=outcome)
            self.wake()

    async def _fail(self, request: ClaimedRequest) -> None:
        error = {"code": "internal", "message": f"internal error; the logs have it under request {request.id}"}
        try:
            await self._repository.finish(request, RequestOutcome("failed", error=error))
        except ExaiError as error_:
            log.warning("request_not_stored", request_id=request.id, reason=str(error_))

    async def _give_back(self, request: ClaimedRequest) -> None:
        try:
            async with asyncio.timeout(END_LIMIT_S):
                await self._repository.release(request, after_s=0.0, counts=False)
        except (ExaiError, TimeoutError) as error:
            log.warning("request_not_released", request_id=request.id, reason=str(error))

    async def _answer(self, running: _Running) -> str:
        request = running.request
        if request.attempt > MAX_ATTEMPTS:
            problem = f"the request was not answered in {MAX_ATTEMPTS} attempts"
            end = RequestOutcome("failed", error={"code": "attempts", "message": problem, "retryable": False})
        else:
            try:
                end = await run_request(self._server, request, running.growing)
            except Postponed as later:
                await self._repository.release(request, after_s=later.after_s, counts=later.counts)
                return "postponed"
            if end.error is not None and end.error.get("retryable") is True and request.attempt < MAX_ATTEMPTS:
                await self._repository.release(request, after_s=RETRY_S[request.attempt - 1], counts=True)
                return "retried"
        if not await self._repository.finish(request, end):
            return "lost"
        return end.state

    async def report(self) -> None:
        """Store progress, renew leases and notice cancellations until cancelled; nothing is sent while nothing runs."""
        while True:
            if not self._running:
                self._has_begun.clear()
                await self._has_begun.wait()
            await asyncio.sleep(TOUCH_S)
            if not self._running:
                continue
            try:
                await self._touch()
            except ExaiError as error:
                log.warning("requests_not_touched", reason=str(error))

    async def _touch(self) -> None:
        # A copy, because requests come and go while the statement runs.
        running = dict(self._running)
        still_running = await self._repository.touch([_change(each) for each in running.values()], lease_s=LEASE_S)
        for id_, each in running.items():
            if id_ not in still_running and self._running.get(id_) is each and each.task is not None:
                each.is_cancelled = True
                each.task.cancel()

    async def prune(self) -> None:
        """Remove requests that were read, and old ones, every hour until cancelled."""
        while True:
            try:
                removed = await self._repository.prune(read_days=READ_DAYS, keep_days=self._settings.keep_days)
                self._recorder.count("requests_removed_total", removed)
            except ExaiError as error:
                log.warning("requests_not_pruned", reason=str(error))
            await asyncio.sleep(PRUNE_S)


@asynccontextmanager
async def open_requests(
    server: McpServer,
    repository: RequestRepository,
    settings: RequestSettings,
    recorder: Recorder,
    listen_at: Address | None,
) -> AsyncIterator[None]:
    """Answer stored requests while the block runs; what is running at its end is given back to the queue."""
    runner = RequestRunner(server, repository, settings, recorder)
    async with open_background() as background:
        background.start("requests", runner.claim(background))
        background.start("request-progress", runner.report())
        background.start("request-pruning", runner.prune())
        if listen_at is not None:
            background.start("request-listener", listen(listen_at, CHANNEL, runner.wake))
        yield


def _change(running: _Running) -> RequestProgress:
    """Return what is new since the last time; a long partial answer is left out of most."""
    growing, progress, partial = running.growing, None, None
    if growing.progress != running.stored_progress:
        progress = running.stored_progress = growing.progress
    if growing.version != running.stored_version and growing.content:
        running.rests += 1
        if running.rests > len(growing.content) // SLOW_BYTES:
            partial, running.stored_version, running.rests = growing.content, growing.version, 0
    return RequestProgress(running.request, progress, partial)
