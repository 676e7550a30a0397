"""The URIs to which one peer is subscribed, in either era, counted in its owner's quota.

Invariant: every URI is short and of a scheme that this server serves. Finding a peer's subscriptions among
changed URIs costs no more than the smaller of the two sets.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Set
from typing import Protocol

from exai.errors import Overloaded
from exai.mcp.core.jsonrpc import INVALID_PARAMS, RequestId, RpcError

MAX_URI_CHARS = 4_096
MAX_SUBSCRIBED_URIS = 1_000
ADDRESS_BYTES = 200
"""Bytes counted for a URI in addition to its characters."""


class Budget(Protocol):
    """An owner's limits for subscriptions; see `exai.mcp.session.quota.Quota`."""

    def subscribe(self, count: int, size_bytes: int) -> None:
        """Count URIs and their bytes. Raises `Overloaded`."""

    def unsubscribe(self, count: int, size_bytes: int) -> None:
        """Release URIs counted by `subscribe`."""

    def note_limited(self, limit: str) -> None:
        """Count that a limit has refused something."""


class Subscriptions:
    """The subscriptions of one peer: single URIs, and the URIs of its listen requests by request id."""

    def __init__(self, budget: Budget | None, schemes: frozenset[str]) -> None:
        self._budget = budget
        self._schemes = schemes
        self._single: set[str] = set()
        self._listened: dict[RequestId, frozenset[str]] = {}

    def __len__(self) -> int:
        return len(self._single)

    def add(self, uri: str) -> None:
        """Subscribe to one URI. Raises `RpcError` for a URI that cannot be served, or `Overloaded`."""
        if not self._is_served(uri):
            known = " or ".join(sorted(f"{each}://" for each in self._schemes)) or "an address of this server"
            problem = f"Invalid params: uri must begin with {known} and have at most {MAX_URI_CHARS} characters"
            raise RpcError(INVALID_PARAMS, problem)
        if uri not in self._single:
            if len(self._single) >= MAX_SUBSCRIBED_URIS:
                self.note_limited("connection_subscriptions")
                raise Overloaded("subscribed resources of one connection", MAX_SUBSCRIBED_URIS)
            self._take((uri,))
            self._single.add(uri)

    def discard(self, uri: str) -> None:
        """End the subscription to one URI, if there is one."""
        if uri in self._single:
            self._single.discard(uri)
            self._give((uri,))

    def listen(self, key: RequestId, uris: Iterable[object]) -> list[str]:
        """Subscribe a listen request; return the granted URIs. Raises `Overloaded`."""
        wanted = dict.fromkeys(uri for uri in uris if isinstance(uri, str) and self._is_served(uri))
        granted = list(wanted)[:MAX_SUBSCRIBED_URIS]
        # First, because it raises over the quota: nothing is subscribed then.
        self._take(granted)
        self._listened[key] = frozenset(granted)
        return granted

    def unlisten(self, key: RequestId) -> None:
        """End the subscriptions of a listen request."""
        self._give(self._listened.pop(key, ()))

    def end(self) -> None:
        """End all subscriptions."""
        self._give(self._single)
        self._single = set()
        for key in list(self._listened):
            self.unlisten(key)

    def among(self, uris: Set[str]) -> set[str]:
        """Return the subscribed ones among `uris`."""
        found = set(uris & self._single) if self._single else set()
        for listened in self._listened.values():
            found |= uris & listened
        return found

    def is_single(self, uri: str) -> bool:
        """Return whether the peer subscribed to this URI with `resources/subscribe`."""
        return uri in self._single

    def listening_to(self, uri: str) -> Iterator[RequestId]:
        """Iterate over the listen requests that include this URI."""
        return (key for key, uris in self._listened.items() if uri in uris)

    def _is_served(self, uri: str) -> bool:
        scheme = uri[:32].partition("://")[0]
        return len(uri) <= MAX_URI_CHARS and (not self._schemes or scheme in self._schemes)

    def note_limited(self, limit: str) -> None:
        """Count in the owner's quota that a limit of the connection has refused something."""
        if self._budget is not None:
            self._budget.note_limited(limit)

    def _take(self, uris: Iterable[str]) -> None:
        if self._budget is not None:
            self._budget.subscribe(*_cost(uris))

    def _give(self, uris: Iterable[str]) -> None:
        if self._budget is not None:
            self._budget.unsubscribe(*_cost(uris))


def _cost(uris: Iterable[str]) -> tuple[int, int]:
    sizes = [len(uri) + ADDRESS_BYTES for uri in uris]
    return len(sizes), sum(sizes)
