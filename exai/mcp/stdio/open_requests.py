"""The requests that the bridge has sent and the daemon has not answered, to repeat them on a new connection.

Invariant: a request is here from before it is sent until its answer, its cancellation or the loss of the connection;
a subscription stays until it ends, because it outlives connections.
"""

from __future__ import annotations

import asyncio

from exai.mcp.core.jsonrpc import Notification, Request, RequestId, request_id


class OpenRequests:
    """The open requests of one client, by id."""

    def __init__(self) -> None:
        self.in_flight: dict[RequestId, int] = {}
        """The running requests and their sizes in bytes."""

        self.listening: dict[RequestId, bytes] = {}
        """The subscriptions, as the client sent them."""

        self.handshake: list[bytes] = []
        """`initialize`, and then `notifications/initialized`, as the client sent them."""

        self.settled = asyncio.Event()
        """Set when a request is no longer open."""

        self._acknowledged: set[RequestId] = set()

    def __contains__(self, key: RequestId) -> bool:
        return key in self.in_flight or key in self.listening

    def add(self, request: Request, line: bytes) -> None:
        """Add a request that is about to be sent."""
        if request.method == "subscriptions/listen":
            self.listening[request.id] = line
            return
        if request.method == "initialize":
            self.handshake = [line]
        self.in_flight[request.id] = len(line)

    def apply_notification(self, message: Notification, line: bytes) -> None:
        """Apply the effects of a client's notification: the end of the handshake, or a cancellation."""
        if message.method == "notifications/initialized" and len(self.handshake) == 1:
            self.handshake.append(line)
        elif message.method == "notifications/cancelled":
            target = message.params.get("requestId")
            # A number is the same id in every spelling.
            target = int(target) if isinstance(target, float) and target.is_integer() else target
            if request_id(target):
                self.settle(target)

    def acknowledge(self, subscription: RequestId) -> bool:
        """Note the acknowledgement of a subscription; return False for a repetition on a later connection."""
        if subscription in self._acknowledged:
            return False
        self._acknowledged.add(subscription)
        return True

    def settle(self, key: RequestId) -> None:
        """Remove a request for which no further message follows."""
        self.in_flight.pop(key, None)
        self.listening.pop(key, None)
        self._acknowledged.discard(key)
        self.settled.set()

    def remove_in_flight(self) -> list[RequestId]:
        """Remove all running requests, and return their ids."""
        lost, self.in_flight = list(self.in_flight), {}
        self.settled.set()
        return lost

    def remove_largest(self) -> tuple[RequestId, int]:
        """Remove the largest running request, of which there must be one; return its id and its size in bytes."""
        largest = max(self.in_flight, key=self.in_flight.__getitem__)
        return largest, self.in_flight.pop(largest)
