"""Types that describe models and providers, and the interface between the client and its transport; no I/O.

A provider is described by data (`Family`): its address, the parameters it accepts and the meaning of its error codes.
One client (`chat_api`) serves all providers.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Any, Final, Literal, Protocol

from exai.models import CompletionRequest, OnDelta, Thinking, Usage, WebSource
from exai.providers.reply.answer import AnswerAssembler
from exai.resilience import Attempt, BreakerState, Clock, Random

LimitField = Literal["max_tokens", "max_completion_tokens"]

FailureKind = Literal["refused", "unknown_model", "auth", "limited", "exhausted", "overloaded", "unavailable"]
"""Meaning of an error: invalid request, no such model, invalid key, rate limit of the key, no quota or balance, too
much load of all callers, provider failure."""

WEB_SEARCH = "moonshot/web-search:latest"
"""Kimi's tool for the web."""

TOKENS_PER_PRICE = 1_000_000
ImageFormat = Literal["png", "jpeg", "webp", "gif"]
IMAGE_FORMATS: Final[tuple[ImageFormat, ...]] = ("png", "jpeg", "webp", "gif")


@dataclass(frozen=True, slots=True)
class Price:
    """Prices in US dollars per million tokens."""

    input: Decimal
    output: Decimal
    cached: Decimal

    def cost_usd(self, usage: Usage) -> Decimal:
        """Return the price of `usage`; cached input has its own."""
        cached = min(usage.cached_tokens, usage.input_tokens)
        total = (usage.input_tokens - cached) * self.input + cached * self.cached + usage.output_tokens * self.output
        return total / TOKENS_PER_PRICE


@dataclass(frozen=True, slots=True)
class Pricing:
    """For models without a known price: the `assumed` one, or whether they are refused."""

    assumed: Price | None = None
    is_required: bool = False


@dataclass(frozen=True, slots=True)
class ImageLimits:
    """How many images a model reads in one request, the size of each and of all, the longest side, and the formats."""

    count: int
    size_bytes: int
    total_bytes: int | None = None
    side_pixels: int | None = None
    formats: tuple[ImageFormat, ...] = IMAGE_FORMATS


@dataclass(frozen=True, slots=True)
class Model:
    """One model; `wire_name` is its name in requests to the provider.

    `thinking` maps each level the model can honour to the fields that ask for it, `temperature` is the range it
    accepts, None when it accepts none. `known` is false for a name that only an endpoint can judge. `later_prices` hold
    the first day of each price after `price`, in the order of the days.
    """

    name: str
    provider: str
    wire_name: str
    context_window: int
    max_output_tokens: int
    thinking: Mapping[Thinking, Mapping[str, Any]] = field(default_factory=dict)
    default_thinking: Thinking | None = None
    temperature: tuple[float, float] | None = None
    limit_field: LimitField = "max_tokens"
    stream_usage: bool = True
    price: Price | None = None
    later_prices: tuple[tuple[date, Price], ...] = ()
    aliases: tuple[str, ...] = ()
    retires: date | None = None
    successor: str | None = None
    known: bool = True
    images: ImageLimits | None = None
    returns_reasoning: bool = False
    """Whether the endpoint demands the reasoning of earlier answers with a question."""

    @property
    def label(self) -> str:
        """The model's label in metrics; names invented by callers share one, which limits the number of series."""
        return self.name if self.known else f"{self.provider}/*"

    def price_on(self, day: date) -> Price | None:
        """Return the price on a day, None if it is not known."""
        valid = [price for first_day, price in self.later_prices if first_day <= day]
        return valid[-1] if valid else self.price


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """A model as it is listed. `configured`: it could be called now; `default`: a request without a name gets it."""

    name: str
    provider: str
    configured: bool
    default: bool
    context_window: int
    max_output_tokens: int
    thinking: tuple[Thinking, ...]
    default_thinking: Thinking | None
    aliases: tuple[str, ...]
    price: Price | None
    retires: date | None
    successor: str | None
    served: bool | None = None
    """Whether the provider lists it; None if there is no list."""


@dataclass(frozen=True, slots=True)
class TokenFactor:
    """The tokens that a model counts per estimated one: mean of `counts` prompts, and its mean relative deviation."""

    model: str
    factor: float
    spread: float
    counts: int


@dataclass(frozen=True, slots=True)
class ProviderStatus:
    """The state of a provider. `notes` are sentences for the operator, for example about models that retire soon."""

    name: str
    configured: bool
    base_url: str
    breaker: BreakerState
    retry_after_s: float
    last_error: str | None
    models: int
    notes: tuple[str, ...]
    token_factors: tuple[TokenFactor, ...] = ()


@dataclass(frozen=True, slots=True)
class Family:
    """The rules of one provider. `verdicts` maps its error types and codes, `statuses` HTTP statuses it uses oddly.

    `key_setting` names the variables that hold the key. `needs_user_message`: a list without one is rejected.
    `open_temperature_range`: the ends of the range are rejected. `takes_any_order`: messages of one role may follow
    each other, and the first may be the model's. `takes_any_name`: models that the catalogue does not name may be
    asked before the provider's list is read. `is_optional`: without a key it is not reported. `thinking` asks models
    that the catalogue does not describe; `with_options` is sent with thinking or temperature. `count_path` is where
    the provider counts the tokens of a prompt. `extracts_text`: it reads the text of documents that are uploaded.
    `search_fields` ask for a search of the web, or `search_formula` names the tool that does it; `search_usd` is the
    price of one search.
    """

    name: str
    base_url: str
    key_setting: str
    limit_field: LimitField
    stream_usage: bool
    needs_user_message: bool = False
    open_temperature_range: bool = False
    takes_any_order: bool = False
    takes_any_name: bool = False
    is_optional: bool = False
    thinking: Mapping[Thinking, Mapping[str, Any]] = field(default_factory=dict)
    with_options: Mapping[str, Any] = field(default_factory=dict)
    search_fields: Mapping[str, Any] = field(default_factory=dict)
    search_formula: str | None = None
    search_usd: Decimal | None = None
    verdicts: Mapping[str, FailureKind] = field(default_factory=dict)
    statuses: Mapping[int, FailureKind] = field(default_factory=dict)
    count_path: str | None = None
    extracts_text: bool = False
    request_id_headers: tuple[str, ...] = ("x-request-id", "x-trace-id")

    @property
    def can_search(self) -> bool:
        """Return whether its models can be asked to search the web."""
        return bool(self.search_fields) or self.search_formula is not None


@dataclass(frozen=True, slots=True)
class Clocks:
    """Clocks and randomness, replaceable in tests. `monotonic` measures durations, `now` is used for dates only."""

    monotonic: Clock = time.monotonic
    now: Callable[[], datetime] = lambda: datetime.now(UTC)
    sleep: Callable[[float], Awaitable[object]] = asyncio.sleep
    rand: Random = random.random


@dataclass(frozen=True, slots=True)
class ProviderRefusal:
    """The parts of a refusal from which a changed request is derived: status, error message, rejected fields."""

    status: int | None
    said: str
    params: tuple[str, ...] = ()


@dataclass(slots=True)
class ProviderCall:
    """One request; `answer` holds the answer of the current attempt so far.

    `until` is when the caller's time ends (`loop.time()`). `may_repeat` and `retry_after_s` say what the provider's
    last reply means for another attempt, `refusal` what it said. `patience_s` limits the pauses that are waited for.
    `notes` are sentences for the caller, who knows of waits that end before `told_until` (monotonic). `tools` are
    offered to the model; `tail` holds its calls of them and their results, `earlier` the answers that made them.
    """

    model: Model
    request: CompletionRequest
    fields: Mapping[str, Any]
    body: bytes
    on_delta: OnDelta | None
    until: float
    answer: AnswerAssembler
    request_id: str | None = None
    may_repeat: bool = True
    retry_after_s: float | None = None
    refusal: ProviderRefusal | None = None
    was_refused_here: bool = False
    notes: dict[str, None] = field(default_factory=dict)
    told_until: float = 0.0
    patience_s: float | None = None
    tools: Sequence[Mapping[str, Any]] = ()
    tail: list[Mapping[str, Any]] = field(default_factory=list)
    earlier: list[AnswerAssembler] = field(default_factory=list)
    sources: dict[str, WebSource] = field(default_factory=dict)
    searches: int = 0


class Transport(Protocol):
    """Makes one attempt at an answer. Tests replace a provider by implementing this interface."""

    async def run(self, call: ProviderCall, attempt: Attempt) -> None:
        """Fill `call.answer` until it is complete; notifies `attempt` of the first piece. Raises a `ProviderError`."""
