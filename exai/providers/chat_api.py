"""The one chat-completions client: a streamed request with its retries, its breaker and its accounting.

The invariant is that nothing is sent again once a piece of the answer has reached the caller, and that retries are
bounded three times: in number, by the budget, and by the request's deadline.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Final

from exai.errors import (
    DeadlineExceeded,
    ExaiError,
    ProviderAuthFailed,
    ProviderBroken,
    ProviderError,
    ProviderLimited,
    ProviderRefused,
    ProviderUnavailable,
)
from exai.models import Completion, CompletionRequest, OnDelta, Recorder
from exai.providers.answer import Answer
from exai.providers.base import Call, Clocks, Family, Model, Transport
from exai.providers.request import build_body
from exai.resilience import Breaker, BreakerOpen, RetryBudget, backoff_s, request_deadline

MAX_TOTAL_S: Final = 3_600.0
"""The longest completion of a request that has no deadline of its own."""

MAX_ANSWER_BYTES: Final = 10 * 1_048_576
RETRY_BASE_S: Final = 0.5
RETRY_CAP_S: Final = 5.0
RETRY_AFTER_JITTER_S: Final = 0.5


class ChatApi:
    """Asks one provider through `transport`; safe for any number of tasks of one event loop."""

    def __init__(
        self,
        family: Family,
        transport: Transport,
        *,
        max_attempts: int,
        max_content_bytes: int,
        recorder: Recorder,
        clocks: Clocks,
    ) -> None:
        self.family, self._transport = family, transport
        self.last_error: str | None = None
        self._recorder, self._clocks = recorder, clocks
        self._max_attempts, self._max_content_bytes = max_attempts, max_content_bytes
        self._budget = RetryBudget(clock=clocks.monotonic)
        self._slow_until = clocks.monotonic()
        self.breaker = Breaker(
            family.name,
            recorder=recorder,
            failures=(ProviderUnavailable, ProviderBroken),
            answers=(ProviderRefused, ProviderAuthFailed, ProviderLimited),
            clock=clocks.monotonic,
            rand=clocks.rand,
        )

    @property
    def slow_for_s(self) -> float:
        """Seconds for which the provider asked to be left alone."""
        return max(0.0, self._slow_until - self._clocks.monotonic())

    async def complete(self, model: Model, request: CompletionRequest, on_delta: OnDelta | None) -> Completion:
        """Return the whole answer; each piece has gone to `on_delta` as it came.

        Raises `InvalidArgument` before anything is sent, a `ProviderError`, `Overloaded`, or `DeadlineExceeded` when
        the request's own time ended; errors after the first piece carry the text so far as `partial`.
        """
        body = build_body(model, self.family, request)
        deadline = request_deadline.get()
        started = self._clocks.monotonic()
        now = asyncio.get_running_loop().time()
        until = now + MAX_TOTAL_S if deadline is None else deadline
        if until <= now:
            raise DeadlineExceeded(f"provider {self.family.name}")
        call = Call(model, request, body, on_delta, until, self._empty_answer())
        scope = asyncio.timeout_at(until)
        try:
            async with scope:
                attempts = await self._attempts(call)
        except TimeoutError as error:
            if not scope.expired():
                raise
            waited_s = round(self._clocks.monotonic() - started, 1)
            raise DeadlineExceeded(f"provider {self.family.name}", waited_s, partial=call.answer.content) from error
        return self._completion(call, attempts, self._clocks.monotonic() - started)

    async def _attempts(self, call: Call) -> int:
        """Make attempts until one succeeds; return how many it took."""
        self._budget.request()
        for attempt in range(1, self._max_attempts + 1):
            await self._wait_while_slowed(call)
            try:
                await self._attempt(call)
            except ProviderError as error:
                self.last_error = error.problem
                pause_s = self._pause_s(call, error, attempt)
                if pause_s is None:
                    raise
                call.answer = self._empty_answer()
                self._recorder.count("provider_retries_total", provider=self.family.name)
                await self._clocks.sleep(pause_s)
            else:
                self.last_error = None
                return attempt
        raise AssertionError("the last attempt either returns or raises")

    async def _attempt(self, call: Call) -> None:
        call.may_repeat, call.retry_after_s, call.request_id = True, None, None
        started = self._clocks.monotonic()
        outcome = "error"
        try:
            async with self.breaker.attempt() as attempt:
                await self._transport.run(call, attempt)
            outcome = "ok"
        except BreakerOpen as refused:
            outcome = "not_sent"
            call.may_repeat = False
            raise self._left_alone(refused) from None
        except asyncio.CancelledError:
            outcome = "deadline" if asyncio.get_running_loop().time() >= call.until else "cancelled"
            raise
        except ExaiError as error:
            outcome = error.code
            raise
        finally:
            self._record(call, outcome, self._clocks.monotonic() - started)

    async def _wait_while_slowed(self, call: Call) -> None:
        """Wait until the provider may be asked again; if that does not fit in the request's time, say so at once."""
        while (wait_s := self.slow_for_s) > 0:
            if not self._fits(call, wait_s):
                raise ProviderLimited(
                    self.family.name,
                    "has asked for a pause that outlasts this request",
                    f"Try again in {wait_s:.0f} s, or use a model of another provider",
                    retry_after_s=wait_s,
                )
            await self._clocks.sleep(wait_s + RETRY_AFTER_JITTER_S * self._clocks.rand())

    def _pause_s(self, call: Call, error: ProviderError, attempt: int) -> float | None:
        """Seconds before the next attempt, or None when there is none to be made."""
        repeatable = isinstance(error, ProviderUnavailable | ProviderBroken | ProviderLimited)
        if isinstance(error, ProviderLimited) and error.exhausted:
            repeatable = False
        if repeatable and call.retry_after_s is not None:
            self._slow_until = max(self._slow_until, self._clocks.monotonic() + call.retry_after_s)
        if not repeatable or not call.may_repeat or call.answer.started or attempt >= self._max_attempts:
            return None
        pause_s = 0.0
        if call.retry_after_s is None:
            pause_s = backoff_s(attempt, RETRY_BASE_S, RETRY_CAP_S, rand=self._clocks.rand)
        if not self._fits(call, max(pause_s, self.slow_for_s)) or not self._budget.take():
            return None
        return pause_s

    def _fits(self, call: Call, wait_s: float) -> bool:
        return asyncio.get_running_loop().time() + wait_s < call.until

    def _left_alone(self, refused: BreakerOpen) -> ProviderUnavailable:
        last = f", last with: {self.last_error}" if self.last_error else ""
        return ProviderUnavailable(
            self.family.name,
            f"was not asked, because it failed repeatedly{last}",
            f"Try again in {max(refused.retry_after_s, 1):.0f} s, or use a model of another provider",
        )

    def _empty_answer(self) -> Answer:
        return Answer(MAX_ANSWER_BYTES, self._max_content_bytes)

    def _completion(self, call: Call, attempts: int, duration_s: float) -> Completion:
        answer = call.answer
        for kind, tokens in (
            ("input", answer.usage.input_tokens),
            ("output", answer.usage.output_tokens),
            ("cached", answer.usage.cached_tokens),
            ("reasoning", answer.usage.reasoning_tokens),
        ):
            self._recorder.count(
                "provider_tokens_total", tokens, provider=self.family.name, model=call.model.label, kind=kind
            )
        unread = answer.unread + len(answer.named)
        if unread:
            self._recorder.count("provider_unread_total", unread, provider=self.family.name, model=call.model.label)
        return Completion(
            content=answer.content,
            reasoning=answer.reasoning,
            finish_reason=answer.finish_reason or "other",
            usage=answer.usage,
            provider=self.family.name,
            model=answer.model or call.model.wire_name,
            request_id=call.request_id or answer.request_id,
            duration_ms=duration_s * 1000,
            attempts=attempts,
            is_partial=answer.is_partial,
            unread_events=unread,
            notes=tuple(_notes(answer)),
        )

    def _record(self, call: Call, outcome: str, duration_s: float) -> None:
        labels = {"provider": self.family.name, "model": call.model.label}
        self._recorder.count("provider_requests_total", outcome=outcome, **labels)
        if outcome != "not_sent":
            self._recorder.observe("provider_seconds", duration_s, **labels)


def _notes(answer: Answer) -> Iterator[str]:
    """Say what of the model's answer may be missing."""
    if answer.lost:
        yield f"the answer may be incomplete: after the model's finish reason {answer.lost}"
    if answer.unread:
        yield f"the answer may be incomplete: {answer.unread} events of the provider's stream could not be read"
    if answer.named:
        yield f"the model's answer also held {', '.join(answer.named)}, which EXAI does not read"
