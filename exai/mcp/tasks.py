"""The Tasks extension: a call that takes long is answered with a handle, which any daemon can be asked about later.

Invariant: a handle is given out only once what it stands for is durable and knows its own outcome, so nothing is kept
here but the work itself; and a handle is no credential: the store is asked for this owner's task each time.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any, Literal, Protocol

import orjson
import structlog

from exai.config import ServerSettings
from exai.errors import ExaiError, ShuttingDown
from exai.mcp import eras
from exai.mcp.errors import ErrorTooLarge, ReplyTooLarge
from exai.mcp.jsonrpc import INVALID_PARAMS, Json, RpcError
from exai.mcp.protocol import Call, CallContext, Feature, Method
from exai.mcp.tools import error_result
from exai.models import Owner, Recorder
from exai.resilience import remaining_s

POLL_INTERVAL_MS = 2_000
HARD_MARGIN_S = 5.0
"""How much later than its deadline work is stopped; later than the session stops, so that its answer is the one."""

UNWIND_TIMEOUT_S = 10.0
"""How long cancelled work may take to record its outcome before that is no longer waited for."""

ENVELOPE_BYTES = 2_048
"""What an answer of `tasks/get` has around the result at most: the task's own fields and the JSON-RPC message."""

MAX_ID_CHARS = 100

Status = Literal["working", "completed", "failed", "cancelled"]

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Task:
    """One task as it is now; `result` is there when it is completed, `error` when it has failed."""

    id: str
    status: Status
    created_at: datetime
    updated_at: datetime
    message: str = ""
    result: Json | None = None
    error: RpcError | None = None


class TaskStore(Protocol):
    """Where the outcome of tasks is known, by whichever daemon they were begun."""

    async def get(self, owner: Owner, task_id: str) -> Task | None:
        """Return this owner's task, or None."""

    async def cancel(self, owner: Owner, task_id: str) -> bool:
        """Have a task end early unless it has ended; False when this owner has none of that id."""


class Tasks:
    """The tasks of one server: what of them runs in this process, and the methods for all of them.

    A call is answered with a handle once it has taken `task_after_s` and its work has said that it has `begun`; an
    owner who has `owner_max_tasks` of them here already waits for the answer instead.
    """

    def __init__(
        self, store: TaskStore, settings: ServerSettings, recorder: Recorder, when_one_ends: Callable[[], None]
    ) -> None:
        self._store, self._settings, self._recorder = store, settings, recorder
        self._when_one_ends = when_one_ends
        self._doing: set[asyncio.Task[Json]] = set()
        self._handed: dict[asyncio.Task[Json], tuple[Owner, str]] = {}

    @property
    def are_running(self) -> bool:
        """Whether work goes on here that nobody's session waits for."""
        return bool(self._handed)

    def feature(self) -> Feature:
        """Return the methods and the capability of the extension."""
        methods = {"tasks/get": self._get, "tasks/update": self._update, "tasks/cancel": self._cancel}
        return Feature(
            {"extensions": {eras.TASKS: {}}},
            [Method(name, work=work, extension=eras.TASKS) for name, work in methods.items()],
        )

    async def run(self, call: Call, context: CallContext, work: Callable[[CallContext], Awaitable[Json]]) -> Json:
        """Do the work and return its result, or for a client that knows tasks, when it takes long, its handle."""
        if not eras.declares(call.version, call.client.capabilities, eras.TASKS):
            return await work(context)
        begun: asyncio.Future[Task] = asyncio.get_running_loop().create_future()

        def note(task_id: str, since: datetime) -> None:
            if not begun.done():
                begun.set_result(Task(task_id, "working", since, since))

        doing = asyncio.create_task(_bounded(work(replace(context, begun=note))), name="mcp task")
        self._doing.add(doing)
        doing.add_done_callback(self._doing.discard)
        try:
            await asyncio.wait({doing}, timeout=self._settings.task_after_s)
            if not doing.done():
                either: set[asyncio.Future[Any]] = {doing, begun}
                await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
            if not doing.done() and self._has_room(context.owner):
                return self._hand_over(doing, begun.result(), context.owner)
            return await doing
        except asyncio.CancelledError:
            doing.cancel()
            await asyncio.wait({doing})
            raise

    def stop(self) -> None:
        """End all work that was handed over; each records why."""
        for doing in list(self._handed):
            doing.cancel(ShuttingDown.code)

    def _has_room(self, owner: Owner) -> bool:
        return sum(each == owner for each, _ in self._handed.values()) < self._settings.owner_max_tasks

    def _hand_over(self, doing: asyncio.Task[Json], task: Task, owner: Owner) -> Json:
        self._handed[doing] = (owner, task.id)
        doing.add_done_callback(self._ended)
        self._recorder.gauge("mcp_tasks", len(self._handed))
        return {"resultType": "task", **_shape(task)}

    def _ended(self, doing: asyncio.Task[Json]) -> None:
        """Nobody waits for this any more, so what became of it is at least said here."""
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
        task = await self._known(call, context)
        if task.result is not None:
            size_bytes, limit_bytes = len(orjson.dumps(task.result)), self._settings.reply_max_bytes
            if size_bytes + ENVELOPE_BYTES > limit_bytes:
                # What the call itself would have been answered with.
                too_large = ErrorTooLarge if task.result.get("isError") else ReplyTooLarge
                return _shape(replace(task, result=error_result(too_large(size_bytes, limit_bytes))))
        return _shape(task)

    async def _update(self, call: Call, context: CallContext) -> Json:
        """Acknowledge; no task of ours asks its client for anything, so no response answers anything."""
        if not isinstance(call.params.get("inputResponses"), dict):
            raise RpcError(INVALID_PARAMS, "Invalid params: inputResponses must be an object")
        await self._known(call, context)
        return {}

    async def _cancel(self, call: Call, context: CallContext) -> Json:
        task_id = _task_id(call)
        here = {doing for doing, whose in self._handed.items() if whose == (context.owner, task_id)}
        for doing in here:
            doing.cancel()
        if here:
            # What it had heard so far is recorded before the store ends whatever is left of it.
            await asyncio.wait(here, timeout=UNWIND_TIMEOUT_S)
        if not await self._store.cancel(context.owner, task_id):
            raise _unknown(task_id)
        return {}

    async def _known(self, call: Call, context: CallContext) -> Task:
        task_id = _task_id(call)
        task = await self._store.get(context.owner, task_id)
        if task is None:
            raise _unknown(task_id)
        return task


async def _bounded(work: Awaitable[Json]) -> Json:
    """Do work within its call's deadline also when the call no longer waits for it."""
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
