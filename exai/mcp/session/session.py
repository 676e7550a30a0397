"""One peer's session: runs the calls that its protocol connection admits, and queues the answers.

Invariant: every task of a session is in its tracked set and is awaited when the session ends. Processing a message
never waits for a call, only for room in the outbox; within `send_timeout_s` the transport makes room or closes it.
"""

from __future__ import annotations

import asyncio
import itertools
import secrets
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping
from contextvars import Context, ContextVar, copy_context
from functools import cache

import structlog
from structlog.contextvars import STRUCTLOG_KEY_PREFIX

from exai import tracing
from exai.account import request_account
from exai.errors import DeadlineExceeded, ExaiError, Overloaded, ShuttingDown
from exai.fairness import RequestWork, request_owner, request_work
from exai.mcp.core import versions
from exai.mcp.core.connection import Connection
from exai.mcp.core.errors import rpc_error
from exai.mcp.core.jsonrpc import INTERNAL_ERROR, Json, JsonRpcMessage, Request, RequestId, RpcError
from exai.mcp.core.protocol import Action, Call, CallContext, Cancel, Send, Start, Terms, refusal
from exai.mcp.identity import Admitted
from exai.mcp.session.deduplication import SharedWork
from exai.mcp.session.outbox import Outbox
from exai.mcp.session.progress import ProgressReporter, ignore_progress, takes_parts
from exai.mcp.session.runtime import Runtime
from exai.mcp.session.timeouts import RunningCall
from exai.models import Owner
from exai.resilience import end_by
from exai.tracing import TRACE_PARENT, trace_parent

DEADLINE_MARGIN_S = 2.0
"""Delay between a call's deadline and the cancellation of its task, so that a typed error from within comes first."""

UNWIND_TIMEOUT_S = 10.0
"""Time for cancelled calls to store their outcome before the session ends without them."""

EXPIRED = 4401
"""Close code after the expiry of the token: 401 in the range for applications."""

EXPIRY_LOOK_S = 3_600.0
"""Interval of checks for a distant expiry, since clocks are adjusted and timers stop while the machine sleeps."""

_REQUEST: ContextVar[str] = ContextVar(f"{STRUCTLOG_KEY_PREFIX}request")
_OWNER: ContextVar[Owner] = ContextVar(f"{STRUCTLOG_KEY_PREFIX}owner")
"""The owner on the log lines of a call; setting it takes a third of the time of `bind_contextvars`."""

_numbers = itertools.count(1)

log = structlog.get_logger(__name__)


class Session:
    """The session of one WebSocket, or of one HTTP request."""

    def __init__(
        self,
        runtime: Runtime,
        connection: Connection,
        identity: Admitted,
        *,
        peer: str,
        on_end: Callable[[Session], None],
        outbox: Outbox | None = None,
    ) -> None:
        self.runtime = runtime
        self.connection = connection
        self.owner = identity.owner
        self.quota = runtime.quotas.of(identity.owner)
        self.peer = peer
        self.outbox = Outbox(account=self.quota.account) if outbox is None else outbox
        self.close_code = 1000
        self._loop = asyncio.get_running_loop()
        self._running: dict[RequestId, RunningCall] = {}
        # Cancelled calls, whose ids may be in use again already.
        self._unwinding: set[asyncio.Task[None]] = set()
        self._shared_work = SharedWork()
        self._on_end = on_end
        self._expires_at = identity.expires_at
        self._is_expired = False
        # Called once no call runs or unwinds.
        self.when_quiet: Callable[[], None] | None = None
        self._expiry: asyncio.TimerHandle | None = None
        self._context: Context | None = None
        self._watch_expiry()

    def _common_context(self) -> Context:
        """Return the context that all calls start with."""
        # A new task copies some context in any case. Copying one that names the owner already saves setting three
        # variables for every call. It is made for the first call, since many sessions never make one.
        context = self._context = copy_context()
        context.run(self._identify)
        return context

    def _identify(self) -> None:
        _OWNER.set(self.owner)
        request_owner.set(self.owner)
        request_account.set(self.quota.account)

    @property
    def is_idle(self) -> bool:
        """Return whether no call is running; subscriptions do not count."""
        return not self._running

    async def receive(self, message: JsonRpcMessage, size_bytes: int = 0) -> tuple[Action, bool]:
        """Process one message like `process`, as soon as there is room for its answer."""
        if not self.outbox.has_room:
            await self.outbox.wait_for_room()
        return self.process(message, size_bytes)

    def process(self, message: JsonRpcMessage, size_bytes: int) -> tuple[Action, bool]:
        """Process one message of this size and carry out the resulting action; the outbox must have room.

        Returns the action, and whether the message was within its owner's rate.
        """
        is_within_rate = True
        try:
            if isinstance(message, Request):
                self.quota.take(size_bytes)
            else:
                # Carried out even over the rate, because a cancellation frees resources.
                is_within_rate = self.quota.spend(size_bytes)
            action = self.connection.accept(message)
        except Overloaded as error:
            is_within_rate = False
            action = refusal(message.id if isinstance(message, Request) else None, rpc_error(error))
        except Exception:  # The error boundary for methods that are answered synchronously.
            request_id = _next_request_id()
            log.exception("internal error", request=request_id)
            key = message.id if isinstance(message, Request) else None
            action = refusal(key, _internal(request_id))
        self._carry_out(action, size_bytes)
        return action, is_within_rate

    def _carry_out(self, action: Action, size_bytes: int) -> None:
        if isinstance(action, Start):
            self._start(action.call, size_bytes)
        elif isinstance(action, Send):
            if action.error is not None:
                self.runtime.recorder.count("mcp_messages_refused_total", code=str(action.error.code))
            self.outbox.push(action)
        elif isinstance(action, Cancel):
            self._stop(action.id)

    def notify(self, messages: Iterable[bytes]) -> None:
        """Send notifications, which wait for no room: they are small, and are collected before they come here."""
        for data in messages:
            self.outbox.force(Send(data))

    def refuse_rest(self) -> None:
        """Cancel the running calls and answer them with "shutting down"."""
        for call in list(self.connection.in_flight.values()):
            # Answered first: the cancelled call then finds no request to answer.
            self._force(self.connection.fail(call, ShuttingDown()))
            self._stop(call.id)

    def finish(self, code: int) -> None:
        """End the subscriptions; the transport then sends the queued messages and closes with `code`."""
        self.notify(self.connection.end_listening())
        self.close_code = code
        self.outbox.close()

    async def end(self) -> None:
        """Stop all work of a disconnected peer. Returns when the calls have unwound."""
        if self._expiry is not None:
            self._expiry.cancel()
        self.when_quiet = None
        self.outbox.close(discard=True)
        self.outbox.send_now = None  # Breaks the reference cycle of connection and session.
        self.connection.end()
        # After `connection.end`, so that the cancelled calls produce no answers.
        for key in list(self._running):
            self._stop(key)
        if self._unwinding:
            _, late = await asyncio.wait(self._unwinding, timeout=UNWIND_TIMEOUT_S)
            if late:
                log.error("calls did not stop when cancelled", calls=len(late), peer=self.peer)
        self._on_end(self)

    def _start(self, call: Call, size_bytes: int) -> None:
        if self.runtime.is_draining:
            self._refuse(call, ShuttingDown())
            return
        if self._is_expired:
            problem = "the token of this connection has expired; connect again with a new one"
            self._refuse(call, RpcError(versions.TOKEN_EXPIRED, problem))
            return
        try:
            self.quota.begin(size_bytes)
        except Overloaded as error:
            self._refuse(call, rpc_error(error))
            return
        context = self._context or self._common_context()
        # Created before its task, because the task refers to it.
        running = self._running[call.id] = RunningCall(call, size_bytes)
        running.task = self._loop.create_task(
            self._run(running), name=f"mcp {call.method.name}", context=context.copy()
        )

    def _refuse(self, call: Call, error: RpcError | ExaiError) -> None:
        if (answer := self.connection.fail(call, error)) is not None:
            self.outbox.push(answer)

    def _stop(self, key: RequestId) -> None:
        """Cancel a call. Its id can be used again at once, while the cancelled work unwinds."""
        running = self._running.pop(key, None)
        if running is None or running.task is None:
            return
        running.task.cancel()
        if running.has_begun:
            self._unwinding.add(running.task)
        else:
            # A task that is cancelled before its first step never runs `_run`, so nothing else releases the call.
            self._forget(running)

    def _forget(self, running: RunningCall) -> None:
        """Release a call that has ended, or that was cancelled before its first step."""
        self.quota.end(running.size_bytes)
        # After a cancellation a new call may have taken the id, which then stays in use.
        if self._running.get(running.call.id) is running:
            del self._running[running.call.id]
        elif running.task is not None:
            self._unwinding.discard(running.task)
        if self._is_expired and self.is_idle:
            self.finish(EXPIRED)
        if self.when_quiet is not None and not self._running and not self._unwinding:
            self.when_quiet()
        self.runtime.activity.set()

    def _watch_expiry(self) -> None:
        """Refuse new calls once the token has expired, let running ones answer, and then close."""
        if self._expires_at is None:
            return
        left_s = self._expires_at - time.time()
        if left_s > 0:
            self._expiry = self._loop.call_later(min(left_s, EXPIRY_LOOK_S), self._watch_expiry)
            return
        self._is_expired = True
        log.info("token expired", peer=self.peer, owner=self.owner, running=len(self._running))
        if self.is_idle:
            self.finish(EXPIRED)

    async def _run(self, running: RunningCall) -> None:
        """Run the call, answer it, and report its outcome. This is the one error boundary of calls."""
        running.has_begun = True
        call = running.call
        request_id = _next_request_id()
        method = call.method
        terms = method.terms if method.terms_of is None else method.terms_of(call)
        _REQUEST.set(request_id)
        work = RequestWork()
        request_work.set(work)
        if tracing.is_on():
            trace_parent.set(_trace_of(call, self.connection.trace_parent))
        started_s = time.perf_counter()
        outcome = "cancelled"
        reporter = None if call.progress_token is None else self._progress_reporter(call)
        context = CallContext(self.owner, request_id, ignore_progress, call.client, directory=self.connection.directory)
        if reporter is not None:
            context.progress, context.doing = reporter.report, reporter.note
            context.offer_part = reporter.offer_part if takes_parts(call) else None
        try:
            outcome = await self._answer(running, context, terms)
        except asyncio.CancelledError:
            # If the handler raised this by itself, the call was not cancelled and still needs an answer. It is forced,
            # since a task that is being cancelled must not wait for room.
            self._force(self.connection.fail(call, _internal(request_id)))
            raise
        except Exception:
            log.exception("internal error")
            outcome = "internal"
            self._force(self.connection.fail(call, _internal(request_id)))
        finally:
            if reporter is not None:
                reporter.stop()
            took_s = time.perf_counter() - started_s
            kind = (self.owner, method.name, terms.label, outcome)
            self.runtime.accounting.add(kind, request_id, took_s, work.statements, self._loop)
            self._forget(running)

    def _progress_reporter(self, call: Call) -> ProgressReporter:
        return ProgressReporter(call, self.connection, self.outbox, self.runtime.settings.progress_interval_s)

    async def _answer(self, running: RunningCall, context: CallContext, terms: Terms) -> str:
        """Run the call and queue its result or error; return the outcome for the metrics."""
        call = running.call
        try:
            result = await self._result(running, context, terms)
            answer = self.connection.complete(call, result)
            outcome = "error" if result.get("isError") else "ok"
        except ExaiError as error:
            log.info("refused", code=error.code, reason=str(error))
            answer, outcome = self.connection.fail(call, error), error.code
        except RpcError as error:
            answer, outcome = self.connection.fail(call, error), "refused"
        if answer is not None and not self.outbox.put_now(answer):
            await self.outbox.put(answer)
        return outcome

    async def _result(self, running: RunningCall, context: CallContext, terms: Terms) -> Json:
        """Do the work of a call within its timeout. Raises `DeadlineExceeded` if the timeout ended it."""
        call, timeouts = running.call, self.runtime.timeouts
        work = call.method.work
        assert work is not None  # noqa: S101 - methods without work are answered by the protocol
        key = None if terms.join_key is None else terms.join_key(call)
        limit_s = self.runtime.timeout_s(terms, call.client)
        end_s = self._loop.time() + limit_s
        end_by(end_s)
        timeouts.begin(running, end_s + DEADLINE_MARGIN_S, self._loop)
        try:
            return await (work(call, context) if key is None else self._join(key, call, context, terms))
        except asyncio.CancelledError as error:
            if running.is_stopped_by_timeout_only:
                raise DeadlineExceeded(terms.label or call.method.name, limit_s) from error
            raise
        finally:
            timeouts.end(running)
            # Even if the work suppressed its cancellation: later timeouts in this task would misread the count.
            if running.is_late:
                running.undo_stop()

    def _join(self, key: bytes, call: Call, context: CallContext, terms: Terms) -> Awaitable[Json]:
        """Join the identical call that is running, or start the work that later ones join."""
        if self._shared_work.is_running(key):
            self.runtime.recorder.count("mcp_calls_deduplicated_total", tool=terms.label)
        return self._shared_work.run(key, call, context)

    def _force(self, answer: Send | None) -> None:
        if answer is not None:
            self.outbox.force(answer)


def _next_request_id() -> str:
    """Return a request id unique across processes: a random process prefix and a counter. Cheaper than uuid4."""
    return f"{_process_prefix()}{next(_numbers):08x}"


@cache
def _process_prefix() -> str:
    # Not made at import: a process may be forked from one that has imported this module.
    return secrets.token_hex(4)


def _internal(request_id: str) -> RpcError:
    problem = f"internal error; the logs have it under request {request_id}"
    return RpcError(INTERNAL_ERROR, problem, {"request_id": request_id})


def _trace_of(call: Call, of_connection: str) -> str:
    """Return the trace context of a call, by default that of its HTTP request."""
    meta = call.params.get("_meta")
    given = meta.get(TRACE_PARENT) if isinstance(meta, Mapping) else None
    return given if isinstance(given, str) else of_connection
