"""Validation of addresses in settings, with a problem and a cure for unusable ones, and their redaction for display.

Invariant: no text leaving this module, in a return value or an exception, holds a password.
"""

from __future__ import annotations

import base64
import ipaddress
import re
from urllib.parse import urlsplit

POSTGRES_SCHEMES = ("postgresql", "postgres")
REDIS_SCHEMES = (
    "redis",
    "rediss",
    "unix",
    "redis+sentinel",
    "rediss+sentinel",
    "redis+cluster",
    "rediss+cluster",
)
HTTP_SCHEMES = ("http", "https")
WEBSOCKET_SCHEMES = ("ws", "wss")

_USER_INFO = re.compile(r"(://[^:@/?#\s]*):(?:[^\s]*)@")
_PASSWORD_PARAMETER = re.compile(r"(?i)([?&][a-z_]*password=)[^&\s]*")


class UnusableAddress(ValueError):
    """An address that cannot be used. `problem` and `cure` are the two halves of the error's sentence."""

    def __init__(self, problem: str, cure: str) -> None:
        super().__init__(problem, cure)
        self.problem, self.cure = problem, cure


def redact(url: str) -> str:
    """Return `url` with its password as `***`. To be safe, everything up to the last `@` counts as user information."""
    before, at, rest = url.rpartition("@")
    return _PASSWORD_PARAMETER.sub(r"\1***", _USER_INFO.sub(r"\1:***@", before + at) + rest)


def is_loopback(host: str) -> bool:
    """Return whether only this machine can reach a server bound to `host`; no name but localhost is trusted."""
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def check_postgres(url: str) -> str:
    """Return `url` if a Postgres client can use it; `postgresql+driver://` is accepted. Raises UnusableAddress."""
    example = "postgresql://user:password@host:5432/database"
    if url.lower().startswith(("http://", "https://")):
        raise UnusableAddress(
            "is a web address, not a Postgres connection string",
            f"In Supabase it is under Connect; it looks like {example}",
        )
    if "[YOUR-PASSWORD]" in url.upper():
        raise UnusableAddress(
            "still holds the placeholder [YOUR-PASSWORD]", "Put the database's password in its place, percent-encoded"
        )
    return _check(url, POSTGRES_SCHEMES, example)


def check_redis(url: str) -> str:
    """Return `url` if a Redis client can use it. Raises UnusableAddress."""
    return _check(url, REDIS_SCHEMES, "redis://host:6379/0, or `off` for no cache")


def check_http(url: str) -> str:
    """Return a provider's base address without a trailing slash. Raises UnusableAddress."""
    example = "https://host/v1"
    _check(url, HTTP_SCHEMES, example)
    parts = urlsplit(url)
    if not parts.hostname:
        raise UnusableAddress("has no host", f"It looks like {example}")
    if "@" in parts.netloc:
        raise UnusableAddress("holds a user name or password", "Give the key in the api_key setting instead")
    if parts.query:
        raise UnusableAddress("has a query part", f"Give the base address only, like {example}")
    return url.rstrip("/")


def check_key_url(url: str) -> str:
    """Return the address of an issuer's published keys. Raises UnusableAddress."""
    example = "https://REF.supabase.co/auth/v1/.well-known/jwks.json"
    _check(url, HTTP_SCHEMES, example)
    parts = urlsplit(url)
    if not parts.hostname:
        raise UnusableAddress("has no host", f"It looks like {example}")
    if "@" in parts.netloc:
        raise UnusableAddress("holds a user name or password", "Published keys need none")
    if parts.scheme.lower() == "http" and not is_loopback(parts.hostname):
        raise UnusableAddress("is not https, so an attacker on the network could replace the keys", f"Use {example}")
    return url


def check_websocket(url: str) -> str:
    """Return the address of a daemon as `exai connect` dials it. Raises UnusableAddress."""
    if _scheme(url) in HTTP_SCHEMES:
        raise UnusableAddress("is a web address", f"Write it as {url.replace('http', 'ws', 1).removesuffix('mcp')}")
    return _check(url, WEBSOCKET_SCHEMES, "ws://127.0.0.1:8079/")


def check_host(host: str) -> str:
    """Return a bare host name or address, for IPv6 without its brackets. Raises UnusableAddress."""
    bare = host.removeprefix("[").removesuffix("]")
    try:
        return str(ipaddress.ip_address(bare))
    except ValueError:
        if re.fullmatch(r"[A-Za-z0-9._-]+", host):
            return host
    raise UnusableAddress("is not a host name or an IP address", "Write the host alone, without scheme or port")


def check_header(text: str) -> str:
    """Return a key or token if it can be sent in an HTTP header. Raises UnusableAddress."""
    if not text.isascii() or not text.isprintable() or " " in text:
        raise UnusableAddress(
            "holds a character that cannot be sent in a header", "Copy it again, without quotes or spaces"
        )
    return text


def check_publishable(key: str) -> str:
    """Return a key of a Supabase project that everyone may see. Raises UnusableAddress for a secret one."""
    if key.startswith("sb_secret_") or '"service_role"' in _payload_of(key):
        raise UnusableAddress(
            "is a secret key, which the page would show to everyone", "Use the publishable (anon) key"
        )
    return check_header(key)


def _payload_of(token: str) -> str:
    """Return the claims of a signed token as text; empty for any other key."""
    parts = token.split(".")
    if len(parts) != 3:
        return ""
    try:
        return base64.urlsafe_b64decode(parts[1] + "=" * (-len(parts[1]) % 4)).decode()
    except ValueError:
        return ""


def _scheme(url: str) -> str:
    scheme, separator, _ = url.partition("://")
    return scheme.lower() if separator else ""


def _check(url: str, schemes: tuple[str, ...], example: str) -> str:
    scheme = _scheme(url)
    if scheme.partition("+")[0] not in schemes:
        found = f"has the scheme {scheme}://" if scheme.replace("+", "").isalnum() else "has no scheme"
        raise UnusableAddress(
            f"{found}; known are {', '.join(f'{each}://' for each in schemes)}", f"It looks like {example}"
        )
    unreadable = UnusableAddress(
        "cannot be read as an address",
        f"Percent-encode special characters of the password (@ is %40, / is %2F, # is %23); it looks like {example}",
    )
    try:
        parts = urlsplit(url)
    except ValueError:
        # Without the cause: the parser's message quotes the part that may be the password.
        raise unreadable from None
    if parts.fragment or "@" in parts.path or re.search(r"\s", url):
        raise unreadable
    # A connection string may list several hosts, for which `parts.port` would raise.
    for host in parts.netloc.rpartition("@")[2].split(","):
        port = re.sub(r"^\[[^\]]*\]", "", host).partition(":")[2]
        if port and not (port.isdigit() and int(port) <= 65535):
            raise unreadable
    return url
