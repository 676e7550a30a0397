"""The published keys of an issuer (JWKS), fetched on demand and cached.

Invariant: fetched keys stay usable for a day if later fetches fail; no caller can cause more than one fetch a minute;
only the configured address is fetched.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from http.client import HTTPException
from typing import Any, TypeAlias
from urllib.request import (
    HTTPDefaultErrorHandler,
    HTTPErrorProcessor,
    HTTPHandler,
    HTTPSHandler,
    OpenerDirector,
    ProxyHandler,
    UnknownHandler,
)

import jwt
import orjson
import structlog
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey

KEYS_KEPT_S = 600.0
KEYS_MAX_AGE_S = 86_400.0
"""Keys that could not be fetched again for so long are no longer used: one of them may have been revoked."""

KNOWN_WAIT_S = 0.2
FETCH_INTERVAL_S = 60.0
"""Minimum time between two fetches caused by a key id that is not cached."""

EMPTY_INTERVAL_S = 5.0
"""Minimum time between two fetches while there are no keys, so that no signed token can be admitted."""

FETCH_TIMEOUT_S = 5.0
MAX_BYTES = 262_144
MAX_KEYS = 100
RSA_MIN_BITS = 2_048

PublicKey: TypeAlias = EllipticCurvePublicKey | RSAPublicKey
Fetch: TypeAlias = Callable[[str], bytes]

log = structlog.get_logger(__name__)


class NoKeys(Exception):
    """The issuer's keys could never be fetched."""


class KeySet:
    """The published keys of one issuer. `fetch` blocks and runs in a thread; `clock` is monotonic."""

    def __init__(self, url: str, *, fetch: Fetch | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        self._url = url
        self._fetch = fetch or fetch_text
        self._clock = clock
        self._keys: Mapping[str | None, tuple[PublicKey, str]] = {}
        self._fetched_at: float | None = None
        self._tried_at: float | None = None
        self._problem = ""
        self._refreshing: asyncio.Task[None] | None = None

    async def find(self, kid: str | None) -> tuple[PublicKey, str] | None:
        """Return a key and its algorithm, or None if the issuer has no key of this id. Raises `NoKeys`."""
        if self._fetched_at is not None and self._clock() - self._fetched_at >= KEYS_MAX_AGE_S:
            self._keys, self._fetched_at = {}, None
        if self._wants_fetch(kid):
            if self._refreshing is None or self._refreshing.done():
                self._refreshing = asyncio.create_task(self._refresh(), name="jwks")
            # With a known key the wait for the refresh is short, so that an issuer that does not answer delays nothing.
            await asyncio.wait({self._refreshing}, timeout=KNOWN_WAIT_S if kid in self._keys else None)
        if self._fetched_at is None:
            raise NoKeys(self._problem or "not fetched yet")
        return self._keys.get(kid)

    def _wants_fetch(self, kid: str | None) -> bool:
        now = self._clock()
        if self._fetched_at is None:
            return self._tried_at is None or now - self._tried_at >= EMPTY_INTERVAL_S
        if kid in self._keys and now - self._fetched_at < KEYS_KEPT_S:
            return False
        return self._tried_at is None or now - self._tried_at >= FETCH_INTERVAL_S

    async def _refresh(self) -> None:
        try:
            async with asyncio.timeout(2 * FETCH_TIMEOUT_S):
                self._keys = public_keys(await asyncio.to_thread(self._fetch, self._url))
            self._fetched_at = self._clock()
        except (OSError, ValueError, HTTPException) as error:
            self._problem = f"{self._url}: {error}"
            log.warning("cannot fetch the issuer's keys", url=self._url, reason=str(error), kept=len(self._keys))
        finally:
            # Set after the fetch: until then, callers wait for the fetch instead of being refused.
            self._tried_at = self._clock()


def public_keys(document: bytes) -> dict[str | None, tuple[PublicKey, str]]:
    """Return the ES256 and RS256 keys of a JWKS by their id. Raises ValueError if there is none.

    A single key without an id is used for tokens without a key id.
    """
    parsed: Any = orjson.loads(document)
    listed = parsed.get("keys") if isinstance(parsed, dict) else None
    if not isinstance(listed, list) or len(listed) > MAX_KEYS:
        raise ValueError("not a set of keys")
    found: dict[str | None, tuple[PublicKey, str]] = {}
    for each in listed:
        usable = _usable(each) if isinstance(each, dict) else None
        if usable is not None:
            found[each.get("kid") if isinstance(each.get("kid"), str) else None] = usable
    if not found:
        raise ValueError("holds no key for ES256 or RS256")
    return found


def _usable(key: dict[str, Any]) -> tuple[PublicKey, str] | None:
    """Return a signature key with the one algorithm allowed for its kind, or None for any other key."""
    algorithm = {"EC": "ES256", "RSA": "RS256"}.get(str(key.get("kty")))
    if algorithm is None or key.get("alg", algorithm) != algorithm or key.get("use", "sig") != "sig":
        return None
    if algorithm == "ES256" and key.get("crv") != "P-256":
        return None
    try:
        public = jwt.PyJWK(key, algorithm=algorithm).key
    except jwt.PyJWTError:
        return None
    if isinstance(public, RSAPublicKey):
        return (public, algorithm) if public.key_size >= RSA_MIN_BITS else None
    # A private key that was published by mistake is not used.
    return (public, algorithm) if isinstance(public, EllipticCurvePublicKey) else None


def _opener() -> OpenerDirector:
    """Return an opener for http and https only: no files, and a redirect is an error like any other status."""
    opener = OpenerDirector()
    for each in (ProxyHandler, HTTPHandler, HTTPSHandler, HTTPDefaultErrorHandler, HTTPErrorProcessor, UnknownHandler):
        opener.add_handler(each())
    return opener


def fetch_text(url: str) -> bytes:
    """GET an address within the limits of this module; blocks. Raises OSError, or ValueError if it is too large."""
    deadline = time.monotonic() + FETCH_TIMEOUT_S
    body = b""
    with _opener().open(url, timeout=FETCH_TIMEOUT_S) as answer:
        while chunk := answer.read1(65_536):
            body += chunk
            if len(body) > MAX_BYTES:
                raise ValueError(f"more than {MAX_BYTES} bytes")
            if time.monotonic() > deadline:
                raise TimeoutError(f"not complete within {FETCH_TIMEOUT_S:g} s")
    return body
