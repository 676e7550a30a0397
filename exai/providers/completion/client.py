"""The chat-completions client for all providers: streamed requests with retries, gates and metrics.

A request that is changed because the endpoint refused a part of it does not count as a retry; the number of changes has
a limit of its own.

Invariant: a request is not sent again after a piece of the answer has reached the caller. Retries are limited in
number, by the retry budget, and by the request's deadline.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from decimal import Decimal
from typing import Final

import structlog

from exai.errors import (
    DeadlineExceeded,
    ExaiError,
    Overloaded,
    ProviderBroken,
    ProviderError,
    ProviderLimited,
    ProviderUnavailable,
)
from exai.fairness import Places, request_owner
from exai.models import Completion, CompletionRequest, Delta, OnDelta, Reasoning, Recorder, Usage
from exai.providers.base import Clocks, Family, Model, ProviderCall, Transport
from exai.providers.completion.counting import TokenCounter
from exai.providers.completion.extraction import FileExtract
from exai.providers.completion.parameters import MAX_LESSONS, STREAM_OPTIONS, Lessons
from exai.providers.completion.request import ToolRounds, build_body, encode_body
from exai.providers.completion.search.tool_search import ToolSearch
from exai.providers.completion.shaping import REASONING_FIELD, RETURNED_FIELDS
from exai.providers.gates import Gates, ModelGate
from exai.providers.reply.answer import AnswerAssembler
from exai.resilience import BreakerOpen, RetryBudget, backoff_s, request_deadline

MAX_TOTAL_S: Final = 3_600.0
"""The longest completion of a request that has no deadline of its own."""

MAX_ANSWER_BYTES: Final = 10 * 1_048_576
MAX_CONNECTIONS: Final = 100
RESERVED_CONNECTIONS: Final = 25
"""Connections not available to an owner that holds half of them, so that other owners get one at once."""

MAX_REMEMBERED_CHARS: Final = 500
TOLD_WAIT_S: Final = 1.0
"""Waits shorter than this are not reported to the caller."""

RETRY_BASE_S: Final = 0.5
RETRY_CAP_S: Final = 5.0
RETRY_AFTER_JITTER_S: Final = 0.5

log = structlog.get_logger(__name__)


class ChatApi:
    """Client of one provider through `transport`; safe for any number of tasks of one event loop."""

    def __init__(
        self,
        family: Family,
        transport: Transport,
        *,
        max_attempts: int,
        max_content_bytes: int,
        recorder: Recorder,
        clocks: Clocks,
        place_limit_s: float | None = None,
        max_concurrent: int | None = None,
        counter: TokenCounter | None = None,
        search: ToolSearch | None = None,
        extract: FileExtract | None = None,
    ) -> None:
        self.family, self._transport = family, transport
        self.last_error: str | None = None
        self.counter, self.extract = counter, extract
        self._recorder, self._clocks = recorder, clocks
        self._max_attempts, self._max_content_bytes = max_attempts, max_content_bytes
        self._budget = RetryBudget(clock=clocks.monotonic)
        self._lessons = Lessons(is_known=family.takes_any_order)
        # A limit that the user has set is a queue: a waiting request is not refused before the request's deadline.
        size = MAX_CONNECTIONS if max_concurrent is None else max_concurrent
        self._places = Places(size, reserve=min(RESERVED_CONNECTIONS, size // 4))
        self._place_limit_s = place_limit_s if max_concurrent is None else None
        self._search = search
        self.gates = Gates(family, recorder, clocks)

    async def complete(
        self, model: Model, request: CompletionRequest, on_delta: OnDelta | None, patience_s: float | None = None
    ) -> Completion:
        """Return the complete answer; `on_delta` has received each piece as it arrived.

        Raises `InvalidArgument` before anything is sent, a `ProviderError`, `Overloaded`, or `DeadlineExceeded` when
        the request's own time ended; errors after the first piece carry the text so far as `partial`. A pause that the
        provider asks for and that is longer than `patience_s` is an error at once.
        """
        fields = build_body(model, self.family, request, self._lessons.of(model))
        body = encode_body(fields)
        deadline = request_deadline.get()
        started = self._clocks.monotonic()
        now = asyncio.get_running_loop().time()
        until = now + MAX_TOTAL_S if deadline is None else deadline
        if until <= now:
            raise DeadlineExceeded(f"provider {self.family.name}")
        call = ProviderCall(model, request, fields, body, on_delta, until, self._empty_answer(), patience_s=patience_s)
        scope = asyncio.timeout_at(until)
        try:
            async with scope:
                if request.web_search and self._search is not None:
                    attempts = await self._search.run(call, self._attempts, self._rebuild)
                else:
                    attempts = await self._attempts(call)
        except TimeoutError as error:
            if not scope.expired():
                raise
            waited_s = round(self._clocks.monotonic() - started, 1)
            raise DeadlineExceeded(f"provider {self.family.name}", waited_s, partial=text_of(call)) from error
        return self._completion(call, attempts, self._clocks.monotonic() - started)

    async def _attempts(self, call: ProviderCall) -> int:
        """Make attempts until one succeeds; return their number."""
        self._budget.request()
        gate = self.gates.of(call.model)
        attempt, lessons = 1, 0
        owner = request_owner.get()
        while True:
            await self._wait_while_slowed(call, gate)
            try:
                await self._attempt(call, gate)
            except ProviderError as error:
                if lessons < MAX_LESSONS and self._learn(call, error):
                    lessons += 1
                    continue
                if lessons:
                    self._lessons.refused()
                if not call.was_refused_here:
                    self.last_error = gate.last_error = error.problem[:MAX_REMEMBERED_CHARS]
                pause_s = self._pause_s(call, gate, error, attempt)
                if pause_s is None:
                    raise
                await self._say(call, error.problem, max(pause_s, gate.left_s(owner)))
                call.answer = self._empty_answer()
                self._recorder.count("provider_retries_total", provider=self.family.name)
                await self._clocks.sleep(pause_s)
                attempt += 1
            else:
                self.last_error = gate.last_error = None
                self._lessons.answered()
                return attempt

    async def _attempt(self, call: ProviderCall, gate: ModelGate) -> None:
        call.may_repeat, call.retry_after_s, call.request_id = True, None, None
        call.refusal, call.was_refused_here = None, False
        started = self._clocks.monotonic()
        outcome = "error"
        answered = False
        try:
            async with self._place(), self.gates.passing(call.model) as attempt:
                gate.begin(call, request_owner.get())
                await self._transport.run(call, attempt)
            outcome, answered = "ok", True
        except BreakerOpen as refused:
            outcome = "not_sent"
            call.may_repeat, call.was_refused_here = False, True
            raise self._left_alone(gate, refused) from None
        except asyncio.CancelledError:
            outcome = "deadline" if asyncio.get_running_loop().time() >= call.until else "cancelled"
            raise
        except ExaiError as error:
            outcome = error.code
            answered = not isinstance(error, ProviderLimited)
            raise
        finally:
            gate.end(call, request_owner.get(), answered=answered)
            self._record(call, outcome, self._clocks.monotonic() - started)

    @asynccontextmanager
    async def _place(self) -> AsyncIterator[None]:
        """Hold one of the provider's connections, which the owners share. Raises `Overloaded`."""
        owner, what = request_owner.get(), f"connections to {self.family.name}"
        try:
            await self._places.take(owner, self._place_limit_s, what)
        except TimeoutError as error:
            raise Overloaded(what, self._places.size) from error
        try:
            yield
        finally:
            self._places.give(owner)

    def _learn(self, call: ProviderCall, error: ProviderError) -> bool:
        """Change the request for an endpoint that refused a part of it; return whether it may be sent again."""
        refusal = call.refusal
        if refusal is None or call.answer.started:
            return False
        if not self._lessons.learn(call.model, call.fields, refusal.status, refusal.said, refusal.params):
            return False
        before = call.fields
        self._rebuild(call)
        if call.fields == before:
            return False
        log.info("provider_request_adapted", provider=error.provider, model=call.model.label, reason=error.problem)
        return True

    def _rebuild(self, call: ProviderCall) -> None:
        """Make the body of the next request, from the fields that the endpoint accepts and the results of its tools."""
        search = ToolRounds(call.tools, call.tail)
        call.fields = build_body(call.model, self.family, call.request, self._lessons.of(call.model), search)
        call.body, call.answer = encode_body(call.fields), self._empty_answer()

    async def _wait_while_slowed(self, call: ProviderCall, gate: ModelGate) -> None:
        """Wait until the model may be called again; raise at once if that exceeds the request's deadline."""
        owner = request_owner.get()
        while (wait_s := gate.left_s(owner)) > 0:
            if not self._fits(call, wait_s):
                raise ProviderLimited(
                    self.family.name,
                    f"has asked for a pause that outlasts this request, for {call.model.name}",
                    f"Try again in {wait_s:.0f} s, or use another model",
                    retry_after_s=wait_s,
                )
            await self._say(call, f"has asked for a pause, for {call.model.name}", wait_s)
            await self._clocks.sleep(wait_s + RETRY_AFTER_JITTER_S * self._clocks.rand())

    async def _say(self, call: ProviderCall, reason: str, wait_s: float) -> None:
        """Report the reason of a wait to the caller, at once and in the notes of the answer."""
        ends_at = self._clocks.monotonic() + wait_s
        if wait_s >= TOLD_WAIT_S and ends_at - call.told_until >= TOLD_WAIT_S:
            call.told_until = ends_at
            note = f"waiting {wait_s:.0f} s for {self.family.name}, which {reason}"
            call.notes[f"the answer was waited for: {self.family.name} {reason}"] = None
            if call.on_delta is not None:
                await call.on_delta(Delta(note=note))

    def _pause_s(self, call: ProviderCall, gate: ModelGate, error: ProviderError, attempt: int) -> float | None:
        """Return the seconds before the next attempt, None if there must not be one."""
        repeatable = isinstance(error, ProviderUnavailable | ProviderBroken | ProviderLimited)
        if isinstance(error, ProviderLimited) and error.exhausted:
            repeatable = False
        if repeatable and call.retry_after_s is not None:
            # A limit of the key holds for every owner; overload or a failure may have met only this request.
            is_of_key = isinstance(error, ProviderLimited) and not error.overloaded
            gate.ask(call.retry_after_s, request_owner.get(), of_key=is_of_key)
        if not repeatable or not call.may_repeat or call.answer.started or attempt >= self._max_attempts:
            return None
        pause_s = 0.0
        if call.retry_after_s is None:
            pause_s = backoff_s(attempt, RETRY_BASE_S, RETRY_CAP_S, rand=self._clocks.rand)
        if not self._fits(call, max(pause_s, gate.left_s(request_owner.get()))) or not self._budget.take():
            return None
        return pause_s

    def _fits(self, call: ProviderCall, wait_s: float) -> bool:
        is_short = call.patience_s is None or wait_s <= call.patience_s
        return is_short and asyncio.get_running_loop().time() + wait_s < call.until

    def _left_alone(self, gate: ModelGate, refused: BreakerOpen) -> ProviderUnavailable:
        last_error = self.last_error if refused.dependency == self.family.name else gate.last_error
        last = f", last with: {last_error}" if last_error else ""
        return ProviderUnavailable(
            self.family.name,
            f"was not asked, because it failed repeatedly{last}",
            f"Try again in {max(refused.retry_after_s, 1):.0f} s, or use a model of another provider",
        )

    def _empty_answer(self) -> AnswerAssembler:
        return AnswerAssembler(MAX_ANSWER_BYTES, self._max_content_bytes)

    def _completion(self, call: ProviderCall, attempts: int, duration_s: float) -> Completion:
        answer, usage = call.answer, usage_of(call)
        for kind, tokens in (
            ("input", usage.input_tokens),
            ("output", usage.output_tokens),
            ("cached", usage.cached_tokens),
            ("reasoning", usage.reasoning_tokens),
        ):
            self._recorder.count(
                "provider_tokens_total", tokens, provider=self.family.name, model=call.model.label, kind=kind
            )
        unread = answer.unread + len(answer.named)
        if unread:
            self._recorder.count("provider_unread_total", unread, provider=self.family.name, model=call.model.label)
        returns = call.model.returns_reasoning or self._lessons.of(call.model).returns_reasoning
        field = answer.reasoning_field if answer.reasoning_field in RETURNED_FIELDS else REASONING_FIELD
        sources = call.sources | answer.sources if call.request.web_search else {}
        searches = call.searches or int(bool(sources))
        return Completion(
            returned_reasoning=Reasoning(self.family.name, field, answer.reasoning) if returns else None,
            content=text_of(call),
            reasoning="".join(each.reasoning for each in (*call.earlier, answer)),
            finish_reason=answer.finish_reason or "other",
            usage=usage,
            provider=self.family.name,
            model=answer.model or call.model.wire_name,
            request_id=call.request_id or answer.request_id,
            duration_ms=duration_s * 1000,
            attempts=attempts,
            is_partial=answer.is_partial,
            unread_events=unread,
            is_refusal=answer.refuses,
            answered_by=call.model.name,
            sources=tuple(sources.values()),
            searches=searches,
            search_usd=None if self.family.search_usd is None else searches * self.family.search_usd,
            notes=(*self._left_out(call), *call.notes, *_notes(answer)),
        )

    def _left_out(self, call: ProviderCall) -> Iterator[str]:
        """Yield a note for each of the caller's options that was not sent because the endpoint does not accept it."""
        request, accepted = call.request, self._lessons.of(call.model)
        if not accepted.dropped:
            return
        wanted = build_body(call.model, self.family, request, search=ToolRounds(call.tools))
        for name in sorted(wanted.keys() & accepted.dropped - {"stream", STREAM_OPTIONS}):
            yield f"{self.family.name} does not accept {name}, so that it was not sent"

    def _record(self, call: ProviderCall, outcome: str, duration_s: float) -> None:
        labels = {"provider": self.family.name, "model": call.model.label, "outcome": outcome}
        self._recorder.count("provider_requests_total", **labels)
        if outcome != "not_sent":
            self._recorder.observe("provider_seconds", duration_s, **labels)


def text_of(call: ProviderCall) -> str:
    """Return the text of all answers of a call, which its caller has received piece by piece."""
    return "".join(each.content for each in (*call.earlier, call.answer))


def usage_of(call: ProviderCall) -> Usage:
    """Return what all requests of a call have used."""
    used = [each.usage for each in (*call.earlier, call.answer)]
    reported = [each.cost_usd for each in used if each.cost_usd is not None]
    return Usage(
        sum(each.input_tokens for each in used),
        sum(each.output_tokens for each in used),
        sum(each.cached_tokens for each in used),
        sum(each.reasoning_tokens for each in used),
        sum(reported, Decimal(0)) if reported else None,
    )


def _notes(answer: AnswerAssembler) -> Iterator[str]:
    """Yield notes about parts of the answer that may be missing."""
    if answer.lost:
        yield f"the answer may be incomplete: after the model's finish reason {answer.lost}"
    if answer.unread:
        yield f"the answer may be incomplete: {answer.unread} events of the provider's stream could not be read"
    if answer.named:
        yield f"the model's answer also held {', '.join(answer.named)}, which EXAI does not read"
