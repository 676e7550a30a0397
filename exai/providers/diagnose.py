"""Check the model providers for `exai doctor`: whether each answers, accepts its key, and lists the configured models.

Uses no tokens.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator, Mapping
from typing import Final

import httpx

from exai.models import Finding
from exai.providers.base import Clocks
from exai.providers.catalogue import Catalogue, load_catalogue
from exai.providers.completion.http_client import headers_for, open_client
from exai.providers.discovery import MAX_LIST_BYTES, read_list
from exai.providers.endpoints import Site, read_sites
from exai.providers.naming import ModelNames
from exai.settings.load import ProvidersSettings

PATH: Final = "/models"
MAX_PROVIDERS: Final = 32
REFUSED: Final = frozenset({401, 403})
"""Statuses for an invalid key."""


async def diagnose(settings: ProvidersSettings, *, timeout_s: float = 5.0) -> list[Finding]:
    """Ask every configured provider for its list of models, all at once. Raises ConfigError."""
    sites = read_sites(settings)
    catalogue = load_catalogue(settings.models_file, {name: site.family for name, site in sites.items()})
    configured = [site for site in sites.values() if site.configured][:MAX_PROVIDERS]
    lists: dict[str, frozenset[str]] = {}
    found = await asyncio.gather(*(_ask(site, settings, timeout_s, lists) for site in configured))
    found += _unlisted(settings, sites, catalogue, lists)
    off = [
        Finding(_part(site), "off", "no key", f"Set {site.family.key_setting}")
        for site in sites.values()
        if not site.configured and site.is_reported
    ]
    return [*found, *off]


def _part(site: Site) -> str:
    return f"provider {site.family.name}"


def _unlisted(
    settings: ProvidersSettings, sites: Mapping[str, Site], catalogue: Catalogue, lists: Mapping[str, frozenset[str]]
) -> Iterator[Finding]:
    """Yield a warning for each configured model that its provider does not list."""
    names = ModelNames(sites, catalogue, {}, default_model=settings.default_model, clocks=Clocks(), lists=lists)
    named = names.named_in(settings)
    for provider in lists:
        for warning in names.warnings(provider, named):
            yield Finding(_part(sites[provider]), "warn", warning, "Name a model that listmodels shows as served")


async def _ask(site: Site, settings: ProvidersSettings, timeout_s: float, lists: dict[str, frozenset[str]]) -> Finding:
    started = time.perf_counter()
    try:
        async with (
            asyncio.timeout(timeout_s),
            open_client(site.base_url, settings, httpx.create_ssl_context()) as client,
        ):
            headers = headers_for(site.key, "application/json")
            async with client.stream("GET", site.base_url + PATH, headers=headers) as response:
                status = response.status_code
                if status == 200 and (listed := read_list(await _beginning(response))) is not None:
                    lists[site.family.name] = listed
    except TimeoutError:
        return _unreachable(site, f"no answer from {site.base_url} within {timeout_s:g} s")
    except httpx.HTTPError as error:
        return _unreachable(site, f"cannot reach {site.base_url}: {type(error).__name__}")
    return _judge(site, status, f"{site.base_url}, {(time.perf_counter() - started) * 1000:.0f} ms")


async def _beginning(response: httpx.Response) -> bytes:
    body = b""
    async for chunk in response.aiter_raw():
        body += chunk
        if len(body) > MAX_LIST_BYTES:
            break
    return body


def _unreachable(site: Site, problem: str) -> Finding:
    return Finding(_part(site), "fail", problem, "Check the address, the network and, if there is one, the proxy")


def _judge(site: Site, status: int, seen: str) -> Finding:
    part = _part(site)
    if status in REFUSED:
        cure = f"Check {site.family.key_setting}; keys of one region or plan are not valid at another's address"
        return Finding(part, "fail", f"{seen}: the key was not accepted (HTTP {status})", cure)
    if status >= 500 or status == 429:
        return Finding(part, "warn", f"{seen}: answers HTTP {status}", "Try again later")
    if status >= 400:
        # Some compatible servers have no list of models; an answer is all that can be checked.
        return Finding(part, "ok", f"{seen}: answers, without a list of models (HTTP {status})")
    if status >= 300:
        return Finding(part, "fail", f"{seen}: redirects (HTTP {status})", "Give the address it redirects to")
    return Finding(part, "ok", seen)
