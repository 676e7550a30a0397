"""Admission checks of Host, Origin and credentials, made before a body or a frame is read.

Invariant: a web page of a foreign site cannot use a local server, whether by a cross-site request (its Origin is
refused) or by a name that resolves to this machine (its Host is refused).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from exai.errors import Overloaded
from exai.mcp.identity import INVALID, Admitted, Authenticator, AuthRefusal, Immediate, admit_local_owner
from exai.models import LOCAL_OWNER
from exai.settings.load import ServerSettings

LOOPBACK_NAMES = frozenset({"localhost", "127.0.0.1", "::1"})
FORWARDED = frozenset({"forwarded", "via", "x-real-ip", "x-client-ip", "true-client-ip", "x-envoy-external-address"})
FORWARDED_PREFIXES = ("x-forwarded-", "x-original-", "cf-", "fly-", "x-amzn-", "tailscale-")
"""Headers by which a proxy declares that it forwards the request of another client."""

MAX_QUERY_FIELDS = 64
WILDCARD_ADDRESSES = frozenset({"", "0.0.0.0", "::"})


@dataclass(frozen=True, slots=True)
class Rejection:
    """An HTTP answer that refuses the request; `text` names the cure."""

    status: int
    text: str
    headers: tuple[tuple[bytes, bytes], ...] = ()


_NO_QUERY: Mapping[str, str] = {}


def _admit_none(headers: Mapping[str, str], query: Mapping[str, str]) -> Admitted | None:  # noqa: ARG001
    return None


def _admit_local_owner(headers: Mapping[str, str], query: Mapping[str, str]) -> Admitted | None:  # noqa: ARG001
    return Admitted(LOCAL_OWNER)


class Edge:
    """The admission rules of one server. `*` in the allowed hosts disables the Host check."""

    def __init__(self, settings: ServerSettings, authenticate: Authenticator) -> None:
        self._authenticate = authenticate
        self._at_once = authenticate.at_once if isinstance(authenticate, Immediate) else _admit_none
        if authenticate is admit_local_owner:
            self._at_once = _admit_local_owner
        self._is_open, self._has_one_owner = not settings.is_guarded, settings.has_one_owner
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
        """Return whether a caller is the operator, who may see more than the daemon's status.

        That is a caller from this machine, and the only owner with the token. A request forwarded by a proxy on this
        machine does not count as local. Without authentication every caller may, but not a page whose foreign name
        resolves to this machine.
        """
        headers = header_map(scope["headers"])
        is_known = self._is_known(headers.get("host", ""))
        if self._is_open:
            return is_known
        is_direct = not any(name in FORWARDED or name.startswith(FORWARDED_PREFIXES) for name in headers)
        if is_direct and is_known and _is_same_machine(scope):
            return True
        return self._has_one_owner and await self.is_admitted(scope)

    async def is_admitted(self, scope: Mapping[str, Any]) -> bool:
        """Return whether a caller has authenticated; True for all without authentication."""
        found = await self._authenticate(header_map(scope["headers"]), query_map(scope["query_string"]))
        return isinstance(found, Admitted)

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
