"""Admission checks of Host, Origin and credentials, made before a body or a frame is read.

Invariant: a web page of a foreign site cannot use a local server, whether by a cross-site request (its Origin is
refused) or by a name that resolves to this machine (its Host is refused).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Any, Literal, Protocol, runtime_checkable
from urllib.parse import parse_qsl, urlsplit

from exai.config import ServerSettings
from exai.errors import Overloaded
from exai.mcp.arriving import Meter
from exai.models import LOCAL_OWNER, Owner

LOOPBACK_NAMES = frozenset({"localhost", "127.0.0.1", "::1"})
ABORT = "exai.abort"
"""The ASGI extension in which `exai.mcp.wire` passes a function that aborts the connection."""

DIRECT = "exai.direct"
"""The ASGI extension in which `exai.mcp.wire` passes its `Direct`."""

FORWARDED = frozenset({"forwarded", "via", "x-real-ip", "x-client-ip", "true-client-ip", "x-envoy-external-address"})
FORWARDED_PREFIXES = ("x-forwarded-", "x-original-", "cf-", "fly-", "x-amzn-", "tailscale-")
"""Headers by which a proxy declares that it forwards the request of another client."""

MAX_QUERY_FIELDS = 64
INVALID = 'Bearer error="invalid_token"'
"""The WWW-Authenticate challenge for a token that is invalid or has expired."""

WILDCARD_ADDRESSES = frozenset({"", "0.0.0.0", "::"})


@dataclass(frozen=True, slots=True)
class Rejection:
    """An HTTP answer that refuses the request; `text` names the cure."""

    status: int
    text: str
    headers: tuple[tuple[bytes, bytes], ...] = ()


@dataclass(frozen=True, slots=True)
class Admitted:
    """An authenticated owner. `until` is in seconds since 1970; None means for as long as the daemon runs."""

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


class Direct(Protocol):
    """The fast path of a WebSocket, beside ASGI's `receive` and `send`, without queue, task switch or pause in reading.
    A message that cannot be handled at once takes the regular path; the order of messages is kept.
    """

    def send_now(self, data: bytes) -> bool:
        """Send a text frame, or send nothing and return False."""

    def offer_to(self, take: Callable[[bytes], bool], meter: Meter) -> None:
        """Pass whole messages to `take` from now on; those it returns False for are delivered by `receive`.

        Input is counted by `meter` from now on.
        """

    def read_no_more(self) -> None:
        """Stop reading from the peer; the caller still has to close the connection."""


async def everybody_is_local(
    headers: Mapping[str, str],  # noqa: ARG001
    query: Mapping[str, str],  # noqa: ARG001
) -> Admitted | AuthRefusal:
    """Admit every caller as the one local owner; correct on a loopback address only."""
    return Admitted(LOCAL_OWNER)


_NO_QUERY: Mapping[str, str] = {}


def _nobody(headers: Mapping[str, str], query: Mapping[str, str]) -> Admitted | None:  # noqa: ARG001
    return None


def _the_local_owner(headers: Mapping[str, str], query: Mapping[str, str]) -> Admitted | None:  # noqa: ARG001
    return Admitted(LOCAL_OWNER)


class Edge:
    """The admission rules of one server. `*` in the allowed hosts disables the Host check."""

    def __init__(self, settings: ServerSettings, authenticate: Authenticator) -> None:
        self._authenticate = authenticate
        self._at_once = authenticate.at_once if isinstance(authenticate, Immediate) else _nobody
        if authenticate is everybody_is_local:
            self._at_once = _the_local_owner
        self._is_open = not settings.is_guarded
        own = set() if settings.host in WILDCARD_ADDRESSES else {settings.host.lower()}
        self._any_host = "*" in settings.allowed_hosts
        self._names = LOOPBACK_NAMES | own | {host.lower().strip("[]") for host in settings.allowed_hosts}
        self._origins = frozenset(origin.lower().rstrip("/") for origin in settings.allowed_origins)

    async def admit(self, scope: Mapping[str, Any]) -> Admitted | Rejection:
        """Return the owner of an ASGI scope, or the reason for its refusal."""
        headers = header_map(scope["headers"])
        rejection = self.rejection(headers)
        if rejection is not None:
            return rejection
        verdict = await self._authenticate(headers, query_map(scope["query_string"]))
        if isinstance(verdict, AuthRefusal):
            challenge = (b"www-authenticate", verdict.challenge.encode("latin-1"))
            return Rejection(verdict.status, verdict.reason, (challenge,) if verdict.status == 401 else ())
        return verdict

    def admit_at_once(self, headers: Mapping[str, str]) -> Admitted | None:
        """Return the result of `admit` for a request without Origin and query if no wait is needed; else None."""
        if "origin" in headers or not self._is_known(headers.get("host", "")):
            return None
        return self._at_once(headers, _NO_QUERY)

    async def may_see_details(self, scope: Mapping[str, Any]) -> bool:
        """Return whether a caller may see more than the daemon's status: with a token, or from this machine.

        A request forwarded by a proxy on this machine does not count as local.
        """
        headers = header_map(scope["headers"])
        is_direct = not any(name in FORWARDED or name.startswith(FORWARDED_PREFIXES) for name in headers)
        if self._is_open or (is_direct and self._is_known(headers.get("host", "")) and _is_same_machine(scope)):
            return True
        return isinstance(await self._authenticate(headers, query_map(scope["query_string"])), Admitted)

    def rejection(self, headers: Mapping[str, str]) -> Rejection | None:
        """Return the reason to refuse a request with these headers, or None."""
        host = headers.get("host", "")
        if not self._is_known(host):
            cure = "add it to EXAI_SERVER__ALLOWED_HOSTS if it is meant to be one"
            return Rejection(421, f"{host[:100] or 'no Host'} is not a name of this server; {cure}")
        origin = headers.get("origin")
        if origin is not None and not self._is_allowed_origin(origin.lower(), host.lower()):
            cure = "add it to EXAI_SERVER__ALLOWED_ORIGINS if it is yours"
            return Rejection(403, f"pages of {origin[:100]} may not use this server; {cure}")
        return None

    def _is_known(self, host: str) -> bool:
        if self._any_host:
            return True
        host = host.lower()
        return host in self._names or _name_of(host) in self._names

    def _is_allowed_origin(self, origin: str, host: str) -> bool:
        if origin in self._origins:
            return True
        try:
            parts = urlsplit(origin)
        except ValueError:
            return False
        if parts.scheme not in ("http", "https") or not parts.netloc:
            return False
        return parts.netloc == host or _name_of(parts.netloc) in self._names


def _is_same_machine(scope: Mapping[str, Any]) -> bool:
    client, server = scope.get("client"), scope.get("server")
    if not client:
        return False
    try:
        address = ip_address(client[0])
    except ValueError:
        return False
    mapped = getattr(address, "ipv4_mapped", None) or address
    return bool(mapped.is_loopback) or (server is not None and client[0] == server[0])


def expired() -> Rejection:
    """Return the HTTP answer for a token that expired after it was verified."""
    return Rejection(401, "the token has expired; get a new one", ((b"www-authenticate", INVALID.encode()),))


def too_many(error: Overloaded) -> Rejection:
    """Return the HTTP answer for an owner with too many open connections or requests."""
    return Rejection(429, str(error), ((b"retry-after", b"5"),))


def _name_of(host: str) -> str:
    """Return a Host value without its port; empty if it is not a host and port."""
    if host.startswith("["):
        name, bracket, rest = host[1:].partition("]")
        return name if bracket and _is_port(rest) else ""
    name, colon, port = host.partition(":")
    return name if not colon or _is_port(f":{port}") else ""


def _is_port(rest: str) -> bool:
    return rest == "" or (rest.startswith(":") and rest[1:].isdecimal())


def header_map(raw: Iterable[tuple[bytes, bytes]]) -> dict[str, str]:
    """Return headers by lower-case name. Values of a repeated one are joined, so that a second Host is refused."""
    found: dict[str, str] = {}
    for name, value in raw:
        key, text = name.decode("latin-1").lower(), value.decode("latin-1").strip()
        found[key] = f"{found[key]}, {text}" if key in found else text
    return found


def query_map(raw: bytes) -> dict[str, str]:
    """Return the query parameters of an ASGI scope; empty if there are too many."""
    try:
        return dict(parse_qsl(raw.decode("latin-1"), max_num_fields=MAX_QUERY_FIELDS)) if raw else {}
    except ValueError:
        return {}


def peer_of(scope: Mapping[str, Any]) -> str:
    """Return the peer's address for logs."""
    client = scope.get("client")
    return f"{client[0]}:{client[1]}" if client else "unknown"


def abort_of(scope: Mapping[str, Any]) -> Callable[[], None]:
    """Return the function that aborts this connection; it does nothing under a server without the extension."""
    abort: Callable[[], None] = (scope.get("extensions") or {}).get(ABORT, {}).get(ABORT, _cannot_abort)
    return abort


def direct_of(scope: Mapping[str, Any]) -> Direct | None:
    """Return the fast path of a WebSocket; None under a server without the extension."""
    direct: Direct | None = (scope.get("extensions") or {}).get(DIRECT, {}).get(DIRECT)
    return direct


def _cannot_abort() -> None:
    """Do nothing: without the extension only the peer's own timeouts end the connection."""
