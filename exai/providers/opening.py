"""Opens the configured providers: a client for each, the queries for their models, and the names of the catalogue.

Invariant: a wrong setting is an error at start, which names the variable or the key of the models file.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable
from contextlib import AsyncExitStack, asynccontextmanager

import httpx

from exai.background import open_background
from exai.errors import ConfigError, InvalidArgument
from exai.models import Recorder
from exai.providers.base import Clocks, Pricing
from exai.providers.catalogue import load_catalogue
from exai.providers.completion.client import ChatApi
from exai.providers.completion.counting import counter_of
from exai.providers.completion.exchange import HttpTransport
from exai.providers.completion.extraction import extract_of
from exai.providers.completion.http_client import HttpClients
from exai.providers.completion.search.tool_search import search_of
from exai.providers.discovery import Discovery
from exai.providers.endpoints import Site, read_sites
from exai.providers.fallback import SETTING as FALLBACK_SETTING
from exai.providers.naming import DEFAULT_SETTING, ModelNames
from exai.providers.registry import Providers
from exai.settings.load import LimitSettings, ProvidersSettings


@asynccontextmanager
async def open_providers(
    settings: ProvidersSettings,
    *,
    recorder: Recorder,
    limits: LimitSettings,
    clocks: Clocks | None = None,
    pricing: Pricing | None = None,
) -> AsyncIterator[Providers]:
    """Open a client for every configured provider; a background task queries their lists of models.

    Raises `ConfigError` naming the variable or the key of the models file that is wrong.
    """
    clocks = clocks or Clocks()
    sites = read_sites(settings)
    catalogue = load_catalogue(settings.models_file, {name: site.family for name, site in sites.items()})
    async with AsyncExitStack() as stack:
        chats: dict[str, ChatApi] = {}
        discoveries: dict[str, Discovery] = {}
        clients = HttpClients(settings)
        for name, site in sites.items():
            if not site.configured:
                continue
            client = await stack.enter_async_context(clients.open(site.base_url))
            exchange = HttpTransport(
                site.family,
                client,
                base_url=site.base_url,
                key=site.key,
                settings=settings,
                recorder=recorder,
                clocks=clocks,
            )
            chats[name] = ChatApi(
                site.family,
                exchange,
                max_attempts=settings.max_attempts,
                max_content_bytes=limits.message_bytes,
                recorder=recorder,
                clocks=clocks,
                place_limit_s=settings.connect_timeout_s,
                max_concurrent=site.max_concurrent,
                counter=counter_of(site.family, client, site.base_url, site.key, recorder),
                search=search_of(site.family, client, site.base_url, site.key),
                extract=extract_of(site.family, client, site.base_url, site.key, recorder),
            )
            if (discovery := _discovery(site, client, clocks, settings.connect_timeout_s)) is not None:
                discoveries[name] = discovery
        names = ModelNames(sites, catalogue, discoveries, default_model=settings.default_model, clocks=clocks)
        is_open_ended = any(site.endpoint is not None and not site.endpoint.models for site in sites.values())
        if not is_open_ended:
            _check_named(DEFAULT_SETTING, filter(None, [settings.default_model]), names)
            _check_named(FALLBACK_SETTING, settings.fallback, names)
        background = await stack.enter_async_context(open_background())
        named = names.named_in(settings)
        providers = Providers(
            sites,
            names,
            chats,
            discoveries,
            clocks,
            background=background,
            named=named,
            fallback=settings.fallback,
            pricing=pricing or Pricing(),
        )
        background.start("provider-lists", providers.keep_lists())
        yield providers


def _discovery(site: Site, client: httpx.AsyncClient, clocks: Clocks, limit_s: float) -> Discovery | None:
    """Return the queries for the models of a provider; None if the settings describe all of them."""
    endpoint = site.endpoint
    if endpoint is not None and endpoint.models and endpoint.context_window is not None:
        return None
    return Discovery(
        site.family,
        site.base_url,
        site.key,
        client,
        clocks,
        wanted=endpoint.models if endpoint is not None else (),
        is_described=endpoint is None,
        limit_s=limit_s,
    )


def _check_named(setting: str, chosen: Iterable[str], names: ModelNames) -> None:
    """Refuse a configured name that no provider can have. A retired one, or one without a key, fails when requested."""
    for name in chosen:
        try:
            found = names.find(name)
        except InvalidArgument:
            continue
        if found is None:
            unknown = names.unknown(name)
            raise ConfigError(setting, unknown.problem, unknown.cure)
