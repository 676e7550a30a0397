"""Ask another model when one cannot answer: the chain that the user has set, in its order.

The chain is followed after overload, a rate limit, an outage and an unknown model. It is not followed for a key, a
balance or a request that is refused, nor after a piece of the answer has reached the caller.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Final

from exai.errors import (
    ExaiError,
    InvalidArgument,
    NotConfigured,
    Overloaded,
    ProviderBroken,
    ProviderError,
    ProviderLimited,
    ProviderUnavailable,
    ProviderUnknownModel,
)
from exai.models import Completion, CompletionRequest, Delta, OnDelta
from exai.providers.base import Model
from exai.token_estimate import text_tokens

SETTING: Final = "EXAI_PROVIDERS__FALLBACK"
PATIENCE_S: Final = 5.0
"""Longest pause that a provider may ask for while another model is left to ask."""

MAX_REASON_CHARS: Final = 160

Ask = Callable[[Model, CompletionRequest, OnDelta | None, float | None], Awaitable[Completion]]
"""Calls one model; the last argument is its patience in seconds, None for the whole time of the request."""


@dataclass(slots=True)
class _Watched:
    """Forwards deltas, and notes whether a piece of the answer was among them."""

    on_delta: OnDelta | None
    has_begun: bool = False

    async def __call__(self, delta: Delta) -> None:
        self.has_begun = self.has_begun or bool(delta.content or delta.reasoning)
        if self.on_delta is not None:
            await self.on_delta(delta)


@dataclass(frozen=True, slots=True)
class _Asked:
    """The call that failed: its model and request, who reads the answer, and how a model is called."""

    model: Model
    request: CompletionRequest
    watched: _Watched
    ask: Ask


class FallbackChain:
    """The models that are asked, in order, when another one cannot answer."""

    def __init__(
        self,
        names: Sequence[str],
        resolve: Callable[[str], Model],
        room: Callable[[Model, int | None], int],
        can_search: Callable[[Model], bool],
        is_affordable: Callable[[Model], bool],
    ) -> None:
        self._names, self._resolve, self._room = names, resolve, room
        self._can_search, self._is_affordable = can_search, is_affordable

    async def complete(
        self, model: Model, request: CompletionRequest, on_delta: OnDelta | None, ask: Ask
    ) -> Completion:
        """Return the answer of `model`, or of the first model of the chain that gives one.

        Raises the error of `model` if none answers; its problem then names the others that were asked.
        """
        rest = self.after(model)
        watched = _Watched(on_delta)
        try:
            return await ask(model, request, watched if rest else on_delta, PATIENCE_S if rest else None)
        except (ProviderError, Overloaded) as error:
            if not rest or watched.has_begun or not is_followed(error):
                raise
            return await self._follow(rest, _Asked(model, request, watched, ask), error)

    async def _follow(self, rest: Sequence[Model], asked: _Asked, first: ProviderError | Overloaded) -> Completion:
        request, watched = asked.request, asked.watched
        why = _reason(first)
        failed: list[str] = []
        for position, model in enumerate(rest):
            adapted, changes = _adapted(request, model)
            if request.web_search and not self._can_search(model):
                adapted = replace(adapted, web_search=False)
                changes.append(f"{model.name} cannot search the web, so that it answered without")
            if not self._is_affordable(model):
                failed.append(f"{model.name} was not asked, because a budget is set and it has no known price")
                continue
            if _size_tokens(request) > self._room(model, adapted.max_output_tokens):
                failed.append(f"{model.name} was not asked, because the prompt does not fit its window")
                continue
            note = f"asking {model.name}, because {asked.model.name} did not answer: {why}"
            await watched(Delta(note=note, model=model.name))
            patience_s = PATIENCE_S if position + 1 < len(rest) else None
            try:
                completion = await asked.ask(model, adapted, watched, patience_s)
            except (ProviderError, Overloaded) as error:
                if watched.has_begun:
                    raise
                failed.append(f"{model.name}: {_reason(error)}")
            else:
                said = (f"{model.name} answered instead of {asked.model.name}: {why}", *failed, *changes)
                return replace(completion, instead_of=asked.model.name, notes=(*said, *completion.notes))
        if isinstance(first, ProviderError):
            first.problem = "; ".join([first.problem, *failed])
        raise first

    def after(self, model: Model) -> list[Model]:
        """Return the models to ask after `model`: the chain without it, and without those that are not configured."""
        found: dict[str, Model] = {}
        for name in self._names:
            try:
                other = self._resolve(name)
            except (InvalidArgument, NotConfigured):
                continue
            if other.name != model.name:
                found.setdefault(other.name, other)
        return list(found.values())


def is_followed(error: ExaiError) -> bool:
    """Return whether another model may be asked after this error, by its class."""
    if isinstance(error, ProviderLimited):
        return not error.exhausted
    return isinstance(error, ProviderUnavailable | ProviderBroken | ProviderUnknownModel | Overloaded)


def _adapted(request: CompletionRequest, model: Model) -> tuple[CompletionRequest, list[str]]:
    """Return the request with only the options that `model` takes, and a sentence for each that is left out."""
    changes = list(_unfit(request, model))
    limit = request.max_output_tokens
    return (
        replace(
            request,
            model=model.name,
            thinking=request.thinking if request.thinking in model.thinking else None,
            max_output_tokens=None if limit is None else min(limit, model.max_output_tokens),
            temperature=request.temperature if _takes_temperature(model, request.temperature) else None,
        ),
        changes,
    )


def _unfit(request: CompletionRequest, model: Model) -> Iterator[str]:
    if request.thinking is not None and request.thinking not in model.thinking:
        yield f"{model.name} cannot be asked for thinking {request.thinking!r}, so that it was left out"
    if request.temperature is not None and not _takes_temperature(model, request.temperature):
        yield f"{model.name} does not take the temperature, so that it was left out"
    images = sum(len(message.images) for message in request.messages)
    if images and model.images is None:
        yield f"{model.name} reads no images, so that the {images} of the prompt were left out"


def _takes_temperature(model: Model, value: float | None) -> bool:
    return value is not None and model.temperature is not None and model.temperature[0] <= value <= model.temperature[1]


def _size_tokens(request: CompletionRequest) -> int:
    return sum(text_tokens(message.content) for message in request.messages)


def _reason(error: ProviderError | Overloaded) -> str:
    said = f"{error.provider} {error.problem}" if isinstance(error, ProviderError) else str(error)
    return said if len(said) <= MAX_REASON_CHARS else f"{said[:MAX_REASON_CHARS]}..."
