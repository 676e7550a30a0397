"""Messages as real clients write them, over both transports: one answer each, with their id."""

from __future__ import annotations

from typing import Any

import httpx
import orjson
import pytest
from websockets.asyncio.client import connect

from exai.mcp.core.jsonrpc import MAX_VALUES
from tests.support.daemon import Daemon
from tests.support.mcp_server import handshake

CALL = b'{"jsonrpc":"2.0","id":7,"method":"tools/call","params":'
APPEND = (
    b'{"name":"conversation_append","arguments":{"messages":'
    b'[{"role":"user","content":"a","metadata":{"large":1e300,"small":5e-324}}]}}'
)
REFUSED = [
    b'{"jsonrpc":"2.0","id":1180591620717411303424,"method":"tools/list"}',
    b'{"jsonrpc":"2.0","id":7.5,"method":"tools/list"}',
    CALL + b'{"name":"version","arguments":{"a":"' + b"x" * 1_100_000 + b'\\ud83d"}}}',
    b'{"method":"tools/call","params":{"a":"' + b"\\ude00" * 200_000 + b'"},"jsonrpc":"2.0","id":7}',
    CALL + b'{"a":[' + b"0," * MAX_VALUES + b"0]}}",
    b'{"params":{"id":1,"a":[' + b"[]," * 100_000 + b'0]},"method":"tools/list","id":"seven","jsonrpc":"2.0"}',
    CALL + b'{"a":99999999999999999999}}',
    CALL + b'{"a":NaN}}',
    CALL + b"[1]}",
    CALL.replace(b'"id"', b'"\\u0069d"') + b'{"a":1,"a":2}}',
]
ACCEPTED = [
    b'\xef\xbb\xbf{"jsonrpc":"2.0","id":7,"method":"tools/list"}',
    b'{"jsonrpc":"2.0","id":7.0,"method":"tools/list"}',
    b'{"jsonrpc":"2.0","id":7,"method":"tools/list","params":null}',
    b'{"jsonrpc":"2.0","id":7,"method":"tools/list","params":[]}',
    b'{"jsonrpc":"2.0","id":7,"method":"tools/list","params":{"cursor":""}}',
    b'{"jsonrpc":"2.0","id":7,"method":"resources/list","params":{"cursor":""}}',
    b'{"jsonrpc":"2.0","id":7,"method":"prompts/list","params":{"cursor":""}}',
    CALL + b'{"name":"version","_meta":{"progressToken":1.0}}}',
    CALL + b'{"name":"version","_meta":[]}}',
    CALL + b'{"name":"version","arguments":[]}}',
    CALL + b'{"name":"version","arguments":"null"}}',
    CALL + APPEND + b"}",
]


def id_of(message: bytes) -> Any:
    for written in (b"1180591620717411303424", b"7.5", b'"seven"'):
        if b'"id":' + written in message:
            return orjson.loads(written)
    return 7


async def answers(daemon: Daemon, message: bytes) -> list[dict[str, Any]]:
    """The answer to a message by the WebSocket, whose next answer shows that there was one only, and by HTTP."""
    async with connect(daemon.url, subprotocols=["mcp"], compression=None) as socket:  # type: ignore[list-item]
        await socket.send(orjson.dumps(handshake()), text=True)
        await socket.recv()
        await socket.send(message, text=True)
        await socket.send(b'{"jsonrpc":"2.0","id":"last","method":"ping"}', text=True)
        found = [orjson.loads(await socket.recv()), orjson.loads(await socket.recv())]
    [by_socket] = [each for each in found if each.get("id") != "last"]
    async with httpx.AsyncClient(headers={"mcp-protocol-version": "2025-11-25"}, verify=False) as client:
        url = f"http://127.0.0.1:{daemon.port}/mcp"
        posted = await client.post(url, content=message, headers={"content-type": "application/json"})
    return [by_socket, posted.json()]


@pytest.mark.parametrize("message", REFUSED, ids=range(len(REFUSED)))
async def test_a_refused_request_is_answered_with_its_id(shared_daemon: Daemon, message: bytes) -> None:
    """Else its client waits until its timeout."""
    for answer in await answers(shared_daemon, message):
        assert answer["id"] == id_of(message)
        assert "error" in answer


@pytest.mark.parametrize("message", ACCEPTED, ids=range(len(ACCEPTED)))
async def test_a_request_is_understood_as_clients_write_it(shared_daemon: Daemon, message: bytes) -> None:
    for answer in await answers(shared_daemon, message):
        assert answer["id"] == 7
        assert not answer["result"].get("isError"), answer
