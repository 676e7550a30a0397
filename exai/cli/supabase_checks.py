"""The checks of `exai doctor --supabase`: addresses, certificate, keys, connections, and what the database says.

Invariant: no key or password is part of a finding.
"""

from __future__ import annotations

import asyncio
import json
import re
import socket
import urllib.request
from collections.abc import Sequence
from typing import Any, Final

from exai.db.driver.address import Address, parse_address
from exai.db.supabase import examine as examine_database
from exai.db.supabase import read_limits
from exai.errors import ExaiError
from exai.models import Finding
from exai.settings.load import Settings

LIMIT_S: Final = 5.0
POOLER: Final = re.compile(r"aws-\d+-[a-z0-9-]+\.pooler\.supabase\.com")
DIRECT: Final = re.compile(r"db\.([a-z0-9]{20})\.supabase\.(?:co|com|net)")
TRANSACTION_PORT: Final = 6543
SIGNING: Final = frozenset({"ES256", "RS256"})
BUDGET_SHARE: Final = 0.8
SESSION_POOLER: Final = (
    "Use the session pooler of the project (Connect, Session pooler): "
    "postgres.REF@aws-N-REGION.pooler.supabase.com:5432"
)


async def check_supabase(settings: Settings, workers: int = 1) -> list[Finding]:
    """Return findings about the configured project."""
    if settings.database.url is None:
        return [Finding("supabase", "off", "EXAI_DATABASE__URL is not set: the embedded Postgres is used")]
    url = settings.database.url.get_secret_value()
    address = parse_address(url)
    found = [*await asyncio.to_thread(check_address, address), *check_keys(settings), *await check_issuer(settings)]
    try:
        async with asyncio.timeout(2 * LIMIT_S):
            found.append(_budget(settings.database.pool_size, workers, *await read_limits(url)))
            found += await examine_database(url, anonymous=settings.server.jwt.allow_anonymous)
    except ExaiError as error:
        found.append(Finding("supabase", "fail", str(error)))
    except TimeoutError:
        found.append(Finding("supabase", "fail", f"no answer within {2 * LIMIT_S:g} s", "Check the address"))
    return found


def check_address(address: Address) -> list[Finding]:
    """Return what the host and port mean, whether this machine can reach the host, and how TLS is verified."""
    found = []
    for host, port in address.hosts:
        if POOLER.fullmatch(host):
            mode = "transaction" if port == TRANSACTION_PORT else "session"
            found.append(Finding("pooler", "ok", f"{host}, {mode} mode (port {port})"))
            if "." not in (address.user or ""):
                problem = f"the user {address.user!r} names no project, which the pooler finds by postgres.REF"
                found.append(Finding("pooler", "fail", problem, "Copy the address again from Connect"))
        elif DIRECT.fullmatch(host):
            found.append(check_route(host, port))
    if not found:
        return [Finding("supabase address", "off", "not one of supabase.com")]
    mode = address.tls.get("sslmode", "prefer")
    if mode == "verify-full" or "sslrootcert" in address.tls:
        found.append(Finding("certificate", "ok", f"verified (sslmode={mode})"))
    else:
        cure = (
            "Download the certificate (Database Settings, SSL Configuration) and add "
            "sslmode=verify-full&sslrootcert=FILE to the address; never turn verification off"
        )
        found.append(Finding("certificate", "warn", f"the server is not verified (sslmode={mode})", cure))
    return found


def check_route(host: str, port: int) -> Finding:
    """Return whether a direct host, which has an IPv6 address only without the add-on, can be reached from here."""
    try:
        known = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except OSError as error:
        return Finding("direct host", "fail", f"{host} has no address ({error.strerror or error})", SESSION_POOLER)
    if any(family == socket.AF_INET for family, *_ in known):
        return Finding("direct host", "ok", f"{host}, by IPv4")
    try:
        with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as probe:
            # Sends nothing: it only asks whether there is a route.
            probe.connect(known[0][4])
    except OSError:
        problem = f"{host} has an IPv6 address only, and this machine has no IPv6"
        return Finding("direct host", "fail", problem, SESSION_POOLER)
    return Finding("direct host", "ok", f"{host}, by IPv6")


def check_keys(settings: Settings) -> list[Finding]:
    """Return which kinds of keys are used. The legacy ones are signed tokens and will be switched off."""
    jwt, storage = settings.server.jwt, settings.files.supabase.key
    found = []
    if jwt.publishable_key is not None:
        found.append(_kind("publishable key", jwt.publishable_key, "sb_publishable_", "the legacy anon key"))
    if storage is not None:
        found.append(_kind("storage key", storage.get_secret_value(), "sb_secret_", "the legacy service_role key"))
    if jwt.secret is not None:
        cure = "Migrate to signing keys (JWT Keys) and set EXAI_SERVER__JWT__JWKS_URL instead"
        found.append(Finding("signing key", "warn", "the legacy secret (HS256) verifies tokens", cure))
    return found


def _kind(part: str, key: str, prefix: str, legacy: str) -> Finding:
    if key.startswith(prefix):
        return Finding(part, "ok", f"{prefix}...")
    return Finding(part, "warn", f"{legacy}, which Supabase switches off", f"Create a key {prefix}... (API Keys)")


async def check_issuer(settings: Settings) -> list[Finding]:
    """Return whether the issuer publishes keys with which tokens can be verified."""
    address = settings.server.jwt.jwks_url
    if address is None:
        return []
    try:
        keys = await asyncio.to_thread(_published, address)
    except (OSError, ValueError) as error:
        return [Finding("signing keys", "fail", f"{address}: {error}", "Correct EXAI_SERVER__JWT__JWKS_URL")]
    usable = sorted({str(key.get("alg")) for key in keys} & SIGNING)
    if not usable:
        cure = "Add an asymmetric key (JWT Keys), or set EXAI_SERVER__JWT__SECRET to the legacy secret"
        return [Finding("signing keys", "fail", f"{address} publishes no key of ES256 or RS256", cure)]
    return [Finding("signing keys", "ok", f"{len(keys)} published, {', '.join(usable)}")]


def _published(address: str) -> Sequence[dict[str, Any]]:
    with urllib.request.urlopen(address, timeout=LIMIT_S) as reply:  # noqa: S310 - settings allow https, or loopback
        keys = json.loads(reply.read(1_048_576)).get("keys")
    return [key for key in keys or [] if isinstance(key, dict)]


def _budget(pool_size: int, workers: int, limit: int, others: int) -> Finding:
    wanted, part = pool_size * workers, "connections"
    seen = f"{workers} x {pool_size} wanted; the server allows {limit}, {others} are open"
    cure = "Lower EXAI_DATABASE__POOL_SIZE or --workers, use port 6543, or a larger compute size"
    if wanted > limit:
        return Finding(part, "fail", seen, cure)
    if wanted + others > BUDGET_SHARE * limit:
        return Finding(part, "warn", seen, cure)
    return Finding(part, "ok", seen)
