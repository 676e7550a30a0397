"""Rules that involve more than one setting; each violation is an error that names the variable and the cure."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from exai.errors import ConfigError
from exai.settings.addresses import is_loopback
from exai.settings.files import FileSettings
from exai.settings.sections import CacheSettings, DatabaseSettings, JwtSettings, ServerSettings


def contradictions(
    server: ServerSettings, database: DatabaseSettings, cache: CacheSettings, name_of: Callable[..., str]
) -> Iterator[ConfigError]:
    """Yield violations of the rules that involve more than one setting.

    `name_of` returns the variable of a setting, given by its section and field, as the user wrote it.
    """
    if not is_loopback(server.host) and not server.is_guarded:
        yield ConfigError(
            name_of("server", "host"),
            f"{server.host} can be reached from other machines, and no authentication is configured",
            "Set EXAI_SERVER__TOKEN (or EXAI_SERVER__TOKENS, or EXAI_SERVER__JWT__...) as well, or bind to 127.0.0.1",
        )
    yield from _shared_tokens(server)
    yield from _jwt_contradictions(server.jwt)
    if database.migration_url and not database.url:
        yield ConfigError(
            name_of("database", "migration_url"),
            "is set, but the database itself is not",
            "Set EXAI_DATABASE__URL too, or remove both to use the embedded Postgres",
        )
    if cache.reconcile_interval_s >= cache.max_staleness_s:
        yield ConfigError(
            name_of("cache", "reconcile_interval_s"),
            f"({cache.reconcile_interval_s:g}) is not below EXAI_CACHE__MAX_STALENESS_S ({cache.max_staleness_s:g})",
            "Set it to a quarter of EXAI_CACHE__MAX_STALENESS_S",
        )


def _shared_tokens(server: ServerSettings) -> Iterator[ConfigError]:
    """Yield an error for a token of two owners: which one it admits would depend on their order."""
    holders: dict[str, str] = {}
    if server.token is not None:
        holders[server.token.get_secret_value()] = "EXAI_SERVER__TOKEN"
    for owner, token in server.tokens.items():
        other = holders.setdefault(token.get_secret_value(), owner)
        if other != owner:
            yield ConfigError(
                "EXAI_SERVER__TOKENS", f"{owner} has the same token as {other}", "Give every owner one of its own"
            )
    if server.metrics_token is not None and server.metrics_token.get_secret_value() in holders:
        yield ConfigError(
            "EXAI_SERVER__METRICS_TOKEN", "is also the token of an owner", "Set another one, for the metrics alone"
        )


def _jwt_contradictions(jwt: JwtSettings) -> Iterator[ConfigError]:
    if jwt.secret is not None and jwt.jwks_url is not None:
        yield ConfigError(
            "EXAI_SERVER__JWT__SECRET and EXAI_SERVER__JWT__JWKS_URL",
            "are both set, so that either could vouch for a token",
            "Keep JWKS_URL if the issuer publishes keys, else SECRET",
        )
    if jwt.is_on and not jwt.issuer:
        yield ConfigError(
            "EXAI_SERVER__JWT__ISSUER",
            "is missing, so tokens of any issuer with that key would do",
            "Set it to the iss of the tokens; Supabase's is https://REF.supabase.co/auth/v1",
        )
    if jwt.publishable_key is not None and not (jwt.issuer or "").startswith(("https://", "http://")):
        yield ConfigError(
            "EXAI_SERVER__JWT__PUBLISHABLE_KEY",
            "needs an issuer at which the page can sign in",
            "Set EXAI_SERVER__JWT__ISSUER to https://REF.supabase.co/auth/v1",
        )
    if jwt.issuer and not jwt.is_on:
        yield ConfigError(
            "EXAI_SERVER__JWT__ISSUER",
            "is set, but nothing to verify its tokens with",
            "Set EXAI_SERVER__JWT__JWKS_URL or EXAI_SERVER__JWT__SECRET too",
        )


def store_contradictions(files: FileSettings) -> Iterator[ConfigError]:
    """Yield an error for a store of files that is selected, or configured in part, and lacks required settings."""
    supabase, s3 = files.supabase, files.s3
    for value, name, cure in (
        (supabase.url, "EXAI_FILES__SUPABASE__URL", "Set it to the project's address, https://REF.supabase.co"),
        (supabase.key, "EXAI_FILES__SUPABASE__KEY", "Set it to the secret key (sb_secret_...) or the service_role key"),
    ):
        if value is None and (files.store == "supabase" or supabase.url or supabase.key):
            yield ConfigError(name, "is missing, and files in Supabase Storage need it", cure)
    if s3.bucket is None and (files.store == "s3" or s3.endpoint is not None or s3.access_key_id is not None):
        yield ConfigError("EXAI_FILES__S3__BUCKET", "is missing, and files in S3 need it", "Set it to a bucket's name")
    if (s3.access_key_id is None) != (s3.secret_access_key is None):
        missing = "SECRET_ACCESS_KEY" if s3.secret_access_key is None else "ACCESS_KEY_ID"
        cure = "Set both, or neither to use the credentials of the environment or the machine"
        yield ConfigError(f"EXAI_FILES__S3__{missing}", "is missing beside the other half of the key", cure)
