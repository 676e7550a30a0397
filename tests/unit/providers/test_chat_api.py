"""Retries, budget, breaker and slow-downs of one provider, over a scripted transport and a clock of the test's."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress

import pytest

from exai.errors import (
    DeadlineExceeded,
    Overloaded,
    ProviderAuthFailed,
    ProviderBroken,
    ProviderLimited,
    ProviderRefused,
    ProviderUnavailable,
)
from exai.fairness import request_owner
from exai.models import Completion, CompletionRequest, Owner, Prompt
from exai.monitoring.metrics import MetricsRecorder
from exai.providers.base import Clocks, ProviderCall
from exai.providers.catalogue import load_catalogue
from exai.providers.completion.client import MAX_CONNECTIONS, ChatApi
from exai.providers.endpoints import NAMED
from exai.providers.families.kimi import KIMI
from exai.providers.reply.sse import Event
from exai.resilience import OPEN_S, RETRY_TOKENS, Attempt, with_deadline

MODEL = load_catalogue(None, NAMED).models["kimi-k3"]
ASK = CompletionRequest("kimi-k3", [Prompt("user", "hello")])

Behaviour = Callable[[ProviderCall, Attempt], Awaitable[None]]


async def answers(call: ProviderCall, attempt: Attempt) -> None:
    call.answer.take(Event('{"choices": [{"delta": {"content": "hi"}, "finish_reason": "stop"}]}'))
    attempt.answered()


def fails(error: Exception, *, after_first: bool = False, retry_after_s: float | None = None) -> Behaviour:
    async def behave(call: ProviderCall, attempt: Attempt) -> None:
        if after_first:
            call.answer.take(Event('{"choices": [{"delta": {"content": "h"}}]}'))
        call.retry_after_s = retry_after_s
        raise error

    return behave


DOWN = ProviderUnavailable("kimi", "is down", status=503)
LIMITED = ProviderLimited("kimi", "too fast", status=429)


class Script:
    """A transport that follows a script, then answers; it counts the requests."""

    def __init__(self, *behaviours: Behaviour, always: Behaviour = answers) -> None:
        self.behaviours, self.always = list(behaviours), always
        self.sent = 0

    async def run(self, call: ProviderCall, attempt: Attempt) -> None:
        self.sent += 1
        await (self.behaviours.pop(0) if self.behaviours else self.always)(call, attempt)


class Time:
    """Sleeping moves this clock and nothing else."""

    def __init__(self) -> None:
        self.now = 100.0
        self.slept: list[float] = []

    async def sleep(self, duration_s: float) -> None:
        self.slept.append(duration_s)
        self.now += duration_s
        await asyncio.sleep(0)


@pytest.fixture
def time() -> Time:
    return Time()


@pytest.fixture
def recorder() -> MetricsRecorder:
    return MetricsRecorder()


@pytest.fixture
def make(time: Time, recorder: MetricsRecorder) -> Callable[..., ChatApi]:
    def chat(script: Script, max_attempts: int = 3, chance: float = 0.5, place_limit_s: float | None = None) -> ChatApi:
        clocks = Clocks(monotonic=lambda: time.now, sleep=time.sleep, rand=lambda: chance)
        return ChatApi(
            KIMI,
            script,
            max_attempts=max_attempts,
            max_content_bytes=1_000,
            recorder=recorder,
            clocks=clocks,
            place_limit_s=place_limit_s,
        )

    return chat


Make = Callable[..., ChatApi]


async def ask(chat: ChatApi) -> Completion:
    return await chat.complete(MODEL, ASK, None)


async def test_failure_before_the_first_piece_is_tried_again(make: Make, time: Time, recorder: MetricsRecorder) -> None:
    """Backoff with full jitter: half of 0.5 s, then half of 1 s."""
    script = Script(fails(DOWN), fails(ProviderBroken("kimi", "cut")))
    completion = await ask(make(script))
    assert (completion.content, completion.attempts, script.sent) == ("hi", 3, 3)
    assert time.slept == [0.25, 0.5]
    assert recorder.value("provider_retries_total", provider="kimi") == 2


async def test_attempts_are_limited_and_the_last_error_is_raised(make: Make) -> None:
    """EXAI_PROVIDERS__MAX_ATTEMPTS counts the first one too."""
    script = Script(fails(LIMITED), fails(DOWN), fails(ProviderUnavailable("kimi", "third")))
    with pytest.raises(ProviderUnavailable, match="third"):
        await ask(make(script))
    assert script.sent == 3


@pytest.mark.parametrize("error", [DOWN, ProviderBroken("kimi", "cut"), LIMITED])
async def test_nothing_is_sent_again_once_a_piece_has_reached_the_caller(make: Make, error: Exception) -> None:
    """A second answer would follow the first half of another."""
    script = Script(fails(error, after_first=True))
    with pytest.raises(type(error)):
        await ask(make(script))
    assert script.sent == 1


async def test_request_beyond_the_connections_of_a_provider_is_refused_with_the_reason(make: Make) -> None:
    """Waiting for a connection has a limit of its own, and is not the provider's failure."""
    gate = asyncio.Event()

    async def answers_later(call: ProviderCall, attempt: Attempt) -> None:
        await gate.wait()
        await answers(call, attempt)

    script = Script(always=answers_later)
    chat = make(script, place_limit_s=0.01)
    calls = [asyncio.create_task(ask(chat)) for _ in range(MAX_CONNECTIONS)]
    while script.sent < MAX_CONNECTIONS:
        await asyncio.sleep(0)
    with pytest.raises(Overloaded, match="connections to kimi"):
        await ask(chat)
    gate.set()
    assert len(await asyncio.gather(*calls)) == script.sent == MAX_CONNECTIONS
    assert chat.gates.state == "closed"


@pytest.mark.parametrize(
    "error",
    [
        ProviderRefused("kimi", "bad request", status=400),
        ProviderAuthFailed("kimi", "bad key", status=401),
        ProviderLimited("kimi", "no balance", status=429, exhausted=True),
        RuntimeError("a defect"),
    ],
)
async def test_what_waiting_does_not_cure_is_not_tried_again(make: Make, time: Time, error: Exception) -> None:
    """4xx, a wrong key, an empty balance."""
    script = Script(fails(error))
    with pytest.raises(type(error)):
        await ask(make(script))
    assert (script.sent, time.slept) == (1, [])


async def test_retry_after_is_obeyed_by_all_requests(make: Make, time: Time) -> None:
    """It has precedence over the backoff."""
    script = Script(fails(LIMITED, retry_after_s=7))
    chat = make(script)
    assert (await ask(chat)).attempts == 2
    assert time.slept == [0.0, 7.25]
    script.behaviours = [fails(LIMITED, retry_after_s=7)]
    chat = make(script, max_attempts=1)
    with suppress(ProviderLimited):
        await ask(chat)
    time.slept.clear()
    await ask(chat)
    assert time.slept == [7.25]


async def test_retry_after_beyond_the_deadline_fails_at_once_and_says_when(make: Make, time: Time) -> None:
    """The wait would exceed the deadline, so no further request is sent."""
    error = ProviderLimited("kimi", "too fast", status=429, retry_after_s=60)
    script = Script(fails(error, retry_after_s=60))
    chat = make(script)
    with with_deadline(30):
        with pytest.raises(ProviderLimited) as first:
            await ask(chat)
        with pytest.raises(ProviderLimited) as second:
            await ask(chat)
    assert (first.value.retry_after_s, second.value.retry_after_s) == (60, 60)
    assert (script.sent, time.slept) == (1, [])


async def test_retry_after_of_an_overloaded_server_is_obeyed_too(make: Make, time: Time) -> None:
    """503 may carry one."""
    script = Script(fails(DOWN, retry_after_s=2))
    await ask(make(script))
    assert time.slept == [0.0, 2.25]


OVERLOADED = ProviderLimited("kimi", "is overloaded", status=429, overloaded=True)


@pytest.mark.parametrize(
    ("error", "stops_others"),
    [(LIMITED, True), (OVERLOADED, False), (DOWN, False), (ProviderBroken("kimi", "x"), False)],
)
async def test_retry_after_of_one_owner_stops_others_only_if_the_key_is_its_cause(
    make: Make, time: Time, error: Exception, *, stops_others: bool
) -> None:
    """Minutes asked of one owner by an overloaded server are not asked of the others; a limit of the key is."""
    script = Script(fails(error, retry_after_s=110))
    chat = make(script, max_attempts=1)

    async def asks(owner: str) -> float:
        request_owner.set(Owner(owner))
        before = time.now
        with suppress(type(error)):
            await ask(chat)
        return time.now - before

    alice, bob, again = [await asyncio.create_task(asks(owner)) for owner in ("alice", "bob", "alice")]
    assert alice == 0
    assert (bob > 100) is stops_others
    assert (again > 100) is not stops_others
    assert script.sent == 3


async def test_too_many_requests_do_not_open_the_breaker(make: Make) -> None:
    """A 429 is an answer: the provider is up."""
    chat = make(Script(always=fails(LIMITED)), max_attempts=1)
    for _ in range(30):
        with suppress(ProviderLimited):
            await ask(chat)
    assert chat.gates.state == "closed"


async def test_storm_of_failures_reaches_the_provider_at_most_ten_percent_more_often(make: Make, time: Time) -> None:
    """Two hundred requests at one instant against a provider that fails one call in three."""
    calls = 0

    async def every_third(call: ProviderCall, attempt: Attempt) -> None:
        nonlocal calls
        calls += 1
        await (fails(DOWN) if calls % 3 == 0 else answers)(call, attempt)

    script = Script(always=every_third)
    chat = make(script, chance=0.0)
    requests, start = 200, time.now
    for _ in range(requests):
        with suppress(ProviderUnavailable):
            await ask(chat)
    assert time.now == start
    assert requests < script.sent <= requests * 1.1 + RETRY_TOKENS


async def test_dead_provider_is_left_alone_and_one_probe_brings_it_back(make: Make, time: Time) -> None:
    """500 requests make five calls; a hundred at the half-open instant make one."""
    script = Script(always=fails(DOWN))
    chat = make(script, max_attempts=1)
    errors = []
    for _ in range(500):
        with pytest.raises(ProviderUnavailable) as failed:
            await ask(chat)
        errors.append(failed.value)
    assert script.sent == 5
    assert "was not asked" in errors[-1].problem
    assert "is down" in errors[-1].problem

    time.now += OPEN_S
    release = asyncio.Event()

    async def slow(call: ProviderCall, attempt: Attempt) -> None:
        await release.wait()
        await answers(call, attempt)

    script.always = slow
    script.sent = 0
    asked = [asyncio.create_task(ask(chat)) for _ in range(100)]
    for _ in range(5):
        await asyncio.sleep(0)
    assert script.sent == 1
    release.set()
    results = await asyncio.gather(*asked, return_exceptions=True)
    assert sum(isinstance(result, Completion) for result in results) == 1
    assert chat.gates.state == "closed"


async def test_refusal_by_the_breaker_is_not_retried(make: Make, time: Time, recorder: MetricsRecorder) -> None:
    """A refusal is not a failure to try again."""
    chat = make(Script(always=fails(DOWN)), max_attempts=1)
    for _ in range(6):
        with suppress(ProviderUnavailable):
            await ask(chat)
    assert time.slept == []
    assert recorder.value("provider_requests_total", provider="kimi", model="kimi-k3", outcome="not_sent") == 1
    assert recorder.value("breaker_state", breaker="kimi-k3") == 2


async def test_cancelled_request_is_no_failure_and_frees_the_probe(
    make: Make, time: Time, recorder: MetricsRecorder
) -> None:
    """A cancellation is no evidence about the provider."""
    script = Script(always=fails(DOWN))
    chat = make(script, max_attempts=1)
    for _ in range(5):
        with suppress(ProviderUnavailable):
            await ask(chat)
    time.now += OPEN_S
    entered = asyncio.Event()

    async def hang(call: ProviderCall, attempt: Attempt) -> None:
        entered.set()
        await asyncio.Event().wait()

    script.behaviours = [hang]
    probe = asyncio.create_task(ask(chat))
    await entered.wait()
    probe.cancel()
    with pytest.raises(asyncio.CancelledError):
        await probe
    script.always = answers
    assert (await ask(chat)).content == "hi"
    assert recorder.value("provider_requests_total", provider="kimi", model="kimi-k3", outcome="cancelled") == 1


async def test_request_without_time_left_is_not_sent(make: Make) -> None:
    """A request without a waiting caller must not reach the provider."""
    script = Script()
    with with_deadline(0), pytest.raises(DeadlineExceeded):
        await ask(make(script))
    assert script.sent == 0


async def test_deadline_ends_the_wait_and_keeps_the_text_so_far(make: Make, recorder: MetricsRecorder) -> None:
    """The deadline of the request is no failure of the provider; the text is kept."""

    async def half(call: ProviderCall, attempt: Attempt) -> None:
        call.answer.take(Event('{"choices": [{"delta": {"content": "half"}}]}'))
        await asyncio.Event().wait()

    chat = make(Script(half))
    with with_deadline(0.01), pytest.raises(DeadlineExceeded) as ended:
        await ask(chat)
    assert ended.value.partial == "half"
    assert recorder.value("provider_requests_total", provider="kimi", model="kimi-k3", outcome="deadline") == 1


async def test_no_retry_begins_that_cannot_end_in_time(make: Make, time: Time) -> None:
    """A pause that outlasts the deadline is not slept."""
    script = Script(always=fails(DOWN))
    with with_deadline(0.2), pytest.raises(ProviderUnavailable):
        await ask(make(script))
    assert (script.sent, time.slept) == (1, [])


async def test_last_error_is_remembered_until_an_answer_comes(make: Make) -> None:
    """The status shows it."""
    script = Script(fails(ProviderRefused("kimi", "bad request")))
    chat = make(script)
    with suppress(ProviderRefused):
        await ask(chat)
    assert chat.last_error == "bad request"
    await ask(chat)
    assert chat.last_error is None
