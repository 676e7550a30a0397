"""The catalogue of models: EXAI's own `models.toml`, with the user's file laid over it field by field.

Invariant: in a loaded catalogue every rule, successor and provider referred to exists, and every name and alias denotes
one model. Otherwise loading raises a `ConfigError` that names the key.
"""

from __future__ import annotations

import tomllib
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import date
from decimal import Decimal
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any, Final

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from exai.errors import ConfigError
from exai.models import Thinking
from exai.providers.base import IMAGE_FORMATS, Family, ImageFormat, ImageLimits, LimitField, Model, Price
from exai.providers.endpoints import NAMED

SETTING: Final = "EXAI_PROVIDERS__MODELS_FILE"
MAX_FILE_BYTES: Final = 1_048_576
UNKNOWN_WINDOW: Final = 8_192
"""Window in tokens of a model without a description; small, because local servers silently truncate longer prompts."""

_OWN_FIELDS: Final = frozenset({"model", "messages", "stream", "stream_options", "max_tokens", "max_completion_tokens"})

Amount = Annotated[Decimal, Field(ge=0)]
Tokens = Annotated[int, Field(ge=1)]


class _CatalogueEntry(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class _PriceEntry(_CatalogueEntry):
    input: Amount
    output: Amount
    cached: Amount | None = None


class _LaterPriceEntry(_PriceEntry):
    valid_from: date = Field(alias="from")


class _ThinkingEntry(_CatalogueEntry):
    default: Thinking | None = None
    off: dict[str, Any] | None = None
    low: dict[str, Any] | None = None
    high: dict[str, Any] | None = None
    max: dict[str, Any] | None = None

    def levels(self) -> dict[Thinking, Mapping[str, Any]]:
        offered: tuple[tuple[Thinking, dict[str, Any] | None], ...] = (
            ("off", self.off),
            ("low", self.low),
            ("high", self.high),
            ("max", self.max),
        )
        return {level: fields for level, fields in offered if fields is not None}


class _ImagesEntry(_CatalogueEntry):
    count: Annotated[int, Field(ge=1)]
    size_bytes: Annotated[int, Field(ge=1)]
    total_bytes: Annotated[int, Field(ge=1)] | None = None
    side_pixels: Annotated[int, Field(ge=1)] | None = None
    formats: tuple[ImageFormat, ...] = IMAGE_FORMATS

    def limits(self) -> ImageLimits:
        return ImageLimits(self.count, self.size_bytes, self.total_bytes, self.side_pixels, self.formats)


class _ModelEntry(_CatalogueEntry):
    provider: str
    context_window: Annotated[int, Field(ge=256)]
    max_output_tokens: Tokens | None = None
    thinking: str | None = None
    temperature: tuple[Annotated[float, Field(ge=0, le=2)], Annotated[float, Field(ge=0, le=2)]] | None = None
    limit_field: LimitField | None = None
    stream_usage: bool | None = None
    images: _ImagesEntry | None = None
    returns_reasoning: bool = False
    price: _PriceEntry | None = None
    later_prices: tuple[_LaterPriceEntry, ...] = ()
    aliases: tuple[str, ...] = ()
    retires: date | None = None
    successor: str | None = None


class _RetiredEntry(_CatalogueEntry):
    provider: str
    retired: date
    successor: str


class _File(_CatalogueEntry):
    defaults: dict[str, str] = {}
    thinking: dict[str, _ThinkingEntry] = {}
    models: dict[str, _ModelEntry] = {}
    retired: dict[str, _RetiredEntry] = {}


@dataclass(frozen=True, slots=True)
class Retired:
    """A name that its provider has retired."""

    name: str
    provider: str
    retired: date
    successor: str


@dataclass(frozen=True, slots=True)
class Catalogue:
    """Models by name, in the file's order; `names` maps every name and alias, lower case, to a model's name."""

    models: Mapping[str, Model]
    names: Mapping[str, str]
    defaults: Mapping[str, str]
    retired: Mapping[str, Retired]


def load_catalogue(models_file: Path | None, families: Mapping[str, Family]) -> Catalogue:
    """Read EXAI's catalogue and the user's. `families` are all providers a model may belong to, endpoints included.

    Raises `ConfigError` naming the file and the key.
    """
    own = tomllib.loads(files("exai.providers").joinpath("models.toml").read_text("utf-8"), parse_float=Decimal)
    added = _read(models_file) if models_file is not None else {}
    origin = str(models_file) if models_file is not None else "models.toml"
    try:
        read = _File.model_validate(_overlay(own, added, families))
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        raise _wrong(origin, ".".join(_quoted(part) for part in first["loc"]), first["msg"]) from None
    return _catalogue(read, origin, families)


def bare_model(
    family: Family, name: str, context_window: int | None, *, known: bool, price: Price | None = None
) -> Model:
    """Return a model that no file describes; only its name is known, and perhaps what its server states."""
    window = context_window or UNKNOWN_WINDOW
    return Model(
        name=f"{family.name}/{name}",
        provider=family.name,
        wire_name=name,
        context_window=window,
        max_output_tokens=window,
        thinking=family.thinking,
        temperature=(0.0, 2.0),
        limit_field=family.limit_field,
        stream_usage=family.stream_usage,
        price=price,
        known=known,
    )


def _read(path: Path) -> dict[str, Any]:
    try:
        with path.expanduser().open("rb") as file:
            text = file.read(MAX_FILE_BYTES + 1)
        if len(text) > MAX_FILE_BYTES:
            raise ConfigError(SETTING, f"{path} is larger than {MAX_FILE_BYTES:,} bytes", "Name a models file")
        return tomllib.loads(text.decode(), parse_float=Decimal)
    except OSError as error:
        raise ConfigError(SETTING, f"{path} cannot be read: {error.strerror}", "Name a readable file") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(SETTING, f"{path} is not TOML: {error}", "Correct the file") from error


def _overlay(own: dict[str, Any], added: dict[str, Any], families: Mapping[str, Family]) -> dict[str, Any]:
    """Lay `added` over `own`: single fields of models, whole values elsewhere."""
    merged: dict[str, Any] = {table: dict(entries) for table, entries in own.items()}
    for table, entries in added.items():
        if not isinstance(entries, dict) or table not in _File.model_fields:
            merged[table] = entries
            continue
        target = merged.setdefault(table, {})
        for name, entry in entries.items():
            known = target.get(name)
            if table == "models" and isinstance(entry, dict):
                known = known if isinstance(known, dict) else {}
                target[_full_name(name, entry, families)] = {**known, **entry}
            else:
                target[name] = entry
    return merged


def _full_name(name: str, entry: Mapping[str, Any], families: Mapping[str, Family]) -> str:
    """Return a model's full name, `endpoint/model`; the file may omit the first part."""
    provider = entry.get("provider")
    if not isinstance(provider, str) or provider not in families or provider in NAMED:
        return name
    return name if name.startswith(f"{provider}/") else f"{provider}/{name}"


def _catalogue(read: _File, origin: str, families: Mapping[str, Family]) -> Catalogue:
    for rule, thinking in read.thinking.items():
        for level, fields in thinking.levels().items():
            if taken := _OWN_FIELDS & fields.keys():
                raise _wrong(origin, f"thinking.{_quoted(rule)}.{level}", f"{min(taken)} is set by EXAI itself")
    models = {name: _model(name, entry, read, origin, families) for name, entry in read.models.items()}
    names: dict[str, str] = {}
    for model in models.values():
        for name in (model.name, *model.aliases):
            other = names.setdefault(name.lower(), model.name)
            if other != model.name:
                raise _wrong(origin, _key(model.name, "aliases"), f"{name!r} already means {other}")
    for name, entry in read.models.items():
        if entry.successor is not None and entry.successor not in models:
            raise _wrong(origin, _key(name, "successor"), f"there is no model {entry.successor!r}")
    for provider, default in read.defaults.items():
        if provider not in families:
            raise _wrong(origin, f"defaults.{provider}", f"there is no provider {provider!r}")
        if default not in models or models[default].provider != provider:
            raise _wrong(origin, f"defaults.{provider}", f"{provider} has no model {default!r}")
    retired = {
        name.lower(): Retired(name, entry.provider, entry.retired, entry.successor)
        for name, entry in read.retired.items()
        # A user whose platform still serves such a model describes it anew.
        if name.lower() not in names
    }
    return Catalogue(models, names, read.defaults, retired)


def _model(name: str, entry: _ModelEntry, read: _File, origin: str, families: Mapping[str, Family]) -> Model:
    family = families.get(entry.provider)
    if family is None:
        raise _wrong(origin, _key(name, "provider"), f"there is no provider {entry.provider!r}; {_listed(families)}")
    rule = _ThinkingEntry()
    if entry.thinking is not None:
        if entry.thinking not in read.thinking:
            problem = f"there is no rule {entry.thinking!r}; {_listed(read.thinking)}"
            raise _wrong(origin, _key(name, "thinking"), problem)
        rule = read.thinking[entry.thinking]
    max_output_tokens = entry.max_output_tokens or entry.context_window
    if max_output_tokens > entry.context_window:
        raise _wrong(origin, _key(name, "max_output_tokens"), "is larger than context_window")
    return Model(
        name=name,
        provider=family.name,
        wire_name=name.removeprefix(f"{family.name}/"),
        context_window=entry.context_window,
        max_output_tokens=max_output_tokens,
        thinking=rule.levels(),
        default_thinking=rule.default,
        temperature=entry.temperature,
        limit_field=entry.limit_field or family.limit_field,
        stream_usage=family.stream_usage if entry.stream_usage is None else entry.stream_usage,
        images=entry.images.limits() if entry.images else None,
        returns_reasoning=entry.returns_reasoning,
        price=_price(entry.price),
        later_prices=_later_prices(entry),
        aliases=entry.aliases,
        retires=entry.retires,
        successor=entry.successor,
    )


def _price(entry: _PriceEntry | None) -> Price | None:
    if entry is None:
        return None
    return Price(entry.input, entry.output, entry.input if entry.cached is None else entry.cached)


def _later_prices(entry: _ModelEntry) -> tuple[tuple[date, Price], ...]:
    priced = (
        (later.valid_from, _price(later)) for later in sorted(entry.later_prices, key=lambda each: each.valid_from)
    )
    return tuple((first_day, price) for first_day, price in priced if price is not None)


def _listed(names: Collection[str]) -> str:
    return f"known are {', '.join(sorted(names))}"


def _key(model: str, field: str) -> str:
    return f"models.{_quoted(model)}.{field}"


def _quoted(part: int | str) -> str:
    """Return a key in TOML's notation."""
    text = str(part)
    return text if text.replace("_", "").replace("-", "").isalnum() else f'"{text}"'


def _wrong(origin: str, key: str, problem: str) -> ConfigError:
    return ConfigError(SETTING, f"{origin}, key {key}: {problem}", "Correct the file")
