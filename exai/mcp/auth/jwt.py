"""Verification of signed tokens (JWT) as Supabase issues them.

Invariant: the algorithm comes from the configuration (HS256 with a secret; ES256 or RS256 by the kind of the
published key) and never from the token, whose header only selects among the issuer's published keys.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import jwt
import structlog

from exai.mcp.auth.jwks import KeySet, NoKeys, PublicKey
from exai.mcp.identity import INVALID, Admitted, AuthRefusal
from exai.models import LOCAL_OWNER, MAX_OWNER_CHARS, Owner
from exai.settings.sections import JwtSettings

LEEWAY_S = 60
"""Maximum difference between this machine's clock and the issuer's."""

FAR_FUTURE = 2**40
"""Seconds since 1970; a later expiry is treated as no expiry."""

REQUIRED = ("iss", "aud", "exp", "sub")
SHARED_SECRET_ALGORITHM = "HS256"  # noqa: S105

log = structlog.get_logger(__name__)


class JwtVerifier:
    """Verifies the tokens of one issuer. Refuses a token whose subject is one of the `reserved` owners."""

    def __init__(
        self, settings: JwtSettings, keys: KeySet | None = None, *, reserved: Iterable[str] = (LOCAL_OWNER,)
    ) -> None:
        self._settings = settings
        self._reserved = frozenset(reserved) | {LOCAL_OWNER}
        self._keys = keys or (KeySet(settings.jwks_url) if settings.jwks_url else None)

    async def verdict(self, token: str) -> Admitted | AuthRefusal:
        """Return the owner and expiry of a token, or the reason for its refusal."""
        try:
            key, algorithm = await self._key(token)
            claims = jwt.decode(
                token,
                key,
                algorithms=[algorithm],
                audience=self._settings.audience,
                issuer=self._settings.issuer,
                leeway=LEEWAY_S,
                options={"require": list(REQUIRED)},
            )
            return self._admitted(claims)
        except NoKeys as error:
            log.warning("cannot verify tokens", reason=str(error))
            return AuthRefusal("the issuer's keys cannot be had at the moment; try again", status=503)
        except jwt.ExpiredSignatureError:
            return AuthRefusal("the token has expired; sign in again", INVALID)
        except (jwt.PyJWTError, RecursionError) as error:
            # The reason goes to the operator's log only: in the answer it would help an attacker to forge tokens.
            log.info("refused a token", reason=type(error).__name__)
            return AuthRefusal("the token is not valid here", INVALID)

    async def _key(self, token: str) -> tuple[PublicKey | bytes, str]:
        """Return the key that must have signed this token, and its algorithm. Raises `jwt.PyJWTError` or `NoKeys`."""
        secret = self._settings.secret
        if secret is not None:
            return secret.get_secret_value().encode(), SHARED_SECRET_ALGORITHM
        if self._keys is None:
            raise AssertionError("settings that are on have a secret or an address of keys")
        kid = jwt.get_unverified_header(token).get("kid")
        found = await self._keys.find(kid if isinstance(kid, str) else None)
        if found is None:
            raise jwt.InvalidKeyError("no published key has this token's kid")
        return found

    def _admitted(self, claims: dict[str, Any]) -> Admitted | AuthRefusal:
        subject = claims["sub"]
        if not 0 < len(subject) <= MAX_OWNER_CHARS or not subject.isprintable():
            return AuthRefusal("the token's subject cannot be an owner's name", INVALID)
        if subject in self._reserved:
            # Otherwise a user who can choose the subject could act as an owner with a configured token.
            return AuthRefusal("the token's subject is the name of an owner who works without signed tokens", INVALID)
        if claims.get("is_anonymous") is True and not self._settings.allow_anonymous:
            return AuthRefusal("anonymous users are not admitted here; sign in", INVALID)
        return Admitted(Owner(subject), float(min(int(claims["exp"]), FAR_FUTURE)) + LEEWAY_S)
