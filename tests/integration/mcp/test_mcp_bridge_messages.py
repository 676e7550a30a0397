"""Arbitrary input to the bridge: each readable request gets one answer with its id, and the bridge continues."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from typing import Any

import orjson
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import SecretStr
from websockets.asyncio.client import connect
from websockets.asyncio.server import serve

from exai.mcp.auth.tokens import authenticator
from exai.mcp.core.jsonrpc import MAX_VALUES
from exai.mcp.core.versions import MESSAGE_MAX_HEADER, OVERLOADED
from exai.mcp.stdio.bridge import DISCONNECTED
from exai.mcp.transport.asgi import build_asgi
from exai.mcp.transport.listener import bind_sockets, open_server
from tests.integration.mcp.test_mcp_bridge import bridge, received, scripted
from tests.support.bridge import END_LIMIT_S, carried, carry
from tests.support.mcp_server import (
    Running,
    Tools,
    fast_settings,
    modern,
    new_server,
    request,
    running_server,
    tool_call,
)

BOM = b"\xef\xbb\xbf"
PING = b'{"jsonrpc":"2.0","id":"last","method":"ping"}\n'
WAIT_S = 15.0
SHORT_END = "import exai.mcp.stdio.bridge as b; b.LAST_ANSWERS_TIMEOUT_S = b.FLUSH_TIMEOUT_S = 1.0; "
"""The grace period of the bridge at the end of its input, for tests in which no answer arrives."""


@pytest.fixture
async def server() -> AsyncIterator[Running]:
    async with running_server() as running:
        yield running


def answered(found: list[Any], key: object) -> dict[str, Any]:
    """The one answer with this id."""
    (answer,) = [each for each in found if each.get("id") == key and "method" not in each]
    assert isinstance(answer, dict)
    return answer


READABLE = {
    "byte order mark": (BOM + b'{"jsonrpc":"2.0","id":1,"method":"ping"}', 1, None),
    "carriage return": (b'{"jsonrpc":"2.0","id":1,"method":"ping"}\r', 1, None),
    "integer as float": (b'{"jsonrpc":"2.0","id":7.0,"method":"ping"}', 7, None),
    "integer with exponent": (b'{"jsonrpc":"2.0","id":1e3,"method":"ping"}', 1000, None),
    "float in the end": (b'{"method":"ping","jsonrpc":"2.0","id":-2.0}', -2, None),
    "fraction": (b'{"jsonrpc":"2.0","id":7.5,"method":"ping"}', 7.5, -32600),
    "beyond 64 bits": (b'{"jsonrpc":"2.0","id":%d,"method":"ping"}' % 2**70, float(2**70), -32600),
    "long text": (b'{"jsonrpc":"2.0","id":"%s","method":"ping"}' % (b"x" * 300), "x" * 300, -32600),
    "half a character": (b'{"jsonrpc":"2.0","id":1,"method":"ping","params":{"a":"\\ud83d"}}', 1, -32602),
    "half a character in much": (
        b'{"method":"ping","params":{"a":"%s\\ud83d"},"jsonrpc":"2.0","id":1}' % (b"x" * 1_100_000),
        1,
        None,
    ),
    "too many values": (
        b'{"jsonrpc":"2.0","method":"ping","params":{"a":[%s0]},"id":1}' % (b"0," * MAX_VALUES),
        1,
        -32600,
    ),
    "too many brackets": (b'{"jsonrpc":"2.0","method":"ping","params":%s,"id":"a"}' % (b"[" * 3_000_000), "a", None),
    "not a number": (b'{"jsonrpc":"2.0","id":1,"method":"ping","params":{"a":NaN}}', 1, -32700),
    "not UTF-8": (b'{"jsonrpc":"2.0","id":1,"method":"ping","params":{"a":"\xe9"}}', 1, -32700),
    "cut off": (b'{"jsonrpc":"2.0","id":1,"method":"ping","params":{"a":"b', 1, -32700),
    "repeated key": (b'{"jsonrpc":"2.0","id":1,"method":"ping","method":"ping"}', 1, -32600),
    "very deep": (b'{"jsonrpc":"2.0","id":1,"method":"ping","params":{"a":%s}}' % (b"[" * 900 + b"]" * 900), 1, None),
    "id of a nested object": (b'{"jsonrpc":"2.0","params":{"id":5,"a":NaN},"method":"ping","id":1}', 1, -32700),
    "other version": (b'{"jsonrpc":"1.0","id":1,"method":"ping"}', 1, -32600),
}


@pytest.mark.parametrize("name", READABLE)
async def test_readable_request_gets_one_answer_with_its_id(name: str, server: Running) -> None:
    """Whether it can be carried out or not: its client would wait for its timeout."""
    line, key, code = READABLE[name]
    found = await carry(server.url, line + b"\n" + PING)
    answer = answered(found, key)
    assert code is None or answer.get("error", {}).get("code") == code, answer
    assert answered(found, "last")["result"] == {}
    assert len(found) == 2


async def test_noise_is_refused_without_an_id_and_never_sent_on(server: Running) -> None:
    """A daemon closes a connection on which there is much that is no message."""
    noise = [b"npm WARN deprecated", b"\x00\x01", b"{", b"null", b'{"id":3,"level":', b"\xff\xfe{\x00", b'"x"'] * 30
    found = await carry(server.url, b"\n".join([b"", b"  ", *noise, PING]))
    assert [each for each in found if each.get("id") == 3] == []
    assert len(found) == len(noise) + 1
    assert answered(found, "last")["result"] == {}


@pytest.mark.parametrize("place", ["before", "behind"])
async def test_line_above_every_limit_is_answered_with_its_id(place: str, server: Running) -> None:
    """70 MB; nothing is held twice, and the work for each byte is constant."""
    ends = (b'{"jsonrpc":"2.0","id":1,"method":"x","params":{"a":"', b'"}}')
    if place == "behind":
        ends = (b'{"method":"x","params":{"id":5,"a":"', b'"},"jsonrpc":"2.0","id":1}')
    found = await carry(server.url, ends[0] + b'\\"id\\":9,' * (70_000_000 // 8) + ends[1] + b"\n" + PING)
    assert answered(found, 1)["error"]["code"] == OVERLOADED
    assert "bytes" in answered(found, 1)["error"]["message"]
    assert answered(found, "last")["result"] == {}


async def test_message_above_the_daemons_limit_costs_no_other_call(server: Running) -> None:
    """The daemon would close the connection, and every running call with it."""
    limit = fast_settings().message_max_bytes
    async with bridge(server.url) as peer:
        await peer.send(modern("running", "tools/call", tool_call("slow")))
        await server.tools.gate.arrived()
        await peer.send(modern("large", "tools/call", tool_call("echo", text="x" * limit)))
        refused = await peer.receive()
        assert (refused["id"], refused["error"]["code"]) == ("large", OVERLOADED)
        assert f"{limit:,}" in refused["error"]["message"]
        server.tools.gate.open.set()
        assert (await peer.receive())["id"] == "running"


async def test_daemon_that_states_no_limit_is_asked_once() -> None:
    """An older daemon: the request that closed the connection is identified and not sent again."""
    async with scripted() as (daemon, url), bridge(url) as peer:
        await peer.send(request("small", "ping"))
        connection = await daemon.connection()
        await received(connection)
        large = request("large", "ping", {"a": "x" * 1000})
        await peer.send(large)
        await received(connection)
        await connection.close(1009)
        found = {each["id"]: each["error"]["code"] for each in (await peer.receive(), await peer.receive())}
        assert found == {"small": DISCONNECTED, "large": OVERLOADED}
        await daemon.connection()
        assert (await peer.ask({**large, "id": "again"}))["error"]["code"] == OVERLOADED


async def test_daemon_states_its_limit(server: Running) -> None:
    """In the answer to the upgrade."""
    async with connect(server.url, proxy=None) as socket:
        assert socket.response is not None
        assert socket.response.headers[MESSAGE_MAX_HEADER] == str(fast_settings().message_max_bytes)


async def test_id_in_use_is_refused_and_its_first_call_is_answered(server: Running) -> None:
    """Two requests, two answers."""
    async with bridge(server.url) as peer:
        await peer.send(modern(1, "tools/call", tool_call("slow")))
        await server.tools.gate.arrived()
        assert "in use" in (await peer.ask(modern(1, "tools/list")))["error"]["message"]
        server.tools.gate.open.set()
        assert "result" in await peer.receive()


async def test_end_of_input_leaves_answers_only(server: Running) -> None:
    """A call that does not end in time is answered by the bridge; progress and notices are dropped."""
    slow = modern("slow", "tools/call", tool_call("slow"))
    steps = [modern(key, "tools/call", tool_call("steps")) for key in range(5)]
    for each in steps:
        each["params"]["_meta"]["progressToken"] = each["id"]
    lines = [orjson.dumps(each) for each in (slow, *steps)]
    async with bridge(server.url, first=SHORT_END) as peer:
        for line in lines:
            await peer.line(line)
        await server.tools.gate.arrived()
        rest, status = await peer.finish()
    found = [orjson.loads(line) for line in rest.splitlines()]
    answers = Counter(each["id"] for each in found if "id" in each)
    assert answers == Counter(["slow", *range(5)])
    assert "has ended" in answered(found, "slow")["error"]["message"]
    assert status == 0


async def test_end_of_input_ends_subscriptions() -> None:
    """With the result that a daemon answers them with when it stops; they are not waited for."""
    async with scripted() as (daemon, url), bridge(url) as peer:
        await peer.send(modern("news", "subscriptions/listen", {"notifications": {"toolsListChanged": True}}))
        await received(await daemon.connection())
        rest, status = await peer.finish()
    assert orjson.loads(rest)["result"]["resultType"] == "complete"
    assert status == 0


async def test_end_of_input_is_bounded_without_a_daemon() -> None:
    """Each request is refused once; nothing waits for each other's patience."""
    lines = b"".join(b'{"jsonrpc":"2.0","id":%d,"method":"ping"}\n' % key for key in range(100))
    found = await carry("ws://127.0.0.1:1/", lines, patience_s=0.2)
    assert Counter(each["id"] for each in found) == Counter(range(100))


async def test_end_of_input_is_bounded_with_a_client_that_reads_nothing() -> None:
    """It closed its end for writing and keeps the other one open, full and unread."""
    program = f"{SHORT_END}import sys; sys.exit(b.run_bridge(sys.argv[1], patience_s=1.0))"
    async with scripted() as (_, url):
        with subprocess.Popen(
            [sys.executable, "-c", program, url], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        ) as process:
            assert process.stdin is not None
            try:
                # More answers than the pipe holds, and less input than the other one does.
                process.stdin.write(b"[]\n" * 10_000)
                process.stdin.close()
                assert await asyncio.to_thread(process.wait, END_LIMIT_S) == 0
            finally:
                process.kill()


async def test_daemon_that_was_away_for_long_is_asked_again_at_once() -> None:
    """Between two attempts, too, which are seconds apart by then, or here an hour."""
    (taken,) = bind_sockets(fast_settings())
    port = taken.getsockname()[1]
    taken.close()
    no_other = (
        "import exai.mcp.stdio.daemon_connection as b; b.RETRY_FIRST_S = b.RETRY_LAST_S = 3_600; b.KNOWN_FOR_S = 0; "
    )
    async with bridge(f"ws://127.0.0.1:{port}/", patience_s=0.1, first=no_other) as peer:
        assert "error" in await peer.ask(request("away", "ping"))
        settings = fast_settings(port=port)
        async with open_server(build_asgi(new_server(Tools(), settings)), settings):
            assert (await peer.ask(request("back", "ping")))["result"] == {}


async def test_redirect_is_not_followed() -> None:
    """Messages and token are sent to the configured address only."""
    asked: list[str] = []

    async def elsewhere(connection: Any, request: Any) -> Any:
        asked.append(request.headers.get("Authorization", ""))
        return connection.respond(403, "no")

    async with serve(lambda _: asyncio.sleep(0), "127.0.0.1", 0, process_request=elsewhere) as target:
        port = target.sockets[0].getsockname()[1]

        async def redirect(connection: Any, request: Any) -> Any:
            response = connection.respond(307, "")
            response.headers["Location"] = f"ws://127.0.0.1:{port}/"
            return response

        async with serve(lambda _: asyncio.sleep(0), "127.0.0.1", 0, process_request=redirect) as server:
            url = f"ws://127.0.0.1:{server.sockets[0].getsockname()[1]}/"
            found = await carry(url, PING, headers={"Authorization": "Bearer x"})
    assert "redirects to" in answered(found, "last")["error"]["message"]
    assert asked == []


@pytest.mark.parametrize("headers", [None, {"Authorization": "Bearer another-token-of-someone"}])
async def test_refused_token_is_reported_with_its_variable(headers: dict[str, str] | None) -> None:
    """The daemon runs, so the cure is not to start it."""
    guarded = fast_settings(token=SecretStr("a-token-that-is-long-enough"))
    async with running_server(guarded, authenticate=authenticator(guarded)) as server:
        found = await carry(server.url, PING, headers=headers)
    message = answered(found, "last")["error"]["message"]
    assert "HTTP status 401" in message
    assert "EXAI_TOKEN" in message
    assert "Start" not in message


IDS = st.one_of(st.integers(0, 5), st.text(max_size=3), st.sampled_from([7.0, 1e3, 2**70, None, True, 2.5]))
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.text(max_size=5),
    st.lists,
    max_leaves=5,
)
MESSAGES = st.fixed_dictionaries(
    {},
    optional={
        "jsonrpc": st.sampled_from(["2.0", "1.0"]),
        "id": IDS,
        "method": st.sampled_from(["ping", "tools/list", "tools/call", "notifications/cancelled", "no/such", ""]),
        "params": st.dictionaries(st.sampled_from(["name", "requestId", "id", "arguments"]), VALUES, max_size=3)
        | VALUES,
    },
)
LINES = st.one_of(
    MESSAGES.map(lambda message: orjson.dumps(message, default=str) if _fits(message) else _dumps(message)),
    st.binary(max_size=20).map(lambda data: data.replace(b"\n", b"")),
)


def _fits(message: Any) -> bool:
    try:
        orjson.dumps(message)
    except orjson.JSONEncodeError:
        return False
    return True


def _dumps(message: Any) -> bytes:
    return json.dumps(message).encode()


@contextmanager
def own_server() -> Iterator[str]:
    """A server in an event loop of its own thread."""
    ready, stop = threading.Event(), asyncio.Event()
    found: list[Any] = []

    async def main() -> None:
        async with running_server() as running:
            found.extend((running.url, asyncio.get_running_loop()))
            ready.set()
            await stop.wait()

    thread = threading.Thread(target=lambda: asyncio.run(main()), daemon=True)
    thread.start()
    assert ready.wait(WAIT_S)
    try:
        yield found[0]
    finally:
        found[1].call_soon_threadsafe(stop.set)
        thread.join(WAIT_S)


def test_anything_is_answered_once_for_each_readable_request() -> None:
    """Lines of any kind and order, then the end of input."""
    with own_server() as url:

        @settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
        @given(st.lists(LINES, max_size=12), st.sampled_from([b"\n", b"\r\n", b"\n\n"]), st.booleans())
        def run(lines: list[bytes], ending: bytes, marked: bool) -> None:
            found = carried(url, (BOM if marked else b"") + ending.join([*lines, PING]))
            answers = Counter(each["id"] for each in found if "id" in each)
            wanted = Counter(key for line in lines if (key := _key_of(line)) is not None)
            assert answers == wanted + Counter(["last"])
            assert all("result" in each or "error" in each for each in found)

        run()


def _key_of(line: bytes) -> str | float | None:
    """The id under which a client would wait for an answer."""
    try:
        message = json.loads(line)
    except ValueError:
        return None
    if not isinstance(message, dict) or ("method" not in message and ("result" in message or "error" in message)):
        return None
    key = message.get("id")
    return key if isinstance(key, str | int | float) and not isinstance(key, bool) else None
