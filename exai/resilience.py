"""Deadlines, backoff, retry budgets and circuit breakers, shared by all code that waits for another machine.

A request has one absolute deadline, carried in the context, and no wait inside it outlasts that deadline. Clocks are
monotonic and injected; the caller declares which exception classes count as failures, and nothing is guessed here.
None of this needs a lock: there is no await between a check and its consequence.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import deque
from collections.abc import Awaitable, Callable
from contextvars import ContextVar
from inspect import iscoroutine
from types import TracebackType
from typing import Final, Literal, TypeVar

import structlog

from exai.errors import DeadlineExceeded, DependencyError, StartupError
from exai.models import Recorder

T = TypeVar("T")

Clock = Callable[[], float]
Random = Callable[[], float]
"""A source of uniform values in [0, 1)."""

BreakerState = Literal["closed", "open", "half_open"]

STALL_S: Final = 0.5
"""A timer later than this was delayed by this process's event loop, so its timeout says nothing about the peer."""

WINDOW_CALLS: Final = 20
WINDOW_S: Final = 30.0
MIN_CALLS: Final = 5
FAILURE_SHARE: Final = 0.5
FAILURES_IN_A_ROW: Final = 5
OPEN_S: Final = 5.0
OPEN_MAX_S: Final = 60.0
OPEN_JITTER: Final = 0.2
PROBE_LEASE_S: Final = 120.0
"""A probe that has not ended by then loses its slot; every caller's own limits are shorter."""

RETRY_SHARE: Final = 0.1
RETRIES_PER_S: Final = 1.0
RETRY_TOKENS: Final = 10.0

RETRY_START_S: Final = 1.0

_CAUSES_EXAMINED: Final = 8
_MAX_EXPONENT: Final = 30

log = structlog.get_logger(__name__)

request_deadline: ContextVar[float | None] = ContextVar("request_deadline", default=None)
"""The deadline of the current request in `loop.time()`; None if there is none."""


class LoopStalled(TimeoutError):
    """A timeout that passed while this process's event loop was blocked; breakers do not count it."""


class DeadlineScope:
    """The context manager that `with_deadline` returns."""

    __slots__ = ("_timeout_s", "_token")

    def __init__(self, timeout_s: float | None) -> None:
        self._timeout_s = timeout_s

    def __enter__(self) -> None:
        own = None if self._timeout_s is None else asyncio.get_running_loop().time() + self._timeout_s
        self._token = request_deadline.set(_earlier(request_deadline.get(), own))

    def __exit__(self, *_: object) -> None:
        request_deadline.reset(self._token)


def end_by(end_s: float) -> None:
    """Set the deadline of this context, such as a task's own, to `end_s` of `loop.time()` if that is earlier."""
    earlier = request_deadline.get()
    if earlier is None or end_s < earlier:
        request_deadline.set(end_s)


def with_deadline(timeout_s: float | None) -> DeadlineScope:
    """Limit the enclosed code to `timeout_s` seconds from now; an earlier deadline stays in effect."""
    return DeadlineScope(timeout_s)


def remaining_s(reserve_s: float = 0.0) -> float | None:
    """Return the seconds until the request's deadline less `reserve_s`, never negative; None without a deadline."""
    deadline = request_deadline.get()
    if deadline is None:
        return None
    return max(0.0, deadline - asyncio.get_running_loop().time() - reserve_s)


async def bounded(awaitable: Awaitable[T], limit_s: float | None, what: str) -> T:
    """Await for at most `limit_s` and never beyond the request's deadline; the awaitable is cancelled at the end.

    Raises `DeadlineExceeded(what)` if the request's own deadline ended the wait, `TimeoutError` if `limit_s` did
    (`LoopStalled` if the event loop was late to notice). A `TimeoutError` from inside passes unchanged.
    """
    deadline = request_deadline.get()
    now = asyncio.get_running_loop().time()
    if deadline is not None and deadline <= now:
        if iscoroutine(awaitable):
            awaitable.close()
        raise DeadlineExceeded(what)
    own = None if limit_s is None else now + limit_s
    until = _earlier(deadline, own)
    if until is None:
        return await awaitable
    scope = asyncio.timeout_at(until)
    try:
        async with scope:
            return await awaitable
    except TimeoutError as error:
        if not scope.expired():
            raise
        if until == deadline:
            raise DeadlineExceeded(what) from error
        raise expiry(scope, what) from error


def expiry(scope: asyncio.Timeout, what: str) -> TimeoutError:
    """Return the error for an expired scope: a plain timeout, or `LoopStalled` if the timer itself was late."""
    due = scope.when()
    late_s = 0.0 if due is None else asyncio.get_running_loop().time() - due
    return LoopStalled(what) if late_s > STALL_S else TimeoutError(what)


def backoff_s(attempt: int, base_s: float, cap_s: float, *, rand: Random = random.random) -> float:
    """Return the seconds to wait after `attempt` failures (from 1): uniform in [0, min(cap, base * 2^(n-1)))."""
    ceiling: float = base_s * 2 ** min(max(attempt - 1, 0), _MAX_EXPONENT)
    return min(cap_s, ceiling) * rand()


class RetryBudget:
    """Limits retries to a tenth of the requests plus one per second, so that an outage does not multiply the load.

    A token bucket: each request adds a fraction of a token, time adds more, and each retry takes one.
    """

    def __init__(self, *, clock: Clock = time.monotonic) -> None:
        self._clock = clock
        self._tokens = RETRY_TOKENS
        self._filled_at = clock()

    def request(self) -> None:
        """Count one first attempt."""
        self._tokens = min(RETRY_TOKENS, self._tokens + RETRY_SHARE)

    def take(self) -> bool:
        """Return whether one retry may be made now; if so, it is counted."""
        now = self._clock()
        self._tokens = min(RETRY_TOKENS, self._tokens + (now - self._filled_at) * RETRIES_PER_S)
        self._filled_at = now
        if self._tokens < 1:
            return False
        self._tokens -= 1
        return True


class BreakerOpen(DependencyError):
    """The dependency was not called because it failed repeatedly; callers convert this into their own error."""

    code = "breaker_open"

    def __init__(self, name: str, retry_after_s: float) -> None:
        super().__init__(
            name,
            "not called, because it failed repeatedly",
            f"Try again in {retry_after_s:.0f} s",
            retry_after_s=round(retry_after_s, 3),
        )
        self.retry_after_s = retry_after_s


class Breaker:
    """Stops calls to a failing dependency, and lets exactly one probe find out whether it has recovered.

    Closed: opens when half of at least five calls in the window failed, or the last five did. Open: refuses with
    `BreakerOpen` for 5 s, doubling to 60 s, each with jitter. Half-open: one probe holds the only slot and all other
    calls are refused. Its success closes the breaker and clears the window, its failure opens it again for longer, and
    a probe that ends without a verdict (for example by cancellation) only frees the slot.

    `failures` are the exceptions that mean the dependency is failing. Those in `answers` mean that it works although
    the call did not succeed. All others give no verdict, above all cancellation, and so do those in `neutral`, which
    may be subclasses of a failure, and a timeout caused by a stall of this process's event loop.
    """

    def __init__(
        self,
        name: str,
        *,
        recorder: Recorder,
        failures: tuple[type[BaseException], ...],
        answers: tuple[type[BaseException], ...] = (),
        neutral: tuple[type[BaseException], ...] = (),
        clock: Clock = time.monotonic,
        rand: Random = random.random,
    ) -> None:
        self.name = name
        self._recorder, self._clock, self._rand = recorder, clock, rand
        self._failures, self._answers, self._neutral = failures, answers, neutral
        self._window: deque[tuple[float, bool]] = deque(maxlen=WINDOW_CALLS)
        self._state: BreakerState = "closed"
        self._openings = 0
        self._open_until = 0.0
        self._probe: Attempt | None = None
        self._probe_until = 0.0
        self._recorder.gauge("breaker_state", 0, breaker=name)

    @property
    def state(self) -> BreakerState:
        """Return the state for the next caller: an open breaker whose time has passed is half open."""
        if self._state == "open" and self._clock() >= self._open_until:
            return "half_open"
        return self._state

    @property
    def retry_after_s(self) -> float:
        """Return the seconds until a call may pass; 0 if one may pass now."""
        now = self._clock()
        if self._state == "open":
            return max(0.0, self._open_until - now)
        if self._state == "half_open" and self._probe is not None and now < self._probe_until:
            return min(1.0, self._probe_until - now)
        return 0.0

    def check(self) -> None:
        """Raise `BreakerOpen` if a call would be refused now; does not take the probe's slot."""
        wait_s = self.retry_after_s
        if wait_s > 0:
            self._count("refused")
            raise BreakerOpen(self.name, wait_s)

    def attempt(self, within: Attempt | None = None) -> Attempt:
        """`async with breaker.attempt():` around one call. Entry raises `BreakerOpen`; exit records the verdict.

        `within` is the attempt of an enclosing breaker, so that an early answer counts for both.
        """
        return Attempt(self, within)

    def _admit(self, attempt: Attempt) -> None:
        self.check()
        if self._state == "closed":
            return
        self._enter("half_open")
        self._probe, self._probe_until = attempt, self._clock() + PROBE_LEASE_S

    def _settle(self, attempt: Attempt, error: BaseException | None) -> None:
        probing = self._probe is attempt
        if probing:
            self._probe = None
        if isinstance(error, self._neutral) or (isinstance(error, self._failures) and _is_own_stall(error)):
            self._count("none")
        elif isinstance(error, self._failures):
            self._count("failure")
            self._record_failure(probing)
        elif error is None or isinstance(error, self._answers):
            self._count("success")
            self._record_success(probing)
        else:
            self._count("none")

    def _record_success(self, probing: bool) -> None:
        if probing:
            self._close()
        elif self._state == "closed":
            self._window.append((self._clock(), True))

    def _record_failure(self, probing: bool) -> None:
        # A call admitted before the breaker opened may fail long after; it adds no information, so only the probe
        # and calls of a closed breaker count.
        if probing:
            self._open()
            return
        if self._state != "closed":
            return
        now = self._clock()
        self._window.append((now, False))
        recent = [ok for at, ok in self._window if now - at <= WINDOW_S]
        failed = recent.count(False)
        too_many = len(recent) >= MIN_CALLS and failed >= FAILURE_SHARE * len(recent)
        in_a_row = len(recent) >= FAILURES_IN_A_ROW and not any(recent[-FAILURES_IN_A_ROW:])
        if too_many or in_a_row:
            self._open()

    def _open(self) -> None:
        duration_s = min(OPEN_MAX_S, OPEN_S * 2 ** min(self._openings, _MAX_EXPONENT))
        self._openings += 1
        self._open_until = self._clock() + duration_s * (1 - OPEN_JITTER + 2 * OPEN_JITTER * self._rand())
        self._enter("open")

    def _close(self) -> None:
        self._openings = 0
        self._window.clear()
        self._enter("closed")

    def _enter(self, state: BreakerState) -> None:
        self._state = state
        self._recorder.gauge("breaker_state", {"closed": 0, "half_open": 1, "open": 2}[state], breaker=self.name)

    def _count(self, outcome: str) -> None:
        self._recorder.count("breaker_calls_total", breaker=self.name, outcome=outcome)


class Attempt:
    """One call through a breaker; made by `Breaker.attempt`, used once."""

    __slots__ = ("_breaker", "_within")

    def __init__(self, breaker: Breaker, within: Attempt | None = None) -> None:
        self._breaker, self._within = breaker, within

    async def __aenter__(self) -> Attempt:
        self._breaker._admit(self)
        return self

    async def __aexit__(
        self, _kind: type[BaseException] | None, error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        self._breaker._settle(self, error)

    def answered(self) -> None:
        """Report early that the dependency works: a probe closes the breaker now, not at the end of its answer."""
        if self._breaker._probe is self:
            self._breaker._probe = None
            self._breaker._close()
        if self._within is not None:
            self._within.answered()


def _is_own_stall(error: BaseException) -> bool:
    cause: BaseException | None = error
    for _ in range(_CAUSES_EXAMINED):
        if cause is None:
            return False
        if isinstance(cause, LoopStalled):
            return True
        cause = cause.__cause__
    return False


def _earlier(one: float | None, other: float | None) -> float | None:
    if one is None or other is None:
        return one if other is None else other
    return min(one, other)


class Patience:
    """Waits for servers that start at the same time as this process, within one limit for all of them."""

    def __init__(self, limit_s: float) -> None:
        self._end = time.monotonic() + limit_s

    async def until_open(self, opening: Callable[[], Awaitable[T]]) -> T:
        """Retry while a server cannot be reached and time is left. Raises the error of the last attempt."""
        while True:
            try:
                return await opening()
            except StartupError as error:
                left_s = self._end - time.monotonic()
                if left_s <= 0:
                    raise
                log.warning("waiting_for_server", problem=str(error), left_s=round(left_s, 1))
            await asyncio.sleep(min(RETRY_START_S, left_s))
