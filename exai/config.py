"""Settings: read once at start, frozen, and passed down by section.

Every variable is `EXAI_<SECTION>__<FIELD>`; the older names in `exai.environment` are accepted too. A variable that
starts with `EXAI_` and is not known is an error, because a misspelled limit that is silently ignored is worse than a
refusal.
"""

from __future__ import annotations

import difflib
import functools
import json
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, get_origin

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PrivateAttr,
    SecretStr,
    ValidationError,
)
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from exai.addresses import (
    UnusableAddress,
    check_header,
    check_host,
    check_http,
    check_postgres,
    check_redis,
    check_websocket,
    is_loopback,
    redact,
)
from exai.environment import ENV_FILE, OLDER_NAMES, Reading, Value, read_environment
from exai.errors import ConfigError

REDACTED = "***"
IGNORED_PREFIX = "EXAI_TEST_"
TOKEN_MIN_CHARS = 16
ENDPOINT_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,31}")
LEVELS = {"warn": "warning", "critical": "error", "fatal": "error", "trace": "debug"}
"""Other programs' names for the levels, since LOG_LEVEL is shared with them."""


def _secret(check: Callable[[str], str]) -> AfterValidator:
    return AfterValidator(lambda secret: SecretStr(check(secret.get_secret_value())))


def _check_token(token: str) -> str:
    if len(token) < TOKEN_MIN_CHARS:
        raise UnusableAddress(
            f"is shorter than {TOKEN_MIN_CHARS} characters",
            "Make one with: python3 -c 'import secrets; print(secrets.token_urlsafe(32))'",
        )
    return check_header(token)


def _check_endpoint_name(name: str) -> str:
    if not ENDPOINT_NAME.fullmatch(name) or name in ("kimi", "glm"):
        raise UnusableAddress(
            "cannot be an endpoint's name", "Use lower case letters, digits, - and _; kimi and glm are taken"
        )
    return name


def _level(value: Any) -> Any:
    return LEVELS.get(value.strip().lower(), value.strip().lower()) if isinstance(value, str) else value


def _off(value: Any) -> Any:
    return value.lower() if isinstance(value, str) else value


DatabaseUrl = Annotated[SecretStr, _secret(check_postgres)]
CacheUrl = Annotated[SecretStr, _secret(check_redis)]
BaseUrl = Annotated[str, AfterValidator(check_http)]
ApiKey = Annotated[SecretStr, _secret(check_header)]
Token = Annotated[SecretStr, _secret(_check_token)]
Directory = Annotated[Path, AfterValidator(lambda path: path.expanduser())]


class Section(BaseModel):
    """Base of the sections: immutable, and strict about names."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class DatabaseSettings(Section):
    """Postgres. Without a URL the embedded server is started."""

    url: DatabaseUrl | None = None
    migration_url: DatabaseUrl | None = None
    pool_size: int = Field(default=10, ge=1, le=200)
    acquire_timeout_s: float = Field(default=1.0, gt=0)
    statement_timeout_s: float = Field(default=6.0, gt=0)
    connect_timeout_s: float = Field(default=5.0, gt=0)


class CacheSettings(Section):
    """Redis or Valkey. Without a URL the embedded server is started; `off` means none at all."""

    url: Annotated[Literal["off"], BeforeValidator(_off)] | CacheUrl | None = Field(
        default=None, union_mode="left_to_right"
    )
    idle_hours: float = Field(default=24.0, gt=0)
    bound_s: float = Field(default=2.0, gt=0, le=60)
    pass_interval_s: float = Field(default=0.5, gt=0)
    timeout_s: float = Field(default=0.2, gt=0)
    entry_max_bytes: int = Field(default=1_048_576, ge=1024)


class ServerSettings(Section):
    """The one port. `token` is the bearer token every caller has to send; without one only loopback is served."""

    host: Annotated[str, AfterValidator(check_host)] = "127.0.0.1"
    port: int = Field(default=8079, ge=0, le=65535)
    token: Token | None = None
    allowed_hosts: tuple[str, ...] = ()
    allowed_origins: tuple[str, ...] = ()
    message_max_bytes: int = Field(default=8_388_608, ge=1024)
    reply_max_bytes: int = Field(default=1_048_576, ge=1024)
    max_connections: int = Field(default=10_000, ge=1)
    max_in_flight: int = Field(default=32, ge=1)
    handshake_timeout_s: float = Field(default=10.0, gt=0)
    send_timeout_s: float = Field(default=10.0, gt=0)
    ping_interval_s: float = Field(default=20.0, gt=0)
    ping_timeout_s: float = Field(default=20.0, gt=0)
    progress_interval_s: float = Field(default=8.0, gt=0)
    shutdown_grace_s: float = Field(default=25.0, ge=0)


class ProviderSettings(Section):
    """Kimi or GLM; without a key the provider is off."""

    api_key: ApiKey | None = None
    base_url: BaseUrl | None = None


class EndpointSettings(Section):
    """One named OpenAI-compatible endpoint; `models` may be empty when the endpoint lists its own."""

    base_url: BaseUrl
    api_key: ApiKey | None = None
    models: tuple[str, ...] = ()
    context_window: int | None = Field(default=None, ge=256)


class ProvidersSettings(Section):
    """Where answers come from."""

    kimi: ProviderSettings = ProviderSettings()
    glm: ProviderSettings = ProviderSettings()
    endpoints: dict[Annotated[str, AfterValidator(_check_endpoint_name)], EndpointSettings] = {}
    default_model: str | None = None
    models_file: Directory | None = None
    connect_timeout_s: float = Field(default=5.0, gt=0)
    first_token_timeout_s: float = Field(default=60.0, gt=0)
    gap_timeout_s: float = Field(default=30.0, gt=0)
    max_attempts: int = Field(default=3, ge=1, le=10)


class LimitSettings(Section):
    """Sizes a request may have."""

    message_bytes: int = Field(default=4 * 1_048_576, ge=1024)
    append_bytes: int = Field(default=16 * 1_048_576, ge=1024)
    append_messages: int = Field(default=1_000, ge=1)
    append_files: int = Field(default=200, ge=1)


class LogSettings(Section):
    """Logs go to standard error."""

    level: Annotated[Literal["debug", "info", "warning", "error"], BeforeValidator(_level)] = "info"
    format: Literal["auto", "text", "json"] = "auto"


class ConnectSettings(Section):
    """The daemon `exai connect` speaks to; without a URL the one of this machine, with the server's own token."""

    url: Annotated[str, AfterValidator(check_websocket)] | None = None
    token: ApiKey | None = None


def default_data_dir(environ: Mapping[str, str] = os.environ) -> Path:
    """Return where this user's data lives by the platform's own rule. Raises ConfigError without a home directory."""
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


class Settings(BaseSettings):
    """Everything that can be configured; `load_settings` is the one way to read it from the environment."""

    model_config = SettingsConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    database: DatabaseSettings = DatabaseSettings()
    cache: CacheSettings = CacheSettings()
    server: ServerSettings = ServerSettings()
    providers: ProvidersSettings = ProvidersSettings()
    limits: LimitSettings = LimitSettings()
    log: LogSettings = LogSettings()
    connect: ConnectSettings = ConnectSettings()
    data_dir: Directory = Field(default_factory=default_data_dir)
    pg_bin: Directory | None = None
    tool_timeout_s: float = Field(default=600.0, gt=0)

    _reading: Reading = PrivateAttr(default=Reading({}, None))

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Take values from the constructor only: the library's own reading would skip the rules of `load_settings`."""
        del settings_cls, env_settings, dotenv_settings, file_secret_settings
        return (init_settings,)

    @property
    def env_file(self) -> Path | None:
        """The `.env` file that was read, None when there was none."""
        return self._reading.env_file


@dataclass(frozen=True, slots=True)
class Variable:
    """One setting: the name to write, where it goes in `Settings`, and what it is without being set."""

    name: str
    path: tuple[str, ...]
    field: FieldInfo

    def lookup(self, settings: Settings) -> Any:
        """Return the value in effect."""
        return functools.reduce(getattr, self.path, settings)


class Described(NamedTuple):
    """One line of `exai config`, safe to show."""

    variable: str
    value: str
    origin: str


SENTENCES: Mapping[str, tuple[str, str]] = {
    "int_parsing": ("is not a whole number", "Write digits only"),
    "int_type": ("is not a whole number", "Write digits only"),
    "float_parsing": ("is not a number", "Write a number such as 2.5"),
    "float_type": ("is not a number", "Write a number such as 2.5"),
    "finite_number": ("is not a finite number", "Write a number such as 2.5"),
    "greater_than": ("is too small", "Write a number above {gt:g}"),
    "greater_than_equal": ("is too small", "Write {ge:g} or more"),
    "less_than_equal": ("is too large", "Write {le:g} or less"),
    "literal_error": ("is none of the known values", "Write one of {expected}"),
    "missing": ("is missing", "Add it"),
    "extra_forbidden": ("is not a known field", "Known are " + ", ".join(EndpointSettings.model_fields)),
    "tuple_type": ("is not a list", 'It looks like ["one", "two"]'),
    "string_type": ("is not text", "Put it in quotes"),
    "dict_type": ("is not a JSON object", 'It looks like {{"name": {{"base_url": "http://host/v1"}}}}'),
    "model_type": ("is not a JSON object", 'It looks like {{"base_url": "http://host/v1"}}'),
}
"""Problem and cure by pydantic's name of an error; the value itself is left out, since it may be a secret."""

RENAMED: Mapping[tuple[str, ...], str] = {("connect", "url"): "EXAI_URL", ("connect", "token"): "EXAI_TOKEN"}


@functools.cache
def variables() -> tuple[Variable, ...]:
    """Every known variable, in the order of the sections."""
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
    env_file: Path | None = ENV_FILE,
    overrides: Mapping[str, str] | None = None,
) -> Settings:
    """Read the environment and `env_file` once; `overrides` are variables given on the command line.

    Raises ConfigError, which names every variable found wrong as it was written.
    """
    reading = read_environment(environ, env_file, overrides)
    errors = list(_unknown(reading))
    given: dict[tuple[str, ...], Value] = {}
    nested: dict[str, Any] = {}
    for variable in variables():
        try:
            if value := reading.find(variable.name):
                given[variable.path] = value
                _put(nested, variable.path, _parse(variable, value))
        except ConfigError as error:
            errors.append(error)
    nested.setdefault("data_dir", default_data_dir(os.environ if environ is None else environ))
    try:
        settings = Settings(**nested)
    except ValidationError as error:
        errors += _explain(error, given)
    else:
        errors += _contradictions(settings, given)
        settings._reading = reading
    if errors:
        first = errors[0]
        raise ConfigError(first.setting, first.problem, first.cure, also=errors[1:])
    return settings


def describe(settings: Settings) -> list[Described]:
    """List every variable with its value, passwords and keys redacted, and where the value came from."""
    lines = []
    for variable in variables():
        origin = "default"
        if value := settings._reading.find(variable.name):
            origin = value.origin if value.name == variable.name else f"{value.origin}, as {value.name}"
        lines.append(Described(variable.name, show(variable.lookup(settings)), origin))
    return lines


def show(value: Any) -> str:
    """Return a setting's value as it would be written in the environment, without its secrets; unset is empty."""
    match value:
        case None:
            return ""
        case SecretStr():
            text = value.get_secret_value()
            return redact(text) if "://" in text else REDACTED
        case tuple():
            return ",".join(value)
        case dict():
            plain = {name: endpoint.model_dump(mode="json", exclude_none=True) for name, endpoint in value.items()}
            for endpoint in plain.values():
                endpoint.update({"api_key": REDACTED} if "api_key" in endpoint else {})
            return json.dumps(plain) if plain else ""
        case float():
            return f"{value:g}"
    return str(value)


def _unknown(reading: Reading) -> Iterator[ConfigError]:
    """Refuse every name in the `EXAI_` space that nothing reads."""
    names = {variable.name: variable.name for variable in variables()}
    names.update({older: variable for variable, all_older in OLDER_NAMES.items() for older in all_older})
    for name, value in reading.values.items():
        upper = name.upper()
        if (
            not upper.startswith("EXAI_")
            or name in names
            or upper.startswith(IGNORED_PREFIX)
            or _is_service_link(value)
        ):
            continue
        [nearest] = difflib.get_close_matches(upper, names, n=1, cutoff=0.0)
        yield ConfigError(name, "is not a known setting", f"The nearest known one is {names[nearest]}")


def _is_service_link(value: Value) -> bool:
    """Whether a container platform set this because a service there is called `exai`."""
    if value.name == "EXAI_PORT":
        return value.text.startswith(("tcp://", "udp://"))
    return bool(re.fullmatch(r"EXAI_(SERVICE_(HOST|PORT)(_\w+)?|PORT_\d+_(TCP|UDP)(_\w+)?)", value.name))


def _put(nested: dict[str, Any], path: tuple[str, ...], value: Any) -> None:
    for name in path[:-1]:
        nested = nested.setdefault(name, {})
    nested[path[-1]] = value


def _parse(variable: Variable, value: Value) -> Any:
    """Turn a value's text into what its field takes: lists are comma-separated or JSON, maps are JSON."""
    kind = get_origin(variable.field.annotation)
    if kind is tuple and not value.text.startswith("["):
        return tuple(part.strip() for part in value.text.split(",") if part.strip())
    if kind not in (tuple, dict):
        return value.text
    try:
        return json.loads(value.text)
    except (ValueError, RecursionError) as error:
        where = f" (line {error.lineno}, column {error.colno})" if isinstance(error, json.JSONDecodeError) else ""
        shape = '{"name": {"base_url": "http://host/v1"}}' if kind is dict else '["one", "two"]'
        raise ConfigError(value.name, f"is not JSON{where}", f"It looks like {shape}") from None


def _explain(error: ValidationError, given: Mapping[tuple[str, ...], Value]) -> Iterator[ConfigError]:
    """Turn pydantic's findings into one sentence per variable, under the name it was written."""
    # A literal that is one branch of a union only says what the value is not; the other branch says more.
    found = sorted(error.errors(include_url=False), key=lambda details: details["type"] == "literal_error")
    told = set()
    for details in found:
        path = tuple(str(part) for part in details["loc"])
        variable = next(each for each in variables() if path[: len(each.path)] == each.path)
        inside = path[len(variable.path) :] if isinstance(variable.field.default, dict) else ()
        if (variable.name, inside) in told:
            continue
        told.add((variable.name, inside))
        value = given.get(variable.path)
        problem, cure = _sentence(details, variable)
        where = ".".join(part for part in inside if part != "[key]")
        yield ConfigError(value.name if value else variable.name, f"{where} {problem}".strip(), cure)


def _sentence(details: ErrorDetails, variable: Variable) -> tuple[str, str]:
    facts = details.get("ctx", {})
    if isinstance(facts.get("error"), UnusableAddress):
        return facts["error"].problem, facts["error"].cure
    default = "" if variable.field.default_factory else show(variable.field.default)
    problem, cure = SENTENCES.get(details["type"], (f"cannot be used ({details['msg'].lower()})", "Correct it"))
    return problem, cure.format(**facts) + (f", or remove it for the default {default}" if default else "")


def _contradictions(settings: Settings, given: Mapping[tuple[str, ...], Value]) -> Iterator[ConfigError]:
    """Check the rules that need more than one setting."""

    def written(*path: str) -> str:
        return given[path].name if path in given else next(each.name for each in variables() if each.path == path)

    if not is_loopback(settings.server.host) and settings.server.token is None:
        yield ConfigError(
            written("server", "host"),
            f"{settings.server.host} can be reached from other machines, and no authentication is configured",
            "Set EXAI_SERVER__TOKEN as well, or bind to 127.0.0.1",
        )
    if settings.database.migration_url and not settings.database.url:
        yield ConfigError(
            written("database", "migration_url"),
            "is set, but the database itself is not",
            "Set EXAI_DATABASE__URL too, or remove both to use the embedded Postgres",
        )
    if settings.cache.pass_interval_s >= settings.cache.bound_s:
        yield ConfigError(
            written("cache", "pass_interval_s"),
            f"({settings.cache.pass_interval_s:g}) is not below EXAI_CACHE__BOUND_S ({settings.cache.bound_s:g})",
            "Make it a quarter of the bound",
        )
