"""The configured providers behind one object, which the rest of EXAI uses for models and completions.

A request that names no model gets EXAI_PROVIDERS__DEFAULT_MODEL, else the catalogue's default for the first configured
provider, else the first model of the first endpoint. There is no silent fallback: a failure of a provider is an error.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from datetime import timedelta
from decimal import Decimal
from typing import Final

import httpx

from exai import tracing
from exai.background import Background
from exai.errors import InvalidArgument, NotConfigured, ProviderUnknownModel
from exai.models import Completion, CompletionRequest, OnDelta, Prompt, Thinking
from exai.providers.base import Clocks, Model, ModelInfo, Pricing, ProviderStatus
from exai.providers.completion.client import ChatApi
from exai.providers.completion.extraction import FileExtract
from exai.providers.completion.identity import identity_of
from exai.providers.completion.request import check_options
from exai.providers.completion.search.tool_search import MAX_SEARCHES
from exai.providers.completion.sizing import Sizing
from exai.providers.discovery import Discovery
from exai.providers.endpoints import Site
from exai.providers.fallback import FallbackChain
from exai.providers.naming import ModelNames
from exai.providers.prices import Prices
from exai.settings.addresses import is_loopback

RETIRES_SOON: Final = timedelta(days=60)
LISTS_PAUSE_S: Final = 86_400.0
"""How often the providers' lists of models are read in the background."""

FITS_EVERY_WINDOW_TOKENS: Final = 1_024
"""Size of a prompt that is sent without knowing the window: half of 2,048 tokens, the smallest default of a server."""


class Providers:
    """The configured providers; built by `open_providers`, safe for any number of tasks of one event loop."""

    def __init__(
        self,
        sites: Mapping[str, Site],
        names: ModelNames,
        chats: Mapping[str, ChatApi],
        discoveries: Mapping[str, Discovery],
        clocks: Clocks,
        *,
        background: Background,
        named: tuple[str, ...] = (),
        fallback: tuple[str, ...] = (),
        pricing: Pricing,
    ) -> None:
        self._sites, self._names, self._chats = sites, names, chats
        self._discoveries, self._clocks = discoveries, clocks
        self.sizing, self.prices = Sizing(), Prices(pricing, clocks)
        self._fallback = FallbackChain(
            fallback, names.resolve, self.sizing.room, self._can_search, self.prices.is_affordable
        )
        self._background, self._named = background, named
        self._refreshing: asyncio.Task[None] | None = None

    def resolve(self, model: str | None) -> Model:
        """Return the model of that name or alias, or the default for None, "" and "auto". No I/O.

        Raises `NotConfigured` naming the variables to set, or `InvalidArgument` with the nearest names for a name
        that is unknown, ambiguous or retired.
        """
        return self._names.resolve(model)

    def check(
        self,
        model: Model,
        *,
        max_output_tokens: int | None = None,
        thinking: Thinking | None = None,
        temperature: float | None = None,
        web_search: bool = False,
    ) -> None:
        """Raise `InvalidArgument` for an option the model cannot honour, before anything is stored or sent."""
        check_options(model, max_output_tokens=max_output_tokens, thinking=thinking, temperature=temperature)
        if web_search and not self._can_search(model):
            able = [name for name, site in self._sites.items() if site.configured and site.family.can_search]
            cure = f"Use a model of {' or '.join(able)}, or leave it out" if able else "Leave it out"
            raise InvalidArgument("web_search", f"{model.name} cannot search the web", cure)

    def _can_search(self, model: Model) -> bool:
        return self._sites[model.provider].family.can_search

    async def complete(
        self, model: Model, request: CompletionRequest, on_delta: OnDelta | None, *, may_replace: bool = True
    ) -> Completion:
        """Call `model`, a result of `resolve`, and others of the chain that the user has set if it cannot answer.

        Without `may_replace` no other model is called: each member of a panel is one model, independent of the others.
        Guarantees and errors are those of `ChatApi.complete`, and of `FallbackChain.complete`.
        """
        if not may_replace:
            return await self._ask(model, request, on_delta, None)
        return await self._fallback.complete(model, request, on_delta, self._ask)

    async def count_tokens(self, model: Model, messages: Sequence[Prompt]) -> int | None:
        """Return the provider's own count of the tokens of a prompt; None if it offers none. Raises `CountFailed`."""
        counter = self._chats[model.provider].counter
        return None if counter is None else await counter.count(model, messages)

    def identity(self, model: Model, request: CompletionRequest) -> str:
        """Return the digest of all that the answer of `model` depends on. Raises as `complete`, before it asks."""
        site = self._sites[model.provider]
        return identity_of(site.family, site.base_url, model, request)

    def extract(self, model: Model) -> FileExtract | None:
        """Return the extraction of texts from documents for a model; None if its provider has none."""
        return self._chats[model.provider].extract

    def extracts(self) -> list[FileExtract]:
        """Return the extractions of texts from documents, of all providers that have one."""
        return [chat.extract for chat in self._chats.values() if chat.extract is not None]

    def answered(self, model: Model, completion: Completion) -> Model:
        """Return the model that made `completion`, for which `model` was asked."""
        name = completion.answered_by
        return model if name in (None, model.name) else self._names.find(name or "") or model

    async def _ask(
        self, model: Model, request: CompletionRequest, on_delta: OnDelta | None, patience_s: float | None
    ) -> Completion:
        try:
            with tracing.model_span(model.provider, model.label, request.max_output_tokens) as span:
                completion = await self._chats[model.provider].complete(model, request, on_delta, patience_s)
                if tracing.is_on():
                    span.set(tracing.RESPONSE_MODEL, completion.model)
                    span.set(tracing.RESPONSE_ID, completion.request_id)
                    span.set(tracing.FINISH_REASONS, [completion.finish_reason])
                    tracing.set_usage(span, completion.usage)
                return completion
        except ProviderUnknownModel as error:
            self._refresh(model.provider)
            nearest = self._names.nearest(model)
            if nearest:
                error.cure = f"Use {' or '.join(nearest)}"
            raise

    async def find(self, model: str | None) -> Model:
        """Resolve a name as `resolve`; for an unknown name, wait for the first query of the endpoints."""
        try:
            return self._names.resolve(model)
        except (InvalidArgument, NotConfigured):
            first = [each.refresh() for each in self._discoveries.values() if not (each.has_answered or each.wanted)]
            if not first:
                raise
        await asyncio.gather(*first)
        return self._names.resolve(model)

    async def prepare(self, model: Model, *, prompt_tokens: int | None = None) -> Model:
        """Return the model with the data queried from its endpoint.

        Waits for the first query, for a few seconds, unless a prompt of `prompt_tokens` fits every window in use.
        """
        discovery = self._discoveries.get(model.provider)
        if discovery is None:
            return model
        if not discovery.has_answered:
            # The catalogue's data of a model suffices, so the list of its provider is not waited for.
            if discovery.is_described and not self._names.is_bare(model):
                return model
            if prompt_tokens is None or prompt_tokens > FITS_EVERY_WINDOW_TOKENS:
                await discovery.refresh()
        elif discovery.is_due and (self._refreshing is None or self._refreshing.done()):
            self._refreshing = self._background.start("provider-refresh", self.discover())
        return self._names.find(model.name) or model

    def total_usd(self, model: Model, completion: Completion) -> Decimal | None:
        """Return the cost of `completion`, which `model` was asked for; None if the price of its tokens is unknown.

        It consists of the tokens, at the price of the model that answered, and of the searches of the web. An answer of
        the answer cache is free.
        """
        if completion.origin is not None:
            return Decimal(0)
        tokens_usd = self.prices.cost_usd(self.answered(model, completion), completion.usage)
        return tokens_usd if tokens_usd is None else tokens_usd + (completion.search_usd or 0)

    def may_answer(self, model: Model) -> list[Model]:
        """Return the models that may answer when `model` is asked: itself, and those of the chain."""
        return [model, *self._fallback.after(model)]

    def most_search_usd(self, model: Model) -> Decimal:
        """Return the highest cost of the searches of one answer."""
        family = self._sites[model.provider].family
        return (family.search_usd or Decimal(0)) * (MAX_SEARCHES if family.search_formula else 1)

    def models(self) -> list[ModelInfo]:
        """Return every model that is not retired, callable ones first."""
        try:
            default = self._names.resolve(None).name
        except (InvalidArgument, NotConfigured):
            default = None
        infos = [self._info(model, default) for model in self._names.listed()]
        return sorted(infos, key=lambda info: not info.configured)

    def status(self) -> tuple[ProviderStatus, ...]:
        """Return the state of every provider, configured or not, from earlier requests; no provider is called."""
        models = list(self._names.listed())
        return tuple(
            self._status(site, [model for model in models if model.provider == name])
            for name, site in self._sites.items()
            if site.is_reported
        )

    async def discover(self) -> None:
        """Query endpoints periodically for models and windows that are not configured; errors are not raised."""
        await asyncio.gather(*(discovery.refresh() for discovery in self._discoveries.values()))

    async def keep_lists(self) -> None:
        """Read the lists of models now and every day, until cancelled."""
        while True:
            await self.discover()
            await asyncio.sleep(LISTS_PAUSE_S)

    def _refresh(self, provider: str) -> None:
        """Read a provider's list again in the background: it did not serve a model."""
        discovery = self._discoveries.get(provider)
        if discovery is not None:
            discovery.expire()
            if self._refreshing is None or self._refreshing.done():
                self._refreshing = self._background.start("provider-refresh", self.discover())

    def _info(self, model: Model, default: str | None) -> ModelInfo:
        return ModelInfo(
            name=model.name,
            provider=model.provider,
            configured=model.provider in self._chats,
            default=model.name == default,
            context_window=model.context_window,
            max_output_tokens=model.max_output_tokens,
            thinking=tuple(model.thinking),
            default_thinking=model.default_thinking,
            aliases=model.aliases,
            price=model.price_on(self._clocks.now().date()),
            retires=model.retires,
            successor=model.successor,
            served=self._names.is_served(model),
        )

    def _status(self, site: Site, models: list[Model]) -> ProviderStatus:
        name = site.family.name
        chat = self._chats.get(name)
        return ProviderStatus(
            name=name,
            configured=site.configured,
            base_url=site.base_url,
            breaker="closed" if chat is None else chat.gates.state,
            retry_after_s=0.0 if chat is None else chat.gates.retry_after_s,
            last_error=None if chat is None else chat.last_error,
            models=len(models),
            notes=tuple(self._notes(site, models)) if site.configured else (),
            token_factors=self.sizing.learned(name),
        )

    def _notes(self, site: Site, models: list[Model]) -> list[str]:
        soon = self._clocks.now().date() + RETIRES_SOON
        notes = [
            f"{model.name} {'was to retire' if self._names.is_past(model) else 'retires'} after {model.retires}"
            + (f"; use {model.successor}" if model.successor else "")
            for model in models
            if model.retires is not None and model.retires <= soon and self._names.is_served(model) is not False
        ]
        notes += self._names.warnings(site.family.name, self._named)
        chat = self._chats.get(site.family.name)
        if chat is not None and chat.gates.state == "closed":
            notes += [f"{name} is left alone for now, because it failed repeatedly" for name in chat.gates.failing()]
        discovery = self._discoveries.get(site.family.name)
        if discovery is not None and not discovery.wanted and discovery.problem not in (None, *discovery.no_list):
            notes.append(f"its list of models could not be read: {discovery.problem}")
        url = httpx.URL(site.base_url)
        if site.key and url.scheme == "http" and not is_loopback(url.host):
            notes.append("its key travels unencrypted, because the base URL is http")
        return notes
