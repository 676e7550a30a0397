"""What the bridge remembers of requests: until when, and what a new connection repeats."""

from __future__ import annotations

from exai.mcp.core.jsonrpc import Notification, Request
from exai.mcp.stdio.open_requests import OpenRequests


def added(*requests: Request) -> OpenRequests:
    open_requests = OpenRequests()
    for request in requests:
        open_requests.add(request, b"x" * len(request.method))
    return open_requests


def test_requests_are_open_until_settled_cancelled_or_lost() -> None:
    """Each is answered once, by the daemon or by the bridge."""
    known = added(*(Request(key, "tools/call", {}) for key in (1, 2, "3")))
    assert 1 in known
    known.settle(1)
    assert 1 not in known
    assert known.settled.is_set()
    known.apply_notification(Notification("notifications/cancelled", {"requestId": 2.0}), b"")
    assert 2 not in known
    assert known.remove_in_flight() == ["3"]
    assert "3" not in known


def test_subscriptions_outlive_their_connection_and_are_acknowledged_once() -> None:
    """A new connection repeats them; the client has had its acknowledgement."""
    known = added(Request("s", "subscriptions/listen", {}), Request(1, "ping", {}))
    assert known.acknowledge("s")
    assert known.remove_in_flight() == [1]
    assert list(known.listening) == ["s"]
    assert not known.acknowledge("s")
    known.settle("s")
    assert "s" not in known
    assert known.acknowledge("s")


def test_handshake_is_repeated_only_when_it_was_complete() -> None:
    """The last one counts: a client may begin again."""
    known = OpenRequests()
    initialized = Notification("notifications/initialized", {})
    known.apply_notification(initialized, b"too early")
    assert known.handshake == []
    known.add(Request(0, "initialize", {}), b"first")
    known.apply_notification(initialized, b"done")
    assert known.handshake == [b"first", b"done"]
    known.add(Request(1, "initialize", {}), b"second")
    assert known.handshake == [b"second"]


def test_largest_request_is_the_one_removed() -> None:
    """A daemon that closes with 1009 does not say which message was too large."""
    known = added(Request(1, "ping", {}), Request(2, "resources/templates/list", {}), Request(3, "tools/list", {}))
    assert known.remove_largest() == (2, len("resources/templates/list"))
    assert known.remove_in_flight() == [1, 3]
