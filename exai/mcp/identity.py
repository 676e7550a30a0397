"""The identity of a caller: the owner that an authenticator admits, or its refusal."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

from exai.models import LOCAL_OWNER, Owner

INVALID = 'Bearer error="invalid_token"'
"""The WWW-Authenticate challenge for a token that is invalid or has expired."""


@dataclass(frozen=True, slots=True)
class Admitted:
    """An authenticated owner, until `expires_at` in seconds since 1970; None means for as long as the daemon runs."""

    owner: Owner
    expires_at: float | None = None


@dataclass(frozen=True, slots=True)
class AuthRefusal:
    """A refusal by an authenticator; `challenge` becomes the WWW-Authenticate header of a 401."""

    reason: str
    challenge: str = "Bearer"
    status: Literal[401, 503] = 401


Authenticator = Callable[[Mapping[str, str], Mapping[str, str]], Awaitable[Admitted | AuthRefusal]]
"""Maps headers (names in lower case) and query parameters to an owner; may wait for an issuer's keys."""


@runtime_checkable
class Immediate(Protocol):
    """An authenticator that can decide about some callers without waiting."""

    def at_once(self, headers: Mapping[str, str], query: Mapping[str, str]) -> Admitted | None:
        """Return the owner if the authenticator would admit the caller without waiting; else None."""


async def admit_local_owner(
    headers: Mapping[str, str],  # noqa: ARG001
    query: Mapping[str, str],  # noqa: ARG001
) -> Admitted | AuthRefusal:
    """Admit every caller as the one local owner; correct on a loopback address only."""
    return Admitted(LOCAL_OWNER)
