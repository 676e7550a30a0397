"""The providers of this installation: Kimi, GLM and the named endpoints, each with its address and key.

Everything that can be wrong with an address, a name or a key is found here, at start, and named by its variable.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import httpx
from pydantic import SecretStr

from exai.config import EndpointSettings, ProvidersSettings
from exai.errors import ConfigError
from exai.providers.base import Family
from exai.providers.glm import GLM
from exai.providers.kimi import KIMI

NAMED: Final[Mapping[str, Family]] = {KIMI.name: KIMI, GLM.name: GLM}

_ENDPOINT_NAME: Final = re.compile(r"[a-z0-9][a-z0-9_.-]{0,63}")
_KEY: Final = re.compile(r"[\x21-\x7e]{1,4096}")
_PATH: Final = "/chat/completions"


@dataclass(frozen=True, slots=True)
class Site:
    """One provider as configured here; `base_url` has no slash at its end. `endpoint` is None for Kimi and GLM."""

    family: Family
    base_url: str
    key: str
    configured: bool
    endpoint: EndpointSettings | None = None


def read_sites(settings: ProvidersSettings) -> dict[str, Site]:
    """Return every provider by name, Kimi and GLM first, configured or not. Raises `ConfigError`."""
    sites: dict[str, Site] = {}
    for family, section in ((KIMI, settings.kimi), (GLM, settings.glm)):
        prefix = f"EXAI_PROVIDERS__{family.name.upper()}"
        key = _key(section.api_key, f"{prefix}__API_KEY")
        base_url = _base_url(section.base_url or family.base_url, f"{prefix}__BASE_URL")
        sites[family.name] = Site(family, base_url, key, configured=bool(key))
    for given, endpoint in settings.endpoints.items():
        name = given.lower()
        prefix = f"EXAI_PROVIDERS__ENDPOINTS__{given.upper()}"
        if not _ENDPOINT_NAME.fullmatch(name) or name in sites:
            raise ConfigError(
                prefix,
                f"{given!r} cannot be the name of an endpoint",
                "Use letters, digits, '-', '_' and '.', and each name once; kimi and glm are taken",
            )
        base_url = _base_url(endpoint.base_url, f"{prefix}__BASE_URL")
        key = _key(endpoint.api_key, f"{prefix}__API_KEY")
        family = Family(name, base_url, f"{prefix}__API_KEY", limit_field="max_tokens", stream_usage=True)
        sites[name] = Site(family, base_url, key, configured=True, endpoint=endpoint)
    return sites


def _base_url(text: str, setting: str) -> str:
    try:
        url = httpx.URL(text.strip())
    except httpx.InvalidURL as error:
        raise ConfigError(setting, f"is not an address: {error}", "Write it as https://host/v1") from None
    if url.scheme not in {"http", "https"} or not url.host:
        raise ConfigError(setting, "is not an http or https address", "Write it as https://host/v1")
    if url.userinfo:
        raise ConfigError(setting, "holds a user name or password", "Give the key by its own setting")
    if url.query or url.fragment:
        raise ConfigError(setting, "holds a query or fragment", "Leave out what follows '?' or '#'")
    return str(url).rstrip("/").removesuffix(_PATH).rstrip("/")


def _key(secret: SecretStr | None, setting: str) -> str:
    key = secret.get_secret_value().strip() if secret is not None else ""
    if key and not _KEY.fullmatch(key):
        raise ConfigError(setting, "holds characters that no key has", "Copy the key again")
    return key
