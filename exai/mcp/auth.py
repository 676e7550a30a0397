"""Who a caller is: everybody is the local owner, or whoever holds the bearer token is.

The invariant is that a token is compared in constant time and never logged or echoed.
"""

from __future__ import annotations

import hmac
from collections.abc import Mapping

from exai.config import ServerSettings
from exai.mcp.edge import Authenticator, Refusal, everybody_is_local
from exai.models import LOCAL_OWNER, Owner

QUERY_TOKEN = "token"  # noqa: S105
"""The query parameter for clients that cannot set a header on their WebSocket."""


def authenticator(settings: ServerSettings) -> Authenticator:
    """Return the rule of these settings: a static token if one is set, else everybody (loopback only)."""
    if settings.token is None:
        return everybody_is_local
    expected = settings.token.get_secret_value().encode()

    def check(headers: Mapping[str, str], query: Mapping[str, str]) -> Owner | Refusal:
        scheme, _, given = headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer":
            given = query.get(QUERY_TOKEN, "")
        if not given:
            return Refusal("a bearer token is needed: send Authorization: Bearer with EXAI_SERVER__TOKEN")
        if not hmac.compare_digest(given.strip().encode(), expected):
            return Refusal("the bearer token is not the one in EXAI_SERVER__TOKEN", 'Bearer error="invalid_token"')
        return LOCAL_OWNER

    return check
