"""Decides which settings a `.env` in the working directory may make, by their origin.

Such a file belongs to any project there, so it is less trusted than the environment, the command line and an explicitly
named file. Invariant: no password, key or token is sent to an address that such a file chose, unless the same file
holds the credential too; no program is started that such a file names, and no server with data that such a file chose;
and such a file does not widen what may be read of the user's files and conversations, or who may connect, nor choose
where files are stored.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final
from urllib.parse import unquote

from exai.errors import ConfigError
from exai.settings.addresses import is_loopback
from exai.settings.environment import DESCRIBED, ENV_FILE_VARIABLE, Reading, Value

CURE = f"If you trust the file, name it with --env-file or {ENV_FILE_VARIABLE}; otherwise remove the setting from it"

STORES: Final = "decides where the bytes of files are stored"

ACCESS: Final[Mapping[str, str]] = {
    "EXAI_FILES__STORE": STORES,
    "EXAI_FILES__SUPABASE__URL": STORES,
    "EXAI_FILES__SUPABASE__KEY": STORES,
    "EXAI_FILES__SUPABASE__BUCKET": STORES,
    "EXAI_FILES__S3__ENDPOINT": STORES,
    "EXAI_FILES__S3__REGION": STORES,
    "EXAI_FILES__S3__ACCESS_KEY_ID": STORES,
    "EXAI_FILES__S3__SECRET_ACCESS_KEY": STORES,
    "EXAI_FILES__S3__BUCKET": STORES,
    "EXAI_FILES__S3__PREFIX": STORES,
    "EXAI_FILES__ROOTS": "decides which files of this machine may be read",
    "EXAI_SERVER__ALLOWED_HOSTS": "decides by which host names clients may connect",
    "EXAI_SERVER__ALLOWED_ORIGINS": "decides which web pages may connect",
    "EXAI_SERVER__TOKENS": "decides who may connect as which owner",
    "EXAI_SERVER__METRICS_TOKEN": "decides who may read the metrics",
    "EXAI_SERVER__JWT__SECRET": "decides who may connect as which owner",
    "EXAI_SERVER__JWT__JWKS_URL": "decides who may connect as which owner",
    "EXAI_SERVER__JWT__ISSUER": "decides who may connect as which owner",
    "EXAI_SERVER__JWT__AUDIENCE": "decides who may connect as which owner",
    "EXAI_SERVER__JWT__ALLOW_ANONYMOUS": "decides who may connect as which owner",
    "EXAI_SERVER__JWT__PUBLISHABLE_KEY": "decides where the page signs in",
    "EXAI_STORE__KEYS": "decides with which key content is encrypted",
    "EXAI_REQUESTS__ENABLED": "lets those who may store rows in the database use the tools",
    "EXAI_SERVER__JWT__SIGN_IN_WITH": "decides where the page signs in",
}
"""Settings that widen access, or send files elsewhere, with any value."""

HOST: Final = "EXAI_SERVER__HOST"
OTHER_CREDENTIALS: Final = ("EXAI_SERVER__TOKENS", "EXAI_SERVER__JWT__SECRET", "EXAI_SERVER__JWT__JWKS_URL")

ENDPOINTS = "EXAI_PROVIDERS__ENDPOINTS"
DAEMON_ADDRESS = ("EXAI_SERVER__HOST", "EXAI_SERVER__PORT")


def check_credentials(reading: Reading) -> Iterator[ConfigError]:
    """Yield an error for every setting that must not be used because of its origin."""
    for provider in DESCRIBED:
        name = f"EXAI_PROVIDERS__{provider.upper()}"
        yield from refusals(reading, (f"{name}__BASE_URL",), f"{name}__API_KEY")
    for name in reading.values:
        if name.startswith(f"{ENDPOINTS}__") and name.endswith("__API_KEY"):
            address = f"{name.removesuffix('API_KEY')}BASE_URL"
            yield from refusals(reading, (address if address in reading.values else ENDPOINTS,), name)
    for name in reading.values:
        key = f"{name.removesuffix('BASE_URL')}API_KEY"
        if name.startswith(f"{ENDPOINTS}__") and name.endswith("__BASE_URL") and key not in reading.values:
            yield from refusals(reading, (name,), ENDPOINTS)
    for name in ("EXAI_DATABASE__URL", "EXAI_DATABASE__MIGRATION_URL", "EXAI_REQUESTS__LISTEN_URL"):
        yield from _borrowed_password(reading, name)
    program = reading.find("EXAI_PG_BIN")
    if program is not None and program.is_found:
        yield ConfigError(program.name, f"is set in {program.origin} and names programs to be started", CURE)


def check_access(reading: Reading) -> Iterator[ConfigError]:
    """Yield an error for every setting of a found file that extends access to files or to the daemon."""
    for name, decides in ACCESS.items():
        if (value := _found(reading, name)) is not None:
            yield _widens(value, name, decides)
    host, token = reading.find(HOST), _found(reading, "EXAI_SERVER__TOKEN")
    is_exposed = host is not None and not is_loopback(host.text)
    if host is not None and host.is_found and is_exposed:
        yield _widens(host, HOST, "lets other machines connect")
    elif token is not None and (is_exposed or any(_is_trusted(reading, name) for name in OTHER_CREDENTIALS)):
        # Without another credential, on a loopback address, a token only keeps callers out.
        yield _widens(token, "EXAI_SERVER__TOKEN", "decides who may connect")
    data, roots = _found(reading, "EXAI_DATA_DIR"), reading.find("EXAI_FILES__ROOTS")
    if data is not None and roots is not None:
        yield _widens(data, "EXAI_DATA_DIR", f"decides which data of EXAI is kept out of {roots.name}")
    cache, database = _found(reading, "EXAI_CACHE__URL"), reading.find("EXAI_DATABASE__URL")
    if cache is not None and "://" in cache.text and (database is None or not database.is_found):
        whose = f"{database.name} of the {database.origin}" if database else "EXAI's own Postgres"
        yield _widens(cache, "EXAI_CACHE__URL", f"would receive the conversations of {whose}")


def _found(reading: Reading, variable: str) -> Value | None:
    value = reading.find(variable)
    return value if value is not None and value.is_found else None


def _is_trusted(reading: Reading, variable: str) -> bool:
    value = reading.find(variable)
    return value is not None and not value.is_found


def _widens(value: Value, variable: str, effect: str) -> ConfigError:
    return ConfigError(
        value.name, f"is set in {value.origin} and {effect}", f"{CURE}, or set {variable} in the environment"
    )


def refusals(reading: Reading, addresses: Sequence[str], secret: str) -> Iterator[ConfigError]:
    """Yield an error for each of `addresses` that may not receive `secret`; all are variable names."""
    key = reading.find(secret)
    if key is None or key.is_found:
        return
    for variable in addresses:
        address = reading.find(variable)
        if address is not None and address.is_found:
            problem = f"is set in {address.origin}, and would receive {key.name} of the {key.origin}"
            yield ConfigError(address.name, problem, CURE)


def check_daemon_token(reading: Reading, secret: str) -> None:
    """Raise ConfigError if this machine's daemon, as configured, may not receive the token `secret`."""
    for refused in refusals(reading, DAEMON_ADDRESS, secret):
        raise refused


def check_data_dir(reading: Reading) -> Iterator[ConfigError]:
    """Yield the errors that forbid the embedded servers on this data: a cluster's contents can execute commands."""
    chosen = reading.find("EXAI_DATA_DIR")
    if chosen is not None and chosen.is_found:
        yield ConfigError(chosen.name, f"is set in {chosen.origin} and names data that EXAI's servers would run", CURE)


def _borrowed_password(reading: Reading, variable: str) -> Iterator[ConfigError]:
    """Yield errors for addresses without a password, for which drivers take a password from elsewhere."""
    address = reading.find(variable)
    if address is None or not address.is_found:
        return
    authority, query = _split(address.text)
    parameters = {unquote(name): unquote(value) for name, _, value in (part.partition("=") for part in query)}
    if parameters.get("password") or authority.partition("@")[0].partition(":")[2]:
        return
    if os.environ.get("PGPASSWORD"):
        lent = "PGPASSWORD of the environment"
    elif service := parameters.get("service") or os.environ.get("PGSERVICE"):
        lent = f"the password of the service {service}"
    elif (passwords := _passwords_for_all_hosts(parameters.get("passfile"))) is not None:
        lent = f"a password that {passwords} has for every host"
    else:
        return
    yield ConfigError(address.name, f"is set in {address.origin}, and would receive {lent}", CURE)


def _split(url: str) -> tuple[str, list[str]]:
    """Return the authority of a URL, empty without user information, and its parameters."""
    rest, _, query = url.partition("://")[2].partition("?")
    authority = rest.partition("/")[0]
    return (authority if "@" in authority else ""), query.split("&")


def _passwords_for_all_hosts(named: str | None) -> Path | None:
    """Return libpq's password file if it has an entry for every host."""
    file = Path(named or os.environ.get("PGPASSFILE") or "~/.pgpass")
    try:
        lines = file.expanduser().read_text("utf-8", "replace").splitlines()
    except (OSError, RuntimeError):
        return None
    return file if any(line.startswith("*:") for line in lines) else None
