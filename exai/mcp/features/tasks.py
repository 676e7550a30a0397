"""Calls that are answered before their work has ended: any daemon can return the outcome later.

A client of the Tasks extension receives a handle after some seconds. Any other client receives an unfinished answer
before its own limit, and asks for the stored outcome. Invariant: either is given only once the work is durable and its
outcome will be stored, so this process holds nothing but the running work. A handle is no credential: every request for
it looks up the task of the requesting owner.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any, Literal, Protocol

import orjson
import structlog

from exai.errors import DeadlineExceeded, ExaiError, Overloaded, ShuttingDown
from exai.mcp.core import versions
from exai.mcp.core.errors import ErrorTooLarge, ReplyTooLarge
from exai.mcp.core.jsonrpc import INVALID_PARAMS, Json, RpcError
from exai.mcp.core.protocol import BegunWork, Call, CallContext, ClientInfo, Feature, Method
from exai.mcp.features.results import ToolOutput, call_result, error_result
from exai.models import Owner, Recorder
from exai.resilience import remaining_s
from exai.settings.load import ServerSettings

POLL_INTERVAL_MS = 2_000
HARD_MARGIN_S = 5.0
"""Delay between the work's deadline and its cancellation; longer than the session's, so that its answer is sent."""

RESERVE_S = 4.0
"""Time after a client's deadline in which work that has not begun is made durable."""

UNWIND_TIMEOUT_S = 10.0
"""Time for cancelled work to store its outcome before it is no longer awaited."""

ENVELOPE_BYTES = 2_048
"""Maximum size of an answer of `tasks/get` without its result: the task's fields and the JSON-RPC message."""

MAX_ID_CHARS = 100

Unfinished = Callable[[BegunWork], ToolOutput]
"""Makes the answer of a call whose work goes on; it states how to get the outcome."""

Status = Literal["working", "completed", "failed", "cancelled"]

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Task:
    """The current state of a task; `result` is set if it is completed, `error` if it has failed."""

    id: str
    status: Status
    created_at: datetime
    updated_at: datetime
    message: str = ""
    result: Json | None = None
    error: RpcError | None = None


class TaskStore(Protocol):
    """The durable store of tasks and their outcomes, shared by all daemons."""

    async def get(self, owner: Owner, task_id: str, client: ClientInfo) -> Task | None:
        """Return this owner's task with its result for `client`, or None."""

    async def cancel(self, owner: Owner, task_id: str) -> bool:
        """End a task early unless it has ended. Returns False if this owner has no task of that id."""


class _Early:
    """What a client that can wait no longer receives of a call's work: `begun` is set once the work is durable."""

    def __init__(self, begun: asyncio.Future[BegunWork]) -> None:
        self.begun = begun
        self._reserve: Callable[[], Awaitable[None]] | None = None

    def note(self, durable: BegunWork) -> None:
        """Note that the work is durable."""
        if not self.begun.done():
            self.begun.set_result(durable)

    def preparing(self, reserve: Callable[[], Awaitable[None]]) -> None:
        """Note how the work becomes durable, or ends soon, before it is by itself."""
        self._reserve = reserve

    async def make_durable(self, doing: asyncio.Task[Json]) -> None:
        """Wait until the work is durable or has ended, at most `RESERVE_S`. Raises if it can never be durable."""
        if self.begun.done() or self._reserve is None:
            return
        until = asyncio.get_running_loop().time() + RESERVE_S
        reserving = asyncio.ensure_future(self._reserve())
        reserving.add_done_callback(_retrieve)
        await asyncio.wait({reserving}, timeout=RESERVE_S)
        if reserving.done():
            reserving.result()
        left_s = until - asyncio.get_running_loop().time()
        either: set[asyncio.Future[Any]] = {doing, self.begun}
        await asyncio.wait(either, timeout=max(left_s, 0), return_when=asyncio.FIRST_COMPLETED)


class Tasks:
    """The tasks of one server: the work that runs in this process, and the methods for all tasks.

    A call is answered with a handle once it has run for `task_after_s` and its work has reported that it has `begun`.
    For an owner with `owner_max_tasks` running tasks in this process, the call waits for its answer instead. A call of
    a client without the extension is answered with `unfinished` at the client's deadline, or ends with an error if
    nothing can be made durable or the owner has no room.
    """

    def __init__(
        self,
        store: TaskStore,
        settings: ServerSettings,
        recorder: Recorder,
        when_one_ends: Callable[[], None],
        unfinished: Unfinished | None = None,
    ) -> None:
        self._store, self._settings, self._recorder = store, settings, recorder
        self._when_one_ends, self._unfinished = when_one_ends, unfinished
        self._doing: set[asyncio.Task[Json]] = set()
        self._handed: dict[asyncio.Task[Json], tuple[Owner, str]] = {}

    @property
    def are_running(self) -> bool:
        """Return whether work is running for which no session waits."""
        return bool(self._handed)

    def feature(self) -> Feature:
        """Return the methods and the capability of the extension."""
        methods = {"tasks/get": self._get, "tasks/update": self._update, "tasks/cancel": self._cancel}
        return Feature(
            {"extensions": {versions.TASKS: {}}},
            [Method(name, work=work, extension=versions.TASKS) for name, work in methods.items()],
        )

    async def run(self, call: Call, context: CallContext, work: Callable[[CallContext], Awaitable[Json]]) -> Json:
        """Run the work and return its result, or an earlier answer in the form that the client understands."""
        knows_tasks = versions.declares(call.version, call.client.capabilities, versions.TASKS)
        deadline_s, left_s = self._settings.call_deadline_s(call.client.name), remaining_s()
        if not knows_tasks and (self._unfinished is None or (left_s is not None and left_s <= deadline_s)):
            return await work(context)
        begun: asyncio.Future[BegunWork] = asyncio.get_running_loop().create_future()

        early = _Early(begun)
        watched = replace(context, begun=early.note, preparing=early.preparing)
        doing = asyncio.create_task(_run_bounded(work(watched)), name="mcp task")
        self._doing.add(doing)
        doing.add_done_callback(self._doing.discard)
        try:
            if knows_tasks:
                return await self._result_or_handle(doing, early, context.owner)
            return await self._result_by(deadline_s, doing, early, call, context.owner)
        except BaseException:
            if not doing.done():
                doing.cancel()
                await asyncio.wait({doing})
            raise

    async def _result_or_handle(self, doing: asyncio.Task[Json], early: _Early, owner: Owner) -> Json:
        await asyncio.wait({doing}, timeout=self._settings.task_after_s)
        if not doing.done():
            if self._has_room(owner):
                await early.make_durable(doing)
            either: set[asyncio.Future[Any]] = {doing, early.begun}
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        if doing.done() or not self._has_room(owner):
            return await doing
        durable = early.begun.result()
        self._hand_over(doing, durable, owner)
        return {"resultType": "task", **_shape(Task(durable.id, "working", durable.since, durable.since))}

    async def _result_by(
        self,
        deadline_s: float,
        doing: asyncio.Task[Json],
        early: _Early,
        call: Call,
        owner: Owner,
    ) -> Json:
        """Return the result, or at the client's deadline an unfinished answer while the work goes on."""
        await asyncio.wait({doing}, timeout=deadline_s)
        if not doing.done() and self._has_room(owner):
            await early.make_durable(doing)
        if doing.done():
            return await doing
        if not self._has_room(owner):
            raise Overloaded("calls that go on after their answer", self._settings.owner_max_tasks)
        if not early.begun.done() or self._unfinished is None:
            raise DeadlineExceeded(str(call.params.get("name", call.method.name)), deadline_s)
        self._hand_over(doing, early.begun.result(), owner)
        return call_result(self._unfinished(early.begun.result()))

    def stop(self) -> None:
        """Cancel all work that has a handle; each task stores the reason."""
        for doing in list(self._handed):
            doing.cancel(ShuttingDown.code)

    def _has_room(self, owner: Owner) -> bool:
        if sum(each == owner for each, _ in self._handed.values()) < self._settings.owner_max_tasks:
            return True
        self._recorder.count("owner_limited_total", limit="tasks")
        return False

    def _hand_over(self, doing: asyncio.Task[Json], durable: BegunWork, owner: Owner) -> None:
        """Let the work go on without its call."""
        self._handed[doing] = (owner, durable.id)
        doing.add_done_callback(self._log_end)
        self._recorder.gauge("mcp_tasks", len(self._handed))

    def _log_end(self, doing: asyncio.Task[Json]) -> None:
        """Log the outcome of detached work, since no call reports it."""
        _, task_id = self._handed.pop(doing)
        error = asyncio.CancelledError() if doing.cancelled() else doing.exception()
        outcome = "ok"
        if isinstance(error, ExaiError):
            outcome = error.code
        elif isinstance(error, RpcError):
            outcome = "refused"
        elif isinstance(error, asyncio.CancelledError):
            outcome = "cancelled"
        elif error is not None:
            outcome = "internal"
            log.error("internal error", exc_info=error)
        log.info("task", task=task_id, outcome=outcome)
        self._recorder.count("mcp_tasks_total", outcome=outcome)
        self._recorder.gauge("mcp_tasks", len(self._handed))
        self._when_one_ends()

    async def _get(self, call: Call, context: CallContext) -> Json:
        task = await self._read_task(call, context)
        if task.result is not None:
            size_bytes, limit_bytes = len(orjson.dumps(task.result)), self._settings.reply_max_bytes
            if size_bytes + ENVELOPE_BYTES > limit_bytes:
                # The same error as the call's own answer would have.
                too_large = ErrorTooLarge if task.result.get("isError") else ReplyTooLarge
                return _shape(replace(task, result=error_result(too_large(size_bytes, limit_bytes))))
        return _shape(task)

    async def _update(self, call: Call, context: CallContext) -> Json:
        """Acknowledge the request. EXAI's tasks never ask their client for input, so there is nothing to process."""
        if not isinstance(call.params.get("inputResponses"), dict):
            raise RpcError(INVALID_PARAMS, "Invalid params: inputResponses must be an object")
        await self._read_task(call, context)
        return {}

    async def _cancel(self, call: Call, context: CallContext) -> Json:
        task_id = _task_id(call)
        here = {doing for doing, whose in self._handed.items() if whose == (context.owner, task_id)}
        for doing in here:
            doing.cancel()
        if here:
            # The local work stores its partial answer before the store ends the task.
            await asyncio.wait(here, timeout=UNWIND_TIMEOUT_S)
        if not await self._store.cancel(context.owner, task_id):
            raise _unknown(task_id)
        return {}

    async def _read_task(self, call: Call, context: CallContext) -> Task:
        task_id = _task_id(call)
        task = await self._store.get(context.owner, task_id, call.client)
        if task is None:
            raise _unknown(task_id)
        return task


def _retrieve(ended: asyncio.Future[None]) -> None:
    """Keep asyncio from logging an exception that no caller waits for any longer."""
    if not ended.cancelled():
        ended.exception()


async def _run_bounded(work: Awaitable[Json]) -> Json:
    """Run work within its call's deadline, even after the call no longer waits for it."""
    left_s = remaining_s()
    async with asyncio.timeout(None if left_s is None else left_s + HARD_MARGIN_S):
        return await work


def _task_id(call: Call) -> str:
    task_id = call.params.get("taskId")
    if not isinstance(task_id, str):
        raise RpcError(INVALID_PARAMS, "Invalid params: taskId must be the id of a task")
    return task_id


def _unknown(task_id: str) -> RpcError:
    return RpcError(INVALID_PARAMS, f"Task not found: {task_id[:MAX_ID_CHARS]}")


def _shape(task: Task) -> dict[str, Any]:
    shape: dict[str, Any] = {
        "taskId": task.id,
        "status": task.status,
        "createdAt": _iso(task.created_at),
        "lastUpdatedAt": _iso(task.updated_at),
        "ttlMs": None,
    }
    if task.status == "working":
        shape["pollIntervalMs"] = POLL_INTERVAL_MS
    if task.message:
        shape["statusMessage"] = task.message
    if task.result is not None:
        shape["result"] = task.result
    if task.error is not None:
        shape["error"] = {"code": task.error.code, "message": task.error.message}
        if task.error.data is not None:
            shape["error"]["data"] = task.error.data
    return shape


def _iso(at: datetime) -> str:
    return at.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
