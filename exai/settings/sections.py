"""The sections of the settings, with the defaults and valid values of each field.

Invariant: a section that exists is valid and never shows a secret, however it was created. `exai.settings.load`
reads the variables, and the rest of EXAI imports the sections from there.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, SecretStr

from exai.models import MAX_OWNER_CHARS, is_owner_name
from exai.settings.addresses import (
    UnusableAddress,
    check_header,
    check_host,
    check_http,
    check_key_url,
    check_postgres,
    check_publishable,
    check_redis,
    check_websocket,
)
from exai.settings.environment import DESCRIBED

TOKEN_MIN_CHARS = 16
JWT_SECRET_MIN_CHARS = 32
"""Minimum length of an HS256 secret that gives the algorithm its full strength."""

CALL_DEADLINES: Final[Mapping[str, float]] = {
    "claude-code": 3_600.0,
    "exai-page": 3_600.0,
    "exai-requests": 3_600.0,
    "gemini-cli": 580.0,
    "codex": 280.0,
    "*": 55.0,
}
"""Seconds within which a call is answered, by the beginning of the client's name: below its limit, which is 300 s for
Codex, 600 s for Gemini CLI and 60 s for most; the first three wait as long as they receive progress."""

ENDPOINT_NAME = re.compile(r"[a-z0-9][a-z0-9_.-]{0,63}")
LEVELS = {"warn": "warning", "critical": "error", "fatal": "error", "trace": "debug"}
"""Other programs' names of log levels, since they share LOG_LEVEL with EXAI."""


def secret(check: Callable[[str], str]) -> AfterValidator:
    """Return the validator of a secret, made of one of its text."""
    return AfterValidator(lambda value: SecretStr(check(value.get_secret_value())))


def _check_token(token: str) -> str:
    if len(token) < TOKEN_MIN_CHARS:
        raise UnusableAddress(
            f"is shorter than {TOKEN_MIN_CHARS} characters",
            "Make one with: python3 -c 'import secrets; print(secrets.token_urlsafe(32))'",
        )
    return check_header(token)


def _check_jwt_secret(secret: str) -> str:
    if len(secret) < JWT_SECRET_MIN_CHARS:
        raise UnusableAddress(
            f"is shorter than {JWT_SECRET_MIN_CHARS} characters", "Copy the JWT secret whole, not a key made with it"
        )
    if secret.count(".") == 2 and secret.startswith("eyJ"):
        raise UnusableAddress("is itself a signed token", "In Supabase the secret is under JWT Keys, not API Keys")
    return secret


def _check_owner(name: str) -> str:
    if not is_owner_name(name):
        raise UnusableAddress("cannot be an owner's name", f"Use up to {MAX_OWNER_CHARS} printable characters")
    return name


def _check_endpoint_name(name: str) -> str:
    if name.lower() in DESCRIBED:
        cure = f"Choose another name, or set EXAI_PROVIDERS__{name.upper()}__API_KEY and __BASE_URL"
        raise UnusableAddress("is the name of a provider that EXAI describes", cure)
    if not ENDPOINT_NAME.fullmatch(name.lower()):
        raise UnusableAddress("cannot be an endpoint's name", "Use letters, digits, -, _ and .")
    return name.lower()


def _level(value: Any) -> Any:
    return LEVELS.get(value.strip().lower(), value.strip().lower()) if isinstance(value, str) else value


def _off(value: Any) -> Any:
    return value.lower() if isinstance(value, str) else value


DatabaseUrl = Annotated[SecretStr, secret(check_postgres)]
CacheUrl = Annotated[SecretStr, secret(check_redis)]
BaseUrl = Annotated[str, AfterValidator(check_http)]
ApiKey = Annotated[SecretStr, secret(check_header)]
Token = Annotated[SecretStr, secret(_check_token)]
PublishableKey = Annotated[str, AfterValidator(check_publishable)]
JwtSecret = Annotated[SecretStr, secret(_check_jwt_secret)]
JwksUrl = Annotated[str, AfterValidator(check_key_url)]
OwnerName = Annotated[str, AfterValidator(_check_owner)]
Directory = Annotated[Path, AfterValidator(lambda path: path.expanduser())]


class Section(BaseModel):
    """Base of the sections: immutable; unknown names are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class DatabaseSettings(Section):
    """Postgres. Without a URL the embedded server is started."""

    url: DatabaseUrl | None = None
    migration_url: DatabaseUrl | None = None
    pool_size: int = Field(default=10, ge=1, le=200)
    acquire_timeout_s: float = Field(default=1.0, gt=0)
    statement_timeout_s: float = Field(default=6.0, gt=0)
    connect_timeout_s: float = Field(default=5.0, gt=0)
    index_pause_s: float = Field(default=1.0, gt=0, le=3_600)


class CacheSettings(Section):
    """Redis or Valkey. `off` means none, `embedded` EXAI's own, the default beside the embedded database.

    With `required` a daemon does not start while the server cannot be reached, which is often a wrong address.
    """

    url: Annotated[Literal["off", "embedded"], BeforeValidator(_off)] | CacheUrl | None = Field(
        default=None, union_mode="left_to_right"
    )
    required: bool = True
    idle_hours: float = Field(default=24.0, gt=0)
    max_staleness_s: float = Field(default=2.0, gt=0, le=60)
    reconcile_interval_s: float = Field(default=0.5, gt=0)
    timeout_s: float = Field(default=0.2, gt=0)
    entry_max_bytes: int = Field(default=1_048_576, ge=1024, le=1_048_576)
    verify_one_in: int = Field(default=1_000, ge=0)


class JwtSettings(Section):
    """Signed tokens of one issuer: HS256 by `secret`, or ES256 and RS256 by the keys at `jwks_url`, never both."""

    secret: JwtSecret | None = None
    jwks_url: JwksUrl | None = None
    issuer: str | None = None
    audience: str = "authenticated"
    allow_anonymous: bool = False
    publishable_key: PublishableKey | None = None
    sign_in_with: tuple[str, ...] = ()

    @property
    def is_on(self) -> bool:
        """Return whether signed tokens are accepted."""
        return self.secret is not None or self.jwks_url is not None


class ServerSettings(Section):
    """The one port. Without `token`, `tokens` and `jwt` every caller is admitted, and only on a loopback address.

    A caller with `token` is the local owner; a caller with one of `tokens` is the owner of its key. `metrics_token`
    admits to the metrics alone.
    """

    host: Annotated[str, AfterValidator(check_host)] = "127.0.0.1"
    port: int = Field(default=8079, ge=0, le=65535)
    token: Token | None = None
    tokens: dict[OwnerName, Token] = Field(default={}, examples=['{"alice": "a token of 16 characters or more"}'])
    jwt: JwtSettings = JwtSettings()
    metrics_token: Token | None = None
    allowed_hosts: tuple[str, ...] = ()
    allowed_origins: tuple[str, ...] = ()
    message_max_bytes: int = Field(default=8_388_608, ge=1024)
    reply_max_bytes: int = Field(default=1_048_576, ge=8_192)
    max_connections: int = Field(default=10_000, ge=1)
    max_in_flight: int = Field(default=32, ge=1)
    max_handshakes_per_address: int = Field(default=1_024, ge=1)
    owner_max_connections: int = Field(default=5_000, ge=1)
    owner_max_in_flight: int = Field(default=512, ge=1)
    owner_max_in_flight_bytes: int = Field(default=134_217_728, ge=1024)
    owner_requests_per_s: float = Field(default=2_000.0, gt=0)
    owner_bytes_per_s: int = Field(default=67_108_864, ge=1024)
    handshake_timeout_s: float = Field(default=10.0, gt=0)
    send_timeout_s: float = Field(default=10.0, gt=0)
    ping_interval_s: float = Field(default=20.0, gt=0)
    ping_timeout_s: float = Field(default=20.0, gt=0)
    progress_interval_s: float = Field(default=8.0, gt=0)
    shutdown_grace_s: float = Field(default=25.0, ge=0)
    task_after_s: float = Field(default=5.0, ge=0)
    owner_max_tasks: int = Field(default=64, ge=1)
    call_deadlines: dict[str, Annotated[float, Field(gt=0)]] = Field(default={}, examples=['{"codex": 280, "*": 55}'])

    def call_deadline_s(self, client: str) -> float:
        """Return the time within which a call of the client with this name must be answered."""
        known, name = self._deadlines, client.strip().lower()
        return known[max((each for each in known if name.startswith(each.lower())), key=len, default="*")]

    @property
    def shortest_call_deadline_s(self) -> float:
        """Return the shortest time within which a call of any client must be answered."""
        return min(self._deadlines.values())

    @property
    def _deadlines(self) -> Mapping[str, float]:
        return {**CALL_DEADLINES, **self.call_deadlines}

    @property
    def is_guarded(self) -> bool:
        """Return whether callers must authenticate."""
        return self.token is not None or bool(self.tokens) or self.jwt.is_on

    @property
    def has_one_owner(self) -> bool:
        """Return whether every caller is the same owner, whose daemon it then is."""
        return not self.jwt.is_on and len(self.tokens) + (self.token is not None) <= 1


class ProviderSettings(Section):
    """A provider that EXAI describes; without a key it is disabled."""

    api_key: ApiKey | None = None
    base_url: BaseUrl | None = None
    max_concurrent: int | None = Field(default=None, ge=1, le=1_000)


class EndpointSettings(Section):
    """One named OpenAI-compatible endpoint; `models` may be empty when the endpoint lists its own."""

    base_url: BaseUrl
    api_key: ApiKey | None = None
    models: tuple[str, ...] = ()
    context_window: int | None = Field(default=None, ge=256)
    max_concurrent: int | None = Field(default=None, ge=1, le=1_000)


class ProvidersSettings(Section):
    """The model providers."""

    kimi: ProviderSettings = ProviderSettings()
    glm: ProviderSettings = ProviderSettings()
    deepseek: ProviderSettings = ProviderSettings()
    openrouter: ProviderSettings = ProviderSettings()
    qwen: ProviderSettings = ProviderSettings()
    endpoints: dict[Annotated[str, AfterValidator(_check_endpoint_name)], EndpointSettings] = Field(
        default={}, examples=['{"name": {"base_url": "http://host/v1"}}']
    )
    default_model: str | None = None
    fallback: tuple[str, ...] = Field(default=(), max_length=8)
    panel: tuple[str, ...] = ()
    arbiter: str | None = None
    models_file: Directory | None = None
    connect_timeout_s: float = Field(default=5.0, gt=0)
    first_token_timeout_s: float = Field(default=60.0, gt=0)
    stream_idle_timeout_s: float = Field(default=30.0, gt=0)
    max_attempts: int = Field(default=3, ge=1, le=10)


class BudgetSettings(Section):
    """Budgets in US dollars; unset: unlimited. Days and months are those of UTC.

    While one is set, a model without a known price is refused, or counted at `unpriced_input_usd` and
    `unpriced_output_usd` per million tokens; one of them alone holds for both.
    """

    conversation_usd: float | None = Field(default=None, gt=0)
    owner_day_usd: float | None = Field(default=None, gt=0)
    owner_month_usd: float | None = Field(default=None, gt=0)
    answer_tokens: int = Field(default=32_768, ge=256)
    unpriced_input_usd: float | None = Field(default=None, ge=0)
    unpriced_output_usd: float | None = Field(default=None, ge=0)


class AnswerSettings(Section):
    """The answer cache, for calls that ask for it. Without an embedding model no similar questions are looked for.

    A vector costs `embedding_input_usd` per million tokens, which a turn's cost includes.
    """

    ttl_hours: float = Field(default=24.0, gt=0, le=8_760)
    entry_max_bytes: int = Field(default=262_144, ge=1024, le=1_048_576)
    owner_max_bytes: int = Field(default=16 * 1_048_576, ge=1024)
    embedding_model: str | None = None
    embedding_input_usd: float | None = Field(default=None, ge=0)
    similarity: float = Field(default=0.97, ge=0.5, le=1.0)


class RetentionSettings(Section):
    """After how many days without a change daemons delete conversations; unset: never.

    `owners` has other numbers for some owners; 0: never.
    """

    idle_days: float | None = Field(default=None, gt=0, le=36_500)
    owners: dict[OwnerName, Annotated[float, Field(ge=0, le=36_500)]] = Field(default={}, examples=['{"anna": 30}'])


class LimitSettings(Section):
    """Maximum sizes of requests."""

    message_bytes: int = Field(default=4 * 1_048_576, ge=1024)
    append_bytes: int = Field(default=16 * 1_048_576, ge=1024)
    append_messages: int = Field(default=1_000, ge=1)
    append_files: int = Field(default=200, ge=1)
    metadata_bytes: int = Field(default=262_144, ge=1024)


LogLevel = Literal["debug", "info", "warning", "error"]


class LogSettings(Section):
    """The log, which is written to standard error. `sample` is the share of successful requests that have a line."""

    level: Annotated[LogLevel, BeforeValidator(_level)] = "info"
    format: Literal["auto", "text", "json"] = "auto"
    sample: float = Field(default=1.0, ge=0, le=1)


class TelemetrySettings(Section):
    """Spans for an OpenTelemetry collector; OTEL_EXPORTER_OTLP_ENDPOINT and other OTEL_* variables configure it."""

    traces: bool = False
    content: bool = False


class ConnectSettings(Section):
    """The daemon that `exai connect` dials; by default the one of this machine, with the server's own token."""

    url: Annotated[str, AfterValidator(check_websocket)] | None = None
    token: ApiKey | None = None
