"""Authentication: configured tokens, signed tokens, or the one local owner if neither is configured.

Invariant: an owner comes from a verified token and nothing else, tokens are compared in constant time,
and no token is ever logged or echoed.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Mapping
from typing import TYPE_CHECKING

from exai.mcp.identity import INVALID, Admitted, Authenticator, AuthRefusal, admit_local_owner
from exai.models import LOCAL_OWNER, Owner
from exai.settings.load import ServerSettings

if TYPE_CHECKING:
    from exai.mcp.auth.jwt import JwtVerifier

QUERY_TOKEN = "token"  # noqa: S105
"""The query parameter for clients that cannot set a header on their WebSocket."""

MAX_TOKEN_CHARS = 16_384
"""A longer token is refused before any work is done on it."""


def authenticator(settings: ServerSettings) -> Authenticator:
    """Return the authenticator for these settings: configured and signed tokens, or the local owner (loopback)."""
    if not settings.is_guarded:
        return admit_local_owner
    return _Tokens(settings)


def _verifier(settings: ServerSettings) -> JwtVerifier:
    # Imported here, as few installations use signed tokens: cryptography takes 3 % of the time of all imports.
    from exai.mcp.auth.jwt import JwtVerifier

    return JwtVerifier(settings.jwt, reserved=settings.tokens)


class _Tokens:
    """Admits callers with a configured token or a signed one."""

    def __init__(self, settings: ServerSettings) -> None:
        self._known = _KnownTokens(settings)
        self._signed = _verifier(settings) if settings.jwt.is_on else None

    async def __call__(self, headers: Mapping[str, str], query: Mapping[str, str]) -> Admitted | AuthRefusal:
        token = _given(headers, query)
        if not token:
            return AuthRefusal("a bearer token is needed: send it as Authorization: Bearer")
        if len(token) > MAX_TOKEN_CHARS:
            return AuthRefusal("the bearer token is too long to be one", INVALID)
        owner = self._known.owner_of(token)
        if owner is not None:
            return Admitted(owner)
        if self._signed is None:
            return AuthRefusal("the bearer token is not one of the configured tokens", INVALID)
        return await self._signed.verdict(token)

    def at_once(self, headers: Mapping[str, str], query: Mapping[str, str]) -> Admitted | None:
        """Return the owner of a configured token; a signed token may have to wait for its issuer's keys."""
        token = _given(headers, query)
        owner = self._known.owner_of(token) if token and len(token) <= MAX_TOKEN_CHARS else None
        return None if owner is None else Admitted(owner)


class _KnownTokens:
    """The configured tokens by their digests, which have equal length and can be compared in constant time."""

    def __init__(self, settings: ServerSettings) -> None:
        tokens = {Owner(owner): token for owner, token in settings.tokens.items()}
        self._digests = [(_digest(token.get_secret_value()), owner) for owner, token in tokens.items()]
        if settings.token is not None:
            self._digests.append((_digest(settings.token.get_secret_value()), LOCAL_OWNER))

    def owner_of(self, token: str) -> Owner | None:
        """Return the owner of this token. The time it takes does not depend on where tokens differ."""
        given, found = _digest(token), None
        for digest, owner in self._digests:
            if hmac.compare_digest(given, digest):
                found = owner
        return found


def _given(headers: Mapping[str, str], query: Mapping[str, str]) -> str:
    scheme, _, given = headers.get("authorization", "").partition(" ")
    return (given if scheme.lower() == "bearer" else query.get(QUERY_TOKEN, "")).strip()


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode("utf-8", "surrogatepass")).digest()
