"""The providers of this installation: those EXAI describes and the named endpoints, each with its address and key."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from pydantic import SecretStr

from exai.providers.base import Family
from exai.providers.families.deepseek import DEEPSEEK
from exai.providers.families.glm import GLM
from exai.providers.families.kimi import KIMI
from exai.providers.families.openrouter import OPENROUTER
from exai.providers.families.qwen import QWEN
from exai.settings.load import EndpointSettings, ProvidersSettings

NAMED: Final[Mapping[str, Family]] = {each.name: each for each in (KIMI, GLM, DEEPSEEK, OPENROUTER, QWEN)}

_METHOD: Final = "/chat/completions"


@dataclass(frozen=True, slots=True)
class Site:
    """One provider as configured here; `base_url` has no slash at its end. `endpoint` is None for those of `NAMED`."""

    family: Family
    base_url: str
    key: str
    configured: bool
    endpoint: EndpointSettings | None = None
    max_concurrent: int | None = None

    @property
    def is_reported(self) -> bool:
        """Return whether its state is worth a line: an optional provider without a key is not in use."""
        return self.configured or not self.family.is_optional


def read_sites(settings: ProvidersSettings) -> dict[str, Site]:
    """Return every provider by name, those EXAI describes first, configured or not."""
    sites: dict[str, Site] = {}
    sections = (settings.kimi, settings.glm, settings.deepseek, settings.openrouter, settings.qwen)
    for family, section in zip(NAMED.values(), sections, strict=True):
        key = _text(section.api_key)
        sites[family.name] = Site(
            family,
            _base(section.base_url or family.base_url),
            key,
            configured=bool(key),
            max_concurrent=section.max_concurrent,
        )
    for name, endpoint in settings.endpoints.items():
        base_url = _base(endpoint.base_url)
        key_setting = f"EXAI_PROVIDERS__ENDPOINTS__{name.upper()}__API_KEY"
        family = Family(name, base_url, key_setting, limit_field="max_tokens", stream_usage=True)
        sites[name] = Site(
            family,
            base_url,
            _text(endpoint.api_key),
            configured=True,
            endpoint=endpoint,
            max_concurrent=endpoint.max_concurrent,
        )
    return sites


def _base(url: str) -> str:
    # Users copy the address of the chat method from the provider's manual.
    return url.rstrip("/").removesuffix(_METHOD).rstrip("/")


def _text(secret: SecretStr | None) -> str:
    return secret.get_secret_value() if secret is not None else ""
