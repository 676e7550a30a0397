"""Resolve the name of a model; no I/O.

Models that the catalogue describes have names of their own; any other is `provider/model`, or its bare name where only
one provider lists it. A name that cannot be used is refused with the nearest ones that can. An announced last day does
not refuse a model: only its provider's list without it, or its provider, does.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from difflib import get_close_matches
from typing import Final

from exai.errors import InvalidArgument, NotConfigured, shown
from exai.providers.base import Clocks, Model
from exai.providers.catalogue import Catalogue, bare_model
from exai.providers.discovery import MAX_NAME_CHARS, Discovery
from exai.providers.endpoints import NAMED, Site
from exai.settings.load import ProvidersSettings

DEFAULT_SETTING: Final = "EXAI_PROVIDERS__DEFAULT_MODEL"
SET_A_KEY: Final = (
    "Set EXAI_PROVIDERS__KIMI__API_KEY or KIMI_API_KEY, EXAI_PROVIDERS__GLM__API_KEY or GLM_API_KEY, "
    "DEEPSEEK_API_KEY, OPENROUTER_API_KEY, DASHSCOPE_API_KEY, "
    "or an endpoint with EXAI_PROVIDERS__ENDPOINTS__<NAME>__BASE_URL"
)
MAX_NAMES_SHOWN: Final = 30
MAX_NEAR_NAMES: Final = 3
MAX_UNKNOWN_LISTED: Final = 30
"""Models of one described provider that the catalogue does not name are listed up to this number."""


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
        lists: Mapping[str, frozenset[str]] = {},
    ) -> None:
        self._sites, self._catalogue, self._discoveries = sites, catalogue, discoveries
        self._default_model, self._clocks, self._lists = default_model, clocks, lists

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
            problem = f"{found.name} answered until {found.retires}, and {found.provider} does not list it any more"
            raise InvalidArgument("model", problem, successor)
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
        if site is not None and not (slash and rest):
            site = None
        if site is not None and (site.configured or not site.family.is_optional):
            return known or self._of_site(site, rest)
        served = list(self._endpoint_models(name.lower()))
        if len(served) > 1:
            names = " or ".join(model.name for model in served)
            raise InvalidArgument("model", f"{shown(name)} is served by several endpoints", f"Use {names}")
        if served or known is not None:
            return served[0] if served else known
        if site is not None:
            return self._of_site(site, rest)
        self._refuse_retired(name)
        return None

    def nearest(self, model: Model) -> tuple[str, ...]:
        """Return the names nearest to that of a model which its provider does not serve, the stated successor first."""
        ours = (each for each in self._models_of(model.provider) if self.is_served(each) is not False)
        candidates = {each.wire_name.lower(): each.name for each in ours}
        for name in self._listed_names(model.provider) or ():
            candidates.setdefault(name.lower(), f"{model.provider}/{name}")
        candidates.pop(model.wire_name.lower(), None)
        close = get_close_matches(model.wire_name.lower(), candidates, n=MAX_NEAR_NAMES, cutoff=0.4)
        successor = self._catalogued(model.successor) if model.successor else None
        first = [successor.name] if successor is not None and self.is_served(successor) is not False else []
        return tuple(dict.fromkeys([*first, *(candidates[spelling] for spelling in close)]))[:MAX_NEAR_NAMES]

    def is_served(self, model: Model) -> bool | None:
        """Return whether the model is in its provider's own list; None if there is no list."""
        served = self._listed_names(model.provider)
        # Ollama lists models by their full names, and also accepts the names without the tag.
        return None if served is None else not served.isdisjoint({model.wire_name, f"{model.wire_name}:latest"})

    def warnings(self, provider: str, named: Collection[str]) -> Iterator[str]:
        """Yield sentences about models of a provider that it does not list; those in `named` are settings."""
        missing = [each for each in self._models_of(provider) if self.is_served(each) is False]
        asked = {found.name for found in map(self._found, named) if found is not None}
        for model in missing:
            if model.name in asked:
                nearest = self.nearest(model)
                cure = f"; nearest: {', '.join(nearest)}" if nearest else ""
                yield f"{model.name} is configured, and {provider} does not list it{cure}"
        others = [model.name for model in missing if model.name not in asked]
        if others:
            yield f"{provider} does not list {', '.join(others[:MAX_NAMES_SHOWN])} for this key"

    def _found(self, name: str) -> Model | None:
        try:
            return self.find(name)
        except InvalidArgument:
            return None

    def _models_of(self, provider: str) -> Iterator[Model]:
        """Yield the models of a provider that the catalogue describes or a setting lists."""
        yield from (model for model in self._catalogue.models.values() if model.provider == provider)
        site = self._sites[provider]
        for name in site.endpoint.models if site.endpoint is not None else ():
            if f"{provider}/{name}" not in self._catalogue.models:
                yield self._endpoint_model(site, name, known=True)

    def _listed_names(self, provider: str) -> frozenset[str] | None:
        discovery = self._discoveries.get(provider)
        return discovery.listed if discovery is not None else self._lists.get(provider)

    def _refuse_retired(self, name: str, provider: str | None = None) -> None:
        retired = self._catalogue.retired.get(name.lower())
        if retired is not None and provider in (None, retired.provider):
            problem = f"{retired.name} answered until {retired.retired} and is retired"
            raise InvalidArgument("model", problem, f"Use {retired.successor}")

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

    def is_bare(self, model: Model) -> bool:
        """Return whether no file describes the model."""
        return model.name not in self._catalogue.models

    def named_in(self, settings: ProvidersSettings) -> tuple[str, ...]:
        """Return the names of models that settings choose: the default, the fallbacks, and the models of endpoints."""
        named = [self._default_model or "", *settings.fallback]
        named += [name for provider, name in self._catalogue.defaults.items() if self._sites[provider].configured]
        for provider, endpoint in settings.endpoints.items():
            named += [f"{provider}/{name}" for name in endpoint.models]
        return tuple(dict.fromkeys(filter(None, named)))

    def listed(self) -> Iterator[Model]:
        """Return every model that is not retired, including those of providers without a key."""
        for model in self._catalogue.models.values():
            if model.provider in NAMED and self.answers(model):
                yield model
        yield from filter(self.answers, self._endpoint_models())

    def answers(self, model: Model) -> bool:
        """Whether the model may answer: a last day has not passed, or its provider does not leave it out of a list."""
        return not self.is_past(model) or self.is_served(model) is not False

    def is_past(self, model: Model) -> bool:
        """Return whether the announced last day of the model has passed."""
        return model.retires is not None and self._clocks.now().date() > model.retires

    def _default_name(self) -> str:
        if self._default_model is not None:
            return self._default_model
        for provider, name in self._catalogue.defaults.items():
            if self._sites[provider].configured:
                return name
        for model in self._endpoint_models():
            if model.provider not in NAMED:
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
        known = self._catalogued(rest) if site.endpoint is None else None
        if known is not None and known.provider == site.family.name:
            return known
        for name in self._names_of(site):
            if name.lower() == rest.lower():
                return self._endpoint_model(site, name, known=True)
        self._refuse_retired(rest, site.family.name)
        takes_any = site.family.takes_any_name if site.endpoint is None else not site.endpoint.models
        return self._endpoint_model(site, rest, known=False) if takes_any else None

    def _names_of(self, site: Site) -> list[str]:
        """Return the names of a provider's models: those described in the models file, then those listed or discovered.

        Those of a provider that EXAI describes are only the ones that no file describes.
        """
        described = [model.wire_name for model in self._catalogue.models.values() if model.provider == site.family.name]
        discovery = self._discoveries.get(site.family.name)
        if site.endpoint is None:
            known = set(described)
            return [name for name in (discovery.windows if discovery is not None else ()) if name not in known]
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
        price = discovery.prices.get(name) if discovery is not None else None
        return bare_model(site.family, name, window, known=known, price=price)

    def _endpoint_models(self, only: str | None = None) -> Iterator[Model]:
        """Yield the models that are listed by their providers, or those with the name `only`, in lower case."""
        for site in self._sites.values():
            names = self._names_of(site)
            if only is None and site.endpoint is None and len(names) > MAX_UNKNOWN_LISTED:
                continue
            for name in names:
                if only in (None, name.lower()):
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
