"""Which addresses a credential may be sent to, by who wrote the two down.

A `.env` in the working directory comes with whatever project is there, so it is less trusted than the environment, the
command line and a file that was named. Invariant: no password, key or token is sent to an address that such a file
chose, unless the same file holds the credential too, and no program is started that such a file names.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from urllib.parse import urlsplit

from exai.environment import ENV_FILE_VARIABLE, Reading
from exai.errors import ConfigError

CURE = f"If you trust the file, name it with --env-file or {ENV_FILE_VARIABLE}; otherwise remove the setting from it"

ENDPOINTS = "EXAI_PROVIDERS__ENDPOINTS"
DAEMON_ADDRESS = ("EXAI_SERVER__HOST", "EXAI_SERVER__PORT")


def check_credentials(reading: Reading) -> Iterator[ConfigError]:
    """Yield what must not be used as it was set."""
    for provider in ("KIMI", "GLM"):
        name = f"EXAI_PROVIDERS__{provider}"
        yield from refusals(reading, (f"{name}__BASE_URL",), f"{name}__API_KEY")
    for name in reading.values:
        if name.startswith(f"{ENDPOINTS}__") and name.endswith("__API_KEY"):
            address = f"{name.removesuffix('API_KEY')}BASE_URL"
            yield from refusals(reading, (address if address in reading.values else ENDPOINTS,), name)
    for name in reading.values:
        key = f"{name.removesuffix('BASE_URL')}API_KEY"
        if name.startswith(f"{ENDPOINTS}__") and name.endswith("__BASE_URL") and key not in reading.values:
            yield from refusals(reading, (name,), ENDPOINTS)
    for name in ("EXAI_DATABASE__URL", "EXAI_DATABASE__MIGRATION_URL"):
        yield from _borrowed_password(reading, name)
    program = reading.find("EXAI_PG_BIN")
    if program is not None and program.is_found:
        yield ConfigError(program.name, f"is set in {program.origin} and names programs to be started", CURE)


def refusals(reading: Reading, addresses: Sequence[str], secret: str) -> Iterator[ConfigError]:
    """Yield an error for each of `addresses` that may not receive `secret`; all are names of variables."""
    key = reading.find(secret)
    if key is None or key.is_found:
        return
    for variable in addresses:
        address = reading.find(variable)
        if address is not None and address.is_found:
            problem = f"is set in {address.origin}, and would receive {key.name} of the {key.origin}"
            yield ConfigError(address.name, problem, CURE)


def check_daemon_token(reading: Reading, secret: str) -> None:
    """Raise ConfigError when this machine's daemon, as it is configured, may not receive the token `secret`."""
    for refused in refusals(reading, DAEMON_ADDRESS, secret):
        raise refused


def _borrowed_password(reading: Reading, variable: str) -> Iterator[ConfigError]:
    """Drivers take the password of an address without one from PGPASSWORD."""
    address = reading.find(variable)
    if address is None or not address.is_found or not os.environ.get("PGPASSWORD"):
        return
    try:
        has_password = urlsplit(address.text).password is not None or "password=" in address.text
    except ValueError:
        has_password = False
    if not has_password:
        yield ConfigError(
            address.name, f"is set in {address.origin}, and would receive PGPASSWORD of the environment", CURE
        )
