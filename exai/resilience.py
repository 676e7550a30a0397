"""Deadlines, backoff, retry budgets and circuit breakers, shared by everything that waits for another machine.

A request has one absolute deadline, carried in the context, and no wait inside it outlasts that deadline. Clocks are
monotonic and injected; what counts as a failure is said by the caller through exception classes, never guessed here.
None of this needs a lock: between a check and what it decides there is no await.
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

from exai.errors import DeadlineExceeded, DependencyError
from exai.models import Recorder

T = TypeVar("T")

Clock = Callable[[], float]
Random = Callable[[], float]
"""A source of uniform values in [0, 1)."""

BreakerState = Literal["closed", "open", "half_open"]

STALL_S: Final = 0.5
"""A timer that fires later than this was held up by our own loop; such a timeout says nothing about the other side."""

WINDOW_CALLS: Final = 20
WINDOW_S: Final = 30.0
MIN_CALLS: Final = 5
FAILURE_SHARE: Final = 0.5
FAILURES_IN_A_ROW: Final = 5
OPEN_S: Final = 5.0
OPEN_MAX_S: Final = 60.0
OPEN_JITTER: Final = 0.2
PROBE_LEASE_S: Final = 120.0
"""A probe that has not ended by then has lost its slot; every caller's own limits are shorter."""

RETRY_SHARE: Final = 0.1
RETRIES_PER_S: Final = 1.0
RETRY_TOKENS: Final = 10.0

_CAUSES_EXAMINED: Final = 8
_MAX_EXPONENT: Final = 30

request_deadline: ContextVar[float | None] = ContextVar("request_deadline", default=None)
"""When the current request ends, in `loop.time()`; None where nobody waits for an answer."""


class LoopStalled(TimeoutError):
    """A limit passed while this process was not looking; breakers do not count it."""


class DeadlineScope:
    """What `with_deadline` returns."""

    __slots__ = ("_timeout_s", "_token")

    def __init__(self, timeout_s: float | None) -> None:
        self._timeout_s = timeout_s

    def __enter__(self) -> None:
        own = None if self._timeout_s is None else asyncio.get_running_loop().time() + self._timeout_s
        self._token = request_deadline.set(_earlier(request_deadline.get(), own))

    def __exit__(self, *_: object) -> None:
        request_deadline.reset(self._token)


def end_by(end_s: float) -> None:
    """Give the rest of this context, such as a task's own, until `end_s` of `loop.time()`, or an earlier deadline."""
    earlier = request_deadline.get()
    if earlier is None or end_s < earlier:
        request_deadline.set(end_s)


def with_deadline(timeout_s: float | None) -> DeadlineScope:
    """Give everything inside at most `timeout_s` more seconds; an earlier deadline already set stays in force."""
    return DeadlineScope(timeout_s)


def remaining_s(reserve_s: float = 0.0) -> float | None:
    """Seconds left before the request's deadline less `reserve_s`, never negative; None when there is no deadline."""
    deadline = request_deadline.get()
    if deadline is None:
        return None
    return max(0.0, deadline - asyncio.get_running_loop().time() - reserve_s)


async def bounded(awaitable: Awaitable[T], limit_s: float | None, what: str) -> T:
    """Await for at most `limit_s` and never beyond the request's deadline; the awaitable is cancelled when time is up.

    Raises `DeadlineExceeded(what)` when the request's own deadline ended the wait, `TimeoutError` when `limit_s` did
    (`LoopStalled` when the limit was noticed late by our own fault). A `TimeoutError` from inside passes unchanged.
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
    """The error for an expired scope: a plain timeout, or `LoopStalled` when the timer itself came late."""
    due = scope.when()
    late_s = 0.0 if due is None else asyncio.get_running_loop().time() - due
    return LoopStalled(what) if late_s > STALL_S else TimeoutError(what)


def backoff_s(attempt: int, base_s: float, cap_s: float, *, rand: Random = random.random) -> float:
    """Seconds to wait before repeating, after `attempt` failures (from 1): uniform in [0, min(cap, base * 2^(n-1)))."""
    ceiling: float = base_s * 2 ** min(max(attempt - 1, 0), _MAX_EXPONENT)
    return min(cap_s, ceiling) * rand()


class RetryBudget:
    """Retries are at most a tenth of the requests plus one per second, so that a storm is not multiplied.

    A token bucket: each request puts in a share of a token, time puts in the rest, each retry takes one out.
    """

    def __init__(self, *, clock: Clock = time.monotonic) -> None:
        self._clock = clock
        self._tokens = RETRY_TOKENS
        self._filled_at = clock()

    def request(self) -> None:
        """Note one first attempt."""
        self._tokens = min(RETRY_TOKENS, self._tokens + RETRY_SHARE)

    def take(self) -> bool:
        """Whether one retry may be made now; a true answer has spent it."""
        now = self._clock()
        self._tokens = min(RETRY_TOKENS, self._tokens + (now - self._filled_at) * RETRIES_PER_S)
        self._filled_at = now
        if self._tokens < 1:
            return False
        self._tokens -= 1
        return True


class BreakerOpen(DependencyError):
    """The dependency was not called, because it failed repeatedly; callers translate this into their own error."""

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
    """Stops calling a dependency that fails, and lets exactly one probe find out whether it is back.

    Closed: opens when half of at least five calls in the window failed, or the last five did. Open: refuses with
    `BreakerOpen` for 5 s, doubling to 60 s, each with jitter. Half-open: one probe holds the only slot and everybody
    else is refused; its success closes and clears, its failure opens again for longer, and a probe that ends without
    a verdict (cancelled, say) just frees the slot.

    `failures` are the exceptions that say the dependency is ill. Those in `answers` say that it is well although the
    call did not succeed. Anything else, cancellation first of all, is no verdict, and so are those in `neutral`, which
    may be special cases of a failure, and a timeout caused by a stall of our own loop.
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
        """As a caller would find it now: an open breaker whose time is over reads as half open."""
        if self._state == "open" and self._clock() >= self._open_until:
            return "half_open"
        return self._state

    @property
    def retry_after_s(self) -> float:
        """Seconds until a call may pass; 0 when one would pass now."""
        now = self._clock()
        if self._state == "open":
            return max(0.0, self._open_until - now)
        if self._state == "half_open" and self._probe is not None and now < self._probe_until:
            return min(1.0, self._probe_until - now)
        return 0.0

    def check(self) -> None:
        """Raise `BreakerOpen` if a call would be refused now; takes nothing."""
        wait_s = self.retry_after_s
        if wait_s > 0:
            self._count("refused")
            raise BreakerOpen(self.name, wait_s)

    def attempt(self, within: Attempt | None = None) -> Attempt:
        """`async with breaker.attempt():` around one call. Entering raises `BreakerOpen`; leaving gives the verdict.

        `within` is the attempt of another breaker that this one is a part of, so that both are answered early.
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
        # A call admitted before the breaker opened may fail long after; it says nothing new, so only the probe and
        # calls of a closed breaker are heard.
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
        """Say early that the dependency is alive: a probe closes the breaker now instead of when its answer ends."""
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
