"""Seeds of the fuzzer: sessions of a peer with the core, one message per line, and their vocabulary."""

from __future__ import annotations

from collections.abc import Iterator

import orjson

from exai.mcp.core.versions import LEGACY_VERSIONS
from tests.support.mcp_server import handshake, modern, request, tool_call

FINISH = b"!"
"""A line that completes the oldest running call."""

BROKEN = (
    b"",
    b"{",
    b"[]",
    b"nonsense",
    b"\xff\xfe",
    b'{"a":NaN}',
    b'{"id":1,"a":1e999}',
    b'[{"jsonrpc":"2.0","id":1,"method":"ping"}]',
    b'{"jsonrpc":"2.0","id":null,"method":"ping"}',
    b'{"jsonrpc":"2.0","id":1.5,"method":"ping"}',
    b'{"jsonrpc":"2.0","id":true,"method":"ping"}',
    b'{"jsonrpc":"1.0","id":1,"method":"ping"}',
    b'{"jsonrpc":"2.0","id":1,"method":""}',
    b'{"jsonrpc":"2.0","id":1,"method":"ping","params":[1]}',
    b'{"jsonrpc":"2.0","id":1,"id":2,"method":"ping"}',
    b'{"jsonrpc":"2.0","id":1,"method":"ping","params":{"a":18446744073709551616}}',
    b'{"jsonrpc":"2.0","id":"\\ud800","method":"ping"}',
    b'{"jsonrpc":"2.0","id":1,"method":"ping","params":{"a":"\\ud800"}}',
    b'{"jsonrpc":"2.0","id":1,"result":{}}',
    b'{"jsonrpc":"2.0","id":1,"method":"a","params":' + b'{"a":' * 70 + b"1" + b"}" * 71,
)


def seeds() -> Iterator[bytes]:
    """Yield a session for every kind of message in every era, and one for each kind of malformed message."""
    cancelled, already_done = (
        {"jsonrpc": "2.0", "method": "notifications/cancelled", "params": {"requestId": key}} for key in (2, 1)
    )
    slow = tool_call("slow")
    for version in LEGACY_VERSIONS:
        yield session(
            handshake(version),
            {"jsonrpc": "2.0", "method": "notifications/initialized"},
            request(1, "tools/list", {"cursor": "1"}),
            request(2, "tools/call", slow, progressToken=0),
            request(2, "ping"),
            cancelled,
            request("2", "tools/call", tool_call("echo", text="a")),
            FINISH,
        )
    yield session(handshake(), request(1, "resources/subscribe", {"uri": "a:b"}), request(2, "logging/setLevel"))
    yield session(request(1, "tools/list"), request(2, "server/discover"), handshake("1999-01-01"))
    wanted = {"notifications": {"toolsListChanged": True, "resourceSubscriptions": ["a:b", 5]}}
    yield session(
        modern("d", "server/discover"),
        modern(1, "subscriptions/listen", wanted),
        modern(1, "tools/call", slow),
        modern(2, "tools/call", slow, progressToken="t"),
        modern(3, "tools/call", slow),
        modern(4, "tools/call", slow),
        modern(5, "tools/call", slow),
        modern(6, "ping"),
        cancelled,
        already_done,
        FINISH,
    )
    for data in BROKEN:
        yield session(handshake(), data, request(9, "ping"))


def session(*lines: object) -> bytes:
    """Return a session in the format of the fuzzer."""
    return b"\n".join(line if isinstance(line, bytes) else orjson.dumps(line) for line in lines)


def words() -> set[bytes]:
    """Return every text and number of the seeds, quoted as in them, for the fuzzer to put anywhere."""
    found: set[bytes] = set()
    for seed in seeds():
        for line in seed.split(b"\n"):
            try:
                _collect(orjson.loads(line), found)
            except orjson.JSONDecodeError:
                found.add(line[:32])
    return found - {b""}


def _collect(value: object, found: set[bytes]) -> None:
    if isinstance(value, dict):
        for key, each in value.items():
            found.add(orjson.dumps(key) + b":")
            _collect(each, found)
    elif isinstance(value, list):
        for each in value:
            _collect(each, found)
    else:
        found.add(orjson.dumps(value))
