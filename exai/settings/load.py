"""Settings: read once at start, immutable, and passed down by section.

Every variable is `EXAI_<SECTION>__<FIELD>` after the sections in `exai.settings.sections`; the older names in
`exai.settings.environment` are accepted too. A variable that starts with `EXAI_` and is not known is an error, because
a misspelled limit that is silently ignored is worse than a refusal.
"""

from __future__ import annotations

import difflib
import functools
import hashlib
import json
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_origin

from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, SecretStr, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from exai.errors import ConfigError
from exai.settings.addresses import UnusableAddress, redact
from exai.settings.contradictions import contradictions, store_contradictions
from exai.settings.credentials import check_access, check_credentials, check_data_dir
from exai.settings.environment import NOT_SETTINGS, OLDER_NAMES, Reading, Search, Value, read_environment
from exai.settings.files import FileSettings, S3Settings, SupabaseStorageSettings
from exai.settings.requests import RequestSettings
from exai.settings.sections import (
    AnswerSettings,
    BudgetSettings,
    CacheSettings,
    ConnectSettings,
    DatabaseSettings,
    Directory,
    EndpointSettings,
    JwtSettings,
    LimitSettings,
    LogLevel,
    LogSettings,
    ProviderSettings,
    ProvidersSettings,
    RetentionSettings,
    Section,
    ServerSettings,
    TelemetrySettings,
)
from exai.settings.store import StoreSettings

__all__ = [
    "OLDER_NAMES",
    "AnswerSettings",
    "BudgetSettings",
    "CacheSettings",
    "ConnectSettings",
    "DatabaseSettings",
    "Described",
    "EndpointSettings",
    "FileSettings",
    "JwtSettings",
    "LimitSettings",
    "LogLevel",
    "LogSettings",
    "ProviderSettings",
    "ProvidersSettings",
    "RequestSettings",
    "RetentionSettings",
    "S3Settings",
    "ServerSettings",
    "Settings",
    "StoreSettings",
    "SupabaseStorageSettings",
    "TelemetrySettings",
    "Variable",
    "default_data_dir",
    "describe",
    "load_settings",
    "show",
    "variables",
]

REDACTED = "***"
IGNORED_PREFIX = "EXAI_TEST_"


def default_data_dir(environ: Mapping[str, str] = os.environ) -> Path:
    """Return the user's data directory by the platform's convention. Raises ConfigError without a home directory."""
    try:
        home = Path(environ["HOME"]) if environ.get("HOME") else Path.home()
    except RuntimeError:
        raise ConfigError("EXAI_DATA_DIR", "is not set and this user has no home directory", "Set it") from None
    if sys.platform == "darwin":
        return home / "Library" / "Application Support" / "exai"
    if sys.platform == "win32":
        return Path(environ.get("LOCALAPPDATA") or home / "AppData" / "Local") / "exai"
    data_home = Path(environ.get("XDG_DATA_HOME", ""))
    return (data_home if data_home.is_absolute() else home / ".local" / "share") / "exai"


class Settings(BaseModel):
    """All settings. Only `load_settings` reads them from the environment."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, validate_default=True)

    database: DatabaseSettings = DatabaseSettings()
    cache: CacheSettings = CacheSettings()
    server: ServerSettings = ServerSettings()
    providers: ProvidersSettings = ProvidersSettings()
    limits: LimitSettings = LimitSettings()
    budgets: BudgetSettings = BudgetSettings()
    answers: AnswerSettings = AnswerSettings()
    retention: RetentionSettings = RetentionSettings()
    files: FileSettings = FileSettings()
    requests: RequestSettings = RequestSettings()
    store: StoreSettings = StoreSettings()
    log: LogSettings = LogSettings()
    telemetry: TelemetrySettings = TelemetrySettings()
    connect: ConnectSettings = ConnectSettings()
    data_dir: Directory = Field(default_factory=default_data_dir)
    pg_bin: Directory | None = None
    tool_timeout_s: float = Field(default=600.0, gt=0)
    start_wait_s: float = Field(default=0.0, ge=0)
    tools: Literal["all", "core"] = "all"

    _reading: Reading = PrivateAttr(default=Reading({}, None))

    @property
    def env_file(self) -> Path | None:
        """Return the `.env` file that was read, or None."""
        return self._reading.env_file

    @property
    def embedded_servers(self) -> tuple[bool, bool]:
        """Return whether EXAI runs its own Postgres, and whether it runs its own Valkey.

        By default the cache follows the database: with a given database no Valkey is started.
        """
        own_database = self.database.url is None
        return own_database, self.cache.url == "embedded" or (own_database and self.cache.url is None)

    @property
    def embedded_dir(self) -> Path:
        """Return the servers' data directory; a cache for a given database has one of its own."""
        if self.database.url is None:
            return self.data_dir
        where = self.database.url.get_secret_value().rpartition("@")[2]
        return self.data_dir / f"cache-{hashlib.sha256(where.encode()).hexdigest()[:8]}"

    @property
    def reading(self) -> Reading:
        """Return the values that were read, each with its origin."""
        return self._reading


@dataclass(frozen=True, slots=True)
class Variable:
    """One setting: its variable name, its place in `Settings`, and its default."""

    name: str
    path: tuple[str, ...]
    field: FieldInfo

    def lookup(self, settings: Settings) -> Any:
        """Return the value in effect."""
        return functools.reduce(getattr, self.path, settings)


class Described(NamedTuple):
    """One line of `exai config`, without secrets."""

    variable: str
    value: str
    origin: str


SENTENCES: Mapping[str, tuple[str, str]] = {
    "int_parsing": ("is not a whole number", "Write digits only"),
    "int_type": ("is not a whole number", "Write digits only"),
    "float_parsing": ("is not a number", "Write a number such as 2.5"),
    "float_type": ("is not a number", "Write a number such as 2.5"),
    "bool_parsing": ("is neither true nor false", "Write true or false"),
    "finite_number": ("is not a finite number", "Write a number such as 2.5"),
    "greater_than": ("is too small", "Write a number above {gt:g}"),
    "greater_than_equal": ("is too small", "Write {ge:g} or more"),
    "less_than_equal": ("is too large", "Write {le:g} or less"),
    "literal_error": ("is none of the known values", "Write one of {expected}"),
    "missing": ("is missing", "Add it"),
    "extra_forbidden": ("is not a known field", "Known are " + ", ".join(EndpointSettings.model_fields)),
    "tuple_type": ("is not a list", 'It looks like ["one", "two"]'),
    "string_type": ("is not text", "Put it in quotes"),
    "dict_type": ("is not a JSON object", "It looks like {shape}"),
    "model_type": ("is not a JSON object", 'It looks like {{"base_url": "http://host/v1"}}'),
}
"""Problem and cure by pydantic's error type. The value itself is omitted, since it may be a secret."""

ENDPOINT_VARIABLE = re.compile(
    rf"EXAI_PROVIDERS__ENDPOINTS__([A-Z0-9_]+?)__({'|'.join(EndpointSettings.model_fields).upper()})"
)
RENAMED: Mapping[tuple[str, ...], str] = {("connect", "url"): "EXAI_URL", ("connect", "token"): "EXAI_TOKEN"}


@functools.cache
def variables() -> tuple[Variable, ...]:
    """Return every known variable, in the order of the sections."""
    return tuple(_walk(Settings, ()))


def _walk(model: type[BaseModel], prefix: tuple[str, ...]) -> Iterator[Variable]:
    for name, field in model.model_fields.items():
        path = (*prefix, name)
        if isinstance(field.annotation, type) and issubclass(field.annotation, Section):
            yield from _walk(field.annotation, path)
        else:
            yield Variable(RENAMED.get(path, "EXAI_" + "__".join(path).upper()), path, field)


def load_settings(
    environ: Mapping[str, str] | None = None,
    env_file: Path | Search | None = "working directory",
    overrides: Mapping[str, str] | None = None,
) -> Settings:
    """Read the environment and a `.env` file once, as `read_environment` does; `overrides` come from the command line.

    Raises ConfigError, which names every invalid variable as it was written.
    """
    reading = read_environment(environ, env_file, overrides)
    errors = [*_unknown(reading), *check_credentials(reading), *check_access(reading)]
    given: dict[tuple[str, ...], Value] = {}
    nested: dict[str, Any] = {}
    for variable in variables():
        try:
            if value := reading.find(variable.name):
                given[variable.path] = value
                _put(nested, variable.path, _parse(variable.field, value))
        except ConfigError as error:
            errors.append(error)
    for path, value in _endpoint_fields(reading):
        given[path] = value
        _put(nested, path, _parse(EndpointSettings.model_fields[path[-1]], value))
    nested.setdefault("data_dir", default_data_dir(os.environ if environ is None else environ))
    try:
        settings = Settings(**nested)
    except ValidationError as error:
        errors += _explain(error, given)
    else:
        errors += contradictions(settings.server, settings.database, settings.cache, _names_of(given))
        errors += store_contradictions(settings.files)
        if any(settings.embedded_servers):
            errors += check_data_dir(reading)
        settings._reading = reading
    if errors:
        first = errors[0]
        raise ConfigError(first.setting, first.problem, first.cure, also=errors[1:])
    return settings


def describe(settings: Settings) -> list[Described]:
    """Return every variable with its value, passwords and keys redacted, and its origin."""
    return [Described(each.name, show(each.lookup(settings)), _origin(each, settings._reading)) for each in variables()]


def _origin(variable: Variable, reading: Reading) -> str:
    value = reading.find(variable.name)
    if value is None:
        fields = (each for path, each in _endpoint_fields(reading) if path[:-2] == variable.path)
        value = next(fields, None)
    if value is None:
        return "default"
    return value.origin if value.name == variable.name else f"{value.origin}, as {value.name}"


def show(value: Any) -> str:
    """Return a setting's value as written in the environment, without secrets; empty if unset."""
    match value:
        case None:
            return ""
        case SecretStr():
            text = value.get_secret_value()
            return redact(text) if "://" in text else REDACTED
        case tuple():
            return ",".join(map(str, value))
        case dict():
            return json.dumps({name: _plain(each) for name, each in value.items()}) if value else ""
        case float():
            return f"{value:g}"
    return str(value).lower() if isinstance(value, bool) else str(value)


def _plain(value: EndpointSettings | SecretStr | float) -> Any:
    if isinstance(value, SecretStr):
        return REDACTED
    if isinstance(value, float):
        return value
    fields = value.model_dump(mode="json", exclude_none=True)
    return fields | ({"api_key": REDACTED} if "api_key" in fields else {})


def _unknown(reading: Reading) -> Iterator[ConfigError]:
    """Yield an error for every `EXAI_` name that is not a setting."""
    names = {variable.name: variable.name for variable in variables()}
    names.update({older: variable for variable, all_older in OLDER_NAMES.items() for older in all_older})
    for name, value in reading.values.items():
        upper = name.upper()
        if (
            not upper.startswith("EXAI_")
            or name in names
            or name in NOT_SETTINGS
            or ENDPOINT_VARIABLE.fullmatch(name)
            or upper.startswith(IGNORED_PREFIX)
            or _is_service_link(value)
        ):
            continue
        [nearest] = difflib.get_close_matches(upper, names, n=1, cutoff=0.0)
        yield ConfigError(name, "is not a known setting", f"The nearest known one is {names[nearest]}")


def _is_service_link(value: Value) -> bool:
    """Return whether a container platform set this variable for a service called `exai`."""
    if value.name == "EXAI_PORT":
        return value.text.startswith(("tcp://", "udp://"))
    return bool(re.fullmatch(r"EXAI_(SERVICE_(HOST|PORT)(_\w+)?|PORT_\d+_(TCP|UDP)(_\w+)?)", value.name))


def _put(nested: dict[str, Any], path: tuple[str, ...], value: Any) -> None:
    for name in path[:-1]:
        nested = nested.setdefault(name, {})
        if not isinstance(nested, dict):
            # The JSON form is invalid at this place, which validation reports.
            return
    nested[path[-1]] = value


def _endpoint_fields(reading: Reading) -> Iterator[tuple[tuple[str, ...], Value]]:
    """Yield the fields set one by one as EXAI_PROVIDERS__ENDPOINTS__<NAME>__<FIELD>; these win over the JSON form."""
    for name, value in reading.values.items():
        if match := ENDPOINT_VARIABLE.fullmatch(name):
            yield ("providers", "endpoints", match[1].lower(), match[2].lower()), value


def _parse(field: FieldInfo, value: Value) -> Any:
    """Parse a value's text by the type of its field: lists are comma-separated or JSON, maps are JSON."""
    kind = get_origin(field.annotation)
    if kind is tuple and not value.text.startswith("["):
        return tuple(part.strip() for part in value.text.split(",") if part.strip())
    if kind not in (tuple, dict):
        return value.text
    try:
        return json.loads(value.text)
    except (ValueError, RecursionError) as error:
        where = f" (line {error.lineno}, column {error.colno})" if isinstance(error, json.JSONDecodeError) else ""
        raise ConfigError(value.name, f"is not JSON{where}", f"It looks like {_shape(field)}") from None


def _shape(field: FieldInfo) -> str:
    return str(field.examples[0]) if field.examples else '["one", "two"]'


def _explain(error: ValidationError, given: Mapping[tuple[str, ...], Value]) -> Iterator[ConfigError]:
    """Yield one sentence per variable from pydantic's errors, under the name as written."""
    # The literal branch of a union only reports that the value differs; the other branch is more specific.
    found = sorted(error.errors(include_url=False), key=lambda details: details["type"] == "literal_error")
    reported = set()
    for details in found:
        path = tuple(str(part) for part in details["loc"])
        variable = next(each for each in variables() if path[: len(each.path)] == each.path)
        inside = path[len(variable.path) :] if isinstance(variable.field.default, dict) else ()
        if (variable.name, inside) in reported:
            continue
        reported.add((variable.name, inside))
        problem, cure = _sentence(details, variable)
        own = given.get(path[: len(variable.path) + 2])
        value = own or given.get(variable.path)
        where = "" if own else ".".join(part for part in inside if part != "[key]")
        yield ConfigError(value.name if value else variable.name, f"{where} {problem}".strip(), cure)


def _sentence(details: ErrorDetails, variable: Variable) -> tuple[str, str]:
    facts = details.get("ctx", {})
    if isinstance(facts.get("error"), UnusableAddress):
        return facts["error"].problem, facts["error"].cure
    default = "" if variable.field.default_factory else show(variable.field.default)
    problem, cure = SENTENCES.get(details["type"], (f"cannot be used ({details['msg'].lower()})", "Correct it"))
    return problem, cure.format(shape=_shape(variable.field), **facts) + (
        f", or remove it for the default {default}" if default else ""
    )


def _names_of(given: Mapping[tuple[str, ...], Value]) -> Callable[..., str]:
    """Return a function that names the variable of a setting: as written if it is set, else by its current name."""

    def name_of(*path: str) -> str:
        return given[path].name if path in given else next(each.name for each in variables() if each.path == path)

    return name_of
