"""Deadlines, backoff, retry budget and breaker, with a clock that the tests move."""

from __future__ import annotations

import asyncio
from collections import Counter
from contextlib import suppress

import pytest

from exai.errors import DeadlineExceeded
from exai.resilience import (
    OPEN_MAX_S,
    OPEN_S,
    PROBE_LEASE_S,
    RETRY_TOKENS,
    WINDOW_S,
    Breaker,
    BreakerOpen,
    LoopStalled,
    RetryBudget,
    backoff_s,
    bounded,
    expiry,
    remaining_s,
    with_deadline,
)


class Clock:
    def __init__(self) -> None:
        self.now = 1_000.0

    def __call__(self) -> float:
        return self.now


class Recorded:
    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.gauges: dict[str, float] = {}

    def count(self, name: str, value: float = 1, /, **labels: str) -> None:
        self.counts[f"{name}:{labels['outcome']}"] += int(value)

    def observe(self, name: str, /, *values: float, **labels: str) -> None:
        raise AssertionError(name)

    def gauge(self, name: str, value: float, /, **labels: str) -> None:
        self.gauges[name] = value


class Ill(Exception):
    pass


class Answered(Exception):
    pass


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def recorded() -> Recorded:
    return Recorded()


@pytest.fixture
def breaker(clock: Clock, recorded: Recorded) -> Breaker:
    """Without jitter: a random value of 0.5 is the middle."""
    return Breaker(
        "kimi", recorder=recorded, failures=(Ill, TimeoutError), answers=(Answered,), clock=clock, rand=lambda: 0.5
    )


async def fail(breaker: Breaker, times: int = 1, error: type[BaseException] = Ill) -> None:
    for _ in range(times):
        with suppress(error):
            async with breaker.attempt():
                raise error


async def succeed(breaker: Breaker, times: int = 1) -> None:
    for _ in range(times):
        async with breaker.attempt():
            pass


async def open_breaker(breaker: Breaker) -> None:
    await fail(breaker, 5)
    assert breaker.state == "open"


async def test_five_failures_in_a_row_open_the_breaker(breaker: Breaker, recorded: Recorded) -> None:
    """Rule: five in a row, for any share of successes before."""
    await succeed(breaker, 15)
    await fail(breaker, 4)
    assert breaker.state == "closed"
    await fail(breaker)
    assert breaker.state == "open"
    assert recorded.gauges["breaker_state"] == 2


async def test_half_of_at_least_five_calls_failing_opens_the_breaker(breaker: Breaker) -> None:
    """Rule: at least 50 % of at least 5 calls in the window."""
    await fail(breaker)
    await succeed(breaker)
    await fail(breaker)
    await succeed(breaker)
    assert breaker.state == "closed"
    await fail(breaker)
    assert breaker.state == "open"


async def test_three_failures_among_two_hundred_calls_leave_it_closed(breaker: Breaker) -> None:
    """A breaker whose successes never clear its count opens here; this one must not."""
    for _ in range(3):
        await succeed(breaker, 66)
        await fail(breaker)
    assert breaker.state == "closed"


async def test_failures_older_than_the_window_do_not_count(breaker: Breaker, clock: Clock) -> None:
    """Rule: the window slides by time too."""
    await fail(breaker, 4)
    clock.now += WINDOW_S + 1
    await fail(breaker)
    assert breaker.state == "closed"


async def test_ten_failing_coroutines_count_ten(breaker: Breaker, recorded: Recorded) -> None:
    """A breaker that wraps the call instead of the awaiting of an async function counts none."""
    gate = asyncio.Event()

    async def call() -> None:
        async with breaker.attempt():
            await gate.wait()
            raise Ill

    calls = [asyncio.create_task(call()) for _ in range(10)]
    await asyncio.sleep(0)
    gate.set()
    results = await asyncio.gather(*calls, return_exceptions=True)
    assert [type(result) for result in results] == [Ill] * 10
    assert recorded.counts["breaker_calls_total:failure"] == 10
    assert breaker.state == "open"


async def test_open_breaker_refuses_without_calling_and_says_for_how_long(breaker: Breaker, clock: Clock) -> None:
    """Rule: open refuses at once with the rest of its time."""
    await open_breaker(breaker)
    clock.now += 2
    with pytest.raises(BreakerOpen) as refused:
        async with breaker.attempt():
            pytest.fail("called through an open breaker")
    assert refused.value.retry_after_s == pytest.approx(OPEN_S - 2)
    with pytest.raises(BreakerOpen):
        breaker.check()


async def test_a_hundred_calls_at_the_half_open_instant_are_one_upstream_call(breaker: Breaker, clock: Clock) -> None:
    """Rule: exactly one probe."""
    await open_breaker(breaker)
    clock.now += OPEN_S
    upstream = 0
    release = asyncio.Event()

    async def call() -> str:
        nonlocal upstream
        try:
            async with breaker.attempt():
                upstream += 1
                await release.wait()
                return "answer"
        except BreakerOpen:
            return "refused"

    calls = [asyncio.create_task(call()) for _ in range(100)]
    for _ in range(3):
        await asyncio.sleep(0)
    assert upstream == 1
    release.set()
    outcomes = Counter(await asyncio.gather(*calls))
    assert outcomes == {"answer": 1, "refused": 99}
    assert breaker.state == "closed"


async def test_cancelled_probe_frees_the_slot_for_the_next_call(breaker: Breaker, clock: Clock) -> None:
    """A hung or cancelled probe that keeps its slot is how breakers stick."""
    await open_breaker(breaker)
    clock.now += OPEN_S
    entered = asyncio.Event()

    async def probe() -> None:
        async with breaker.attempt():
            entered.set()
            await asyncio.Event().wait()

    task = asyncio.create_task(probe())
    await entered.wait()
    with pytest.raises(BreakerOpen):
        breaker.check()
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task
    assert breaker.state == "half_open"
    await succeed(breaker)
    assert breaker.state == "closed"


async def test_hung_probe_loses_its_slot_after_the_lease(breaker: Breaker, clock: Clock) -> None:
    """A safeguard for callers without a limit; the late result of the old probe is ignored."""
    await open_breaker(breaker)
    clock.now += OPEN_S
    hung = breaker.attempt()
    await hung.__aenter__()
    clock.now += PROBE_LEASE_S
    await succeed(breaker)
    assert breaker.state == "closed"
    await hung.__aexit__(Ill, Ill(), None)
    assert breaker.state == "closed"


async def test_failed_probes_double_the_pause_up_to_its_limit(breaker: Breaker, clock: Clock) -> None:
    """Rule: 5 s, doubling to 60 s; a success starts again at 5 s."""
    await open_breaker(breaker)
    pauses = [breaker.retry_after_s]
    for _ in range(5):
        clock.now += breaker.retry_after_s
        await fail(breaker)
        pauses.append(breaker.retry_after_s)
    assert pauses == pytest.approx([5, 10, 20, 40, OPEN_MAX_S, OPEN_MAX_S])
    clock.now += breaker.retry_after_s
    await succeed(breaker)
    await open_breaker(breaker)
    assert breaker.retry_after_s == pytest.approx(OPEN_S)


@pytest.mark.parametrize(("value", "expected_s"), [(0.0, 4.0), (1.0, 6.0)])
async def test_open_time_has_twenty_percent_of_jitter(
    clock: Clock, recorded: Recorded, value: float, expected_s: float
) -> None:
    """Daemons that opened together must not probe together."""
    breaker = Breaker("kimi", recorder=recorded, failures=(Ill,), clock=clock, rand=lambda: value)
    await open_breaker(breaker)
    assert breaker.retry_after_s == pytest.approx(expected_s)


async def test_success_of_the_probe_clears_old_failures(breaker: Breaker, clock: Clock) -> None:
    """Rule: success closes and clears."""
    await open_breaker(breaker)
    clock.now += OPEN_S
    await succeed(breaker)
    await fail(breaker, 4)
    assert breaker.state == "closed"


async def test_exceptions_outside_the_failure_classes_do_not_count(breaker: Breaker) -> None:
    """Cancellation and our own defects say nothing about the dependency."""
    await fail(breaker, 50, KeyError)
    await fail(breaker, 50, asyncio.CancelledError)
    assert breaker.state == "closed"


async def test_refusal_by_a_living_dependency_closes_a_half_open_breaker(breaker: Breaker, clock: Clock) -> None:
    """A 400 is an answer, so the dependency works."""
    await open_breaker(breaker)
    clock.now += OPEN_S
    await fail(breaker, error=Answered)
    assert breaker.state == "closed"


async def test_unrelated_error_of_the_probe_is_no_verdict(breaker: Breaker, clock: Clock) -> None:
    """A defect of our own neither closes nor opens it."""
    await open_breaker(breaker)
    clock.now += OPEN_S
    await fail(breaker, error=KeyError)
    assert breaker.state == "half_open"


async def test_probe_that_has_been_answered_closes_before_it_ends(breaker: Breaker, clock: Clock) -> None:
    """A streamed answer may last minutes; its first token already proves life."""
    await open_breaker(breaker)
    clock.now += OPEN_S
    async with breaker.attempt() as probe:
        probe.answered()
        assert breaker.state == "closed"


async def test_call_admitted_before_the_opening_does_not_prolong_it(breaker: Breaker, clock: Clock) -> None:
    """Late failures of old calls are old news."""
    late = breaker.attempt()
    await late.__aenter__()
    await open_breaker(breaker)
    before_s = breaker.retry_after_s
    await late.__aexit__(Ill, Ill(), None)
    assert breaker.retry_after_s == before_s


async def test_timeout_during_a_stall_of_our_own_loop_does_not_count(breaker: Breaker) -> None:
    """Rule: a stalled loop times everything out at once; the dependencies are innocent."""
    for _ in range(10):
        with suppress(Ill):
            async with breaker.attempt():
                raise Ill from LoopStalled("kimi")
    assert breaker.state == "closed"


def test_backoff_is_uniform_below_a_doubling_ceiling() -> None:
    """Full jitter: uniform(0, min(cap, base * 2^n))."""
    assert [backoff_s(n, 0.5, 5, rand=lambda: 1.0) for n in range(1, 7)] == [0.5, 1, 2, 4, 5, 5]
    assert backoff_s(3, 0.5, 5, rand=lambda: 0.25) == 0.5
    assert backoff_s(10_000, 0.5, 5, rand=lambda: 0.0) == 0


def test_retries_are_a_tenth_of_the_requests_and_one_per_second(clock: Clock) -> None:
    """Rule: 10 % + 1 per second, from a bounded bucket."""
    budget = RetryBudget(clock=clock)
    assert [budget.take() for _ in range(int(RETRY_TOKENS) + 1)] == [True] * int(RETRY_TOKENS) + [False]
    for _ in range(11):
        budget.request()
    assert [budget.take(), budget.take()] == [True, False]
    clock.now += 2
    assert [budget.take(), budget.take(), budget.take()] == [True, True, False]
    clock.now += 1_000_000
    assert [budget.take() for _ in range(int(RETRY_TOKENS) + 1)] == [True] * int(RETRY_TOKENS) + [False]


async def test_inner_deadline_never_extends_the_outer_one() -> None:
    """One absolute deadline per request."""
    assert remaining_s() is None
    with with_deadline(10):
        outer = remaining_s()
        with with_deadline(1_000):
            inner = remaining_s()
        with with_deadline(None):
            unchanged = remaining_s()
    assert outer is not None
    assert inner is not None
    assert unchanged is not None
    assert max(inner, unchanged) <= outer <= 10
    assert remaining_s() is None


async def test_remaining_time_keeps_the_reserve_and_is_never_negative() -> None:
    """The append after the answer needs its own time."""
    with with_deadline(1):
        assert remaining_s(reserve_s=5) == 0


async def test_request_deadline_ends_a_wait_as_deadline_exceeded() -> None:
    """The caller's own time is up: not the dependency's fault."""
    with with_deadline(0.01), pytest.raises(DeadlineExceeded, match="the answer"):
        await bounded(asyncio.Event().wait(), 60, "the answer")


async def test_own_limit_ends_a_wait_as_timeout() -> None:
    """The dependency was too slow for its limit, while the request still has time."""
    with with_deadline(60), pytest.raises(TimeoutError):
        await bounded(asyncio.Event().wait(), 0.01, "the answer")


async def test_nothing_is_started_once_the_deadline_has_passed() -> None:
    """A request without a waiting caller must not reach the other side."""
    started = False

    async def work() -> None:
        nonlocal started
        started = True

    with with_deadline(0), pytest.raises(DeadlineExceeded):
        await bounded(work(), 1, "work")
    assert not started


async def test_timeout_raised_inside_passes_unchanged() -> None:
    """Only our own scope's expiry is translated."""
    mine = TimeoutError("from inside")

    async def work() -> None:
        raise mine

    with with_deadline(60), pytest.raises(TimeoutError) as caught:
        await bounded(work(), 60, "work")
    assert caught.value is mine


@pytest.mark.parametrize(("late_s", "expected"), [(1.0, LoopStalled), (0.0, TimeoutError)])
async def test_late_timer_is_reported_as_our_own_stall(late_s: float, expected: type[TimeoutError]) -> None:
    """A scope that was due long before its timer ran shows a stalled loop."""
    scope = asyncio.timeout_at(asyncio.get_running_loop().time() - late_s)
    with pytest.raises(TimeoutError):
        async with scope:
            await asyncio.Event().wait()
    assert type(expiry(scope, "the answer")) is expected


async def test_value_is_returned_without_any_limit() -> None:
    """No deadline and no limit: a plain await."""

    async def work() -> str:
        return "done"

    assert await bounded(work(), None, "work") == "done"
