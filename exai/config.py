"""Settings: read once at start, frozen, and passed down by section.

Every variable is `EXAI_<SECTION>__<FIELD>`; the older names in `ALIASES` are accepted too. A variable that starts with
`EXAI_` and is not known is an error, because a misspelled limit that is silently ignored is worse than a refusal.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, SecretStr


class Section(BaseModel):
    """Base of the sections: immutable, and strict about names."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class DatabaseSettings(Section):
    """Postgres. Without a URL the embedded server is started."""

    url: SecretStr | None = None
    migration_url: SecretStr | None = None
    pool_size: int = Field(default=10, ge=1, le=200)
    acquire_timeout_s: float = Field(default=1.0, gt=0)
    statement_timeout_s: float = Field(default=6.0, gt=0)
    connect_timeout_s: float = Field(default=5.0, gt=0)


class CacheSettings(Section):
    """Redis or Valkey. Without a URL the embedded server is started; `off` means none at all."""

    url: SecretStr | Literal["off"] | None = None
    idle_hours: float = Field(default=24.0, gt=0)
    bound_s: float = Field(default=2.0, gt=0, le=60)
    pass_interval_s: float = Field(default=0.5, gt=0)
    timeout_s: float = Field(default=0.2, gt=0)
    entry_max_bytes: int = Field(default=1_048_576, ge=1024)


class ServerSettings(Section):
    """The one port."""

    host: str = "127.0.0.1"
    port: int = Field(default=8079, ge=0, le=65535)
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

    api_key: SecretStr | None = None
    base_url: str | None = None


class EndpointSettings(Section):
    """One named OpenAI-compatible endpoint; `models` may be empty when the endpoint lists its own."""

    base_url: str
    api_key: SecretStr | None = None
    models: tuple[str, ...] = ()
    context_window: int | None = Field(default=None, ge=256)


class ProvidersSettings(Section):
    """Where answers come from."""

    kimi: ProviderSettings = ProviderSettings()
    glm: ProviderSettings = ProviderSettings()
    endpoints: dict[str, EndpointSettings] = {}
    default_model: str | None = None
    models_file: Path | None = None
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

    level: Literal["debug", "info", "warning", "error"] = "info"
    format: Literal["auto", "text", "json"] = "auto"
