"""The keys an issuer publishes, fetched when needed and kept.

The invariant is that keys which were fetched once stay usable for a day when later fetches fail, that no caller can
make the issuer be asked more than once a minute, and that only the configured address is ever asked.
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
"""Keys that could not be fetched again for so long are not used any more: one of them may have been withdrawn."""

KNOWN_WAIT_S = 0.2
FETCH_INTERVAL_S = 60.0
"""Between two fetches on account of a key that is not among those we have."""

EMPTY_INTERVAL_S = 5.0
"""Between two fetches while there is no key at all, and so nobody can be let in."""

FETCH_TIMEOUT_S = 5.0
MAX_BYTES = 262_144
MAX_KEYS = 100
RSA_MIN_BITS = 2_048

PublicKey: TypeAlias = EllipticCurvePublicKey | RSAPublicKey
Fetch: TypeAlias = Callable[[str], bytes]

log = structlog.get_logger(__name__)


class NoKeys(Exception):
    """The issuer's keys have never been fetched."""


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
        """Return a key with its algorithm, None when the issuer has none of this id. Raises `NoKeys`."""
        if self._fetched_at is not None and self._clock() - self._fetched_at >= KEYS_MAX_AGE_S:
            self._keys, self._fetched_at = {}, None
        if self._wants_fetch(kid):
            if self._refreshing is None or self._refreshing.done():
                self._refreshing = asyncio.create_task(self._refresh(), name="jwks")
            # A known key need not wait for an issuer that does not answer, only long enough for one that does.
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
            # Not earlier: whoever comes while the issuer is asked has to wait for its answer.
            self._tried_at = self._clock()


def public_keys(document: bytes) -> dict[str | None, tuple[PublicKey, str]]:
    """Return the ES256 and RS256 keys of a JWKS by their id; raises ValueError when there is none.

    A single key without an id is found by tokens that name none.
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
    """Return a key for signatures with the one algorithm its kind allows here; everything else is passed over."""
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
    # A private key that was published by mistake verifies nothing here.
    return (public, algorithm) if isinstance(public, EllipticCurvePublicKey) else None


def _opener() -> OpenerDirector:
    """Return what speaks http and https alone: no files, and a redirect is an error like any other status."""
    opener = OpenerDirector()
    for each in (ProxyHandler, HTTPHandler, HTTPSHandler, HTTPDefaultErrorHandler, HTTPErrorProcessor, UnknownHandler):
        opener.add_handler(each())
    return opener


def fetch_text(url: str) -> bytes:
    """GET an address within the limits of this module; blocks. Raises OSError, or ValueError when it is too large."""
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
