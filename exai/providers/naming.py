"""Resolve the name of a model; no I/O.

Kimi's and GLM's models are named by the catalogue; an endpoint's model is `endpoint/model`, or its bare name where
only one endpoint has it. A name that cannot be used is refused with the nearest ones that can.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from typing import Final

from exai.errors import InvalidArgument, NotConfigured, shown
from exai.providers.base import Clocks, Model
from exai.providers.catalogue import Catalogue, bare_model
from exai.providers.discovery import MAX_NAME_CHARS, Discovery
from exai.providers.endpoints import NAMED, Site

DEFAULT_SETTING: Final = "EXAI_PROVIDERS__DEFAULT_MODEL"
SET_A_KEY: Final = (
    "Set EXAI_PROVIDERS__KIMI__API_KEY or KIMI_API_KEY, EXAI_PROVIDERS__GLM__API_KEY or GLM_API_KEY, "
    "or an endpoint with EXAI_PROVIDERS__ENDPOINTS__<NAME>__BASE_URL"
)
MAX_NAMES_SHOWN: Final = 30
MAX_NEAR_NAMES: Final = 3


class ModelNames:
    """Names of the models of `sites`; later results of `discoveries` take effect at once."""

    def __init__(
        self,
        sites: Mapping[str, Site],
        catalogue: Catalogue,
        discoveries: Mapping[str, Discovery],
        *,
        default_model: str | None,
        clocks: Clocks,
    ) -> None:
        self._sites, self._catalogue, self._discoveries = sites, catalogue, discoveries
        self._default_model, self._clocks = default_model, clocks

    def resolve(self, model: str | None) -> Model:
        """Resolve a name as `Providers.resolve` does."""
        if not any(site.configured for site in self._sites.values()):
            raise NotConfigured("a model provider", SET_A_KEY)
        name = (model or "").strip()
        if not name or name.lower() == "auto":
            name = self._default_name()
        if len(name) > MAX_NAME_CHARS or not name.isprintable():
            raise InvalidArgument("model", "is not a name", self._available())
        found = self.find(name)
        if found is None:
            raise self.unknown(name)
        if not self.answers(found):
            successor = f"Use {found.successor}" if found.successor else self._available()
            raise InvalidArgument("model", f"{found.name} answered until {found.retires} and is retired", successor)
        site = self._sites[found.provider]
        if not site.configured:
            raise NotConfigured(f"provider {found.provider}", f"Set {site.family.key_setting}. {self._available()}")
        return found

    def find(self, name: str) -> Model | None:
        """Return the model of a name, configured or not. Raises `InvalidArgument` for an ambiguous or retired name."""
        known = self._catalogued(name)
        if known is not None and self._sites[known.provider].configured:
            return known
        provider, slash, rest = name.partition("/")
        site = self._sites.get(provider.lower())
        if slash and rest and site is not None:
            return self._of_site(site, rest)
        served = [model for model in self._endpoint_models() if model.wire_name.lower() == name.lower()]
        if len(served) > 1:
            names = " or ".join(model.name for model in served)
            raise InvalidArgument("model", f"{shown(name)} is served by several endpoints", f"Use {names}")
        if served or known is not None:
            return served[0] if served else known
        retired = self._catalogue.retired.get(name.lower())
        if retired is not None:
            problem = f"{retired.name} answered until {retired.retired} and is retired"
            raise InvalidArgument("model", problem, f"Use {retired.successor}")
        return None

    def unknown(self, name: str) -> InvalidArgument:
        """Return the error for an unknown name, with the nearest and the available names."""
        candidates: dict[str, str] = {}
        for model in self._callable():
            for spelling in (model.name, model.wire_name, *model.aliases):
                candidates.setdefault(spelling.lower(), model.name)
        close = get_close_matches(name.lower(), candidates, n=MAX_NEAR_NAMES, cutoff=0.5)
        nearest = dict.fromkeys(candidates[spelling] for spelling in close)
        near = f"Nearest: {', '.join(nearest)}. " if nearest else ""
        return InvalidArgument("model", f"there is no model {shown(name)}", near + self._available())

    def listed(self) -> Iterator[Model]:
        """Return every model that is not retired, including those of providers without a key."""
        for model in self._catalogue.models.values():
            if model.provider in NAMED and self.answers(model):
                yield model
        yield from filter(self.answers, self._endpoint_models())

    def answers(self, model: Model) -> bool:
        """Whether the model's last day has not passed."""
        return model.retires is None or self._clocks.now().date() <= model.retires

    def _default_name(self) -> str:
        if self._default_model is not None:
            return self._default_model
        for provider, name in self._catalogue.defaults.items():
            if self._sites[provider].configured:
                return name
        for model in self._endpoint_models():
            return model.name
        endpoint = next(name.upper() for name, site in self._sites.items() if site.configured)
        raise NotConfigured(
            "a default model",
            f"Name the model as endpoint/model, set {DEFAULT_SETTING}, or list the endpoint's models in "
            f"EXAI_PROVIDERS__ENDPOINTS__{endpoint}__MODELS",
        )

    def _catalogued(self, name: str) -> Model | None:
        canonical = self._catalogue.names.get(name.lower())
        return None if canonical is None else self._catalogue.models[canonical]

    def _of_site(self, site: Site, rest: str) -> Model | None:
        """Return the model `rest` of one provider; an endpoint without a list of models accepts any name."""
        if site.endpoint is None:
            known = self._catalogued(rest)
            return known if known is not None and known.provider == site.family.name else None
        for name in self._names_of(site):
            if name.lower() == rest.lower():
                return self._endpoint_model(site, name, known=True)
        return None if site.endpoint.models else self._endpoint_model(site, rest, known=False)

    def _names_of(self, site: Site) -> list[str]:
        """Return the names of an endpoint's models: described in the models file, then listed or discovered."""
        if site.endpoint is None:
            return []
        described = [model.wire_name for model in self._catalogue.models.values() if model.provider == site.family.name]
        discovery = self._discoveries.get(site.family.name)
        listed = site.endpoint.models or (tuple(discovery.windows) if discovery is not None else ())
        return list(dict.fromkeys([*described, *listed]))

    def _endpoint_model(self, site: Site, name: str, *, known: bool) -> Model:
        described = self._catalogue.models.get(f"{site.family.name}/{name}")
        if described is not None:
            return described
        discovery = self._discoveries.get(site.family.name)
        window = site.endpoint.context_window if site.endpoint is not None else None
        if window is None and discovery is not None:
            window = discovery.windows.get(name)
        return bare_model(site.family, name, window, known=known)

    def _endpoint_models(self) -> Iterator[Model]:
        for site in self._sites.values():
            for name in self._names_of(site):
                yield self._endpoint_model(site, name, known=True)

    def _callable(self) -> Iterator[Model]:
        return (model for model in self.listed() if self._sites[model.provider].configured)

    def _available(self) -> str:
        names = [model.name for model in self._callable()]
        if not names:
            # Endpoints without a list of models accept any name.
            names = [f"{name}/MODEL" for name, site in self._sites.items() if site.configured]
        more = f" and {len(names) - MAX_NAMES_SHOWN} more" if len(names) > MAX_NAMES_SHOWN else ""
        return f"Available: {', '.join(names[:MAX_NAMES_SHOWN])}{more}"
