"""The capabilities and lists that the product offers to a client."""

from __future__ import annotations

import asyncio
import re

import httpx
import orjson

from tests.support.client import call, connect
from tests.support.daemon import Daemon
from tests.support.mcp_server import handshake, modern, request, tool_call
from tests.support.plain_socket import plain_socket
from tests.support.provider_server import ProviderServer, hang_after_first_token

TOOLS_LIST_BYTES = 36_000
"""About 9,000 tokens, which every conversation of a client pays for."""

LISTS = ("tools/list", "prompts/list", "resources/list", "resources/templates/list")
MODERN_ONLY = {"resultType", "ttlMs", "cacheScope", "_meta"}


async def test_lists_are_shaped_for_their_era_and_the_same_for_every_client(daemon: Daemon) -> None:
    """Two sockets and HTTP, both eras; a cursor that is an empty text was never given out."""
    async with plain_socket(daemon.url) as one, plain_socket(daemon.url) as other, httpx.AsyncClient() as client:
        await one.ask(handshake())
        for method in LISTS:
            old = (await one.ask(request(method, method)))["result"]
            new = (await other.ask(modern(method, method)))["result"]
            assert MODERN_ONLY <= new.keys()
            assert new["resultType"] == "complete"
            assert new["_meta"]["io.modelcontextprotocol/serverInfo"]["name"] == "exai"
            assert not MODERN_ONLY & old.keys()
            assert old == {name: value for name, value in new.items() if name not in MODERN_ONLY}
            headers = {"mcp-protocol-version": "2026-07-28", "mcp-method": method}
            url = f"http://127.0.0.1:{daemon.port}/mcp"
            posted = await client.post(url, json=modern(method, method), headers=headers)
            assert posted.json()["result"] == new
            for era, socket in ((request, one), (modern, other)):
                assert (await socket.ask(era("c", method, {"cursor": "x"})))["error"]["code"] == -32602


async def test_tools_are_few_words_and_say_what_they_do_to_the_world(daemon: Daemon) -> None:
    """Hints on all, and every part of a schema where clients look for it."""
    async with plain_socket(daemon.url) as socket:
        listed = (await socket.ask(modern(1, "tools/list")))["result"]
    tools = {each["name"]: each for each in listed["tools"]}
    assert len(orjson.dumps(listed)) < TOOLS_LIST_BYTES
    for name, tool in tools.items():
        assert re.fullmatch(r"[a-z][a-z0-9_]{0,40}", name)
        assert tool["title"]
        assert 0 < len(tool["description"]) < 500
        hints = tool["annotations"]
        assert {"readOnlyHint", "idempotentHint", "openWorldHint"} <= hints.keys()
        assert hints["readOnlyHint"] or "destructiveHint" in hints
        assert tool["inputSchema"]["type"] == "object"
    reads = {name for name, tool in tools.items() if tool["annotations"]["readOnlyHint"]}
    assert {"conversation_get", "conversation_list", "conversation_search", "conversation_export"} <= reads
    assert {"file_get", "file_list", "listmodels", "status", "version", "usage"} <= reads
    assert not reads & {"chat", "conversation_append", "conversation_import", "conversation_delete", "file_put"}
    assert {name for name, tool in tools.items() if tool["annotations"].get("destructiveHint")} == {
        "conversation_delete",
        "file_delete",
    }
    for name in ("conversation_get", "conversation_export", "file_get"):
        assert tools[name]["_meta"]["anthropic/maxResultSizeChars"] == 500_000
    for name in ("chat", "codereview", "conversation_get"):
        assert tools[name]["_meta"]["anthropic/alwaysLoad"] is True


async def test_closing_the_socket_cancels_the_providers_call_and_stores_no_answer(
    daemon: Daemon, provider: ProviderServer
) -> None:
    """The question and the received part of the answer stay, and the conversation continues."""
    provider.script(hang_after_first_token("Half"))
    async with connect(daemon.url) as session:
        message = [{"role": "user", "content": "Before"}]
        key = (await call(session, "conversation_append", messages=message))["continuation_id"]
        async with plain_socket(daemon.url) as socket:
            await socket.send(modern(1, "tools/call", tool_call("chat", prompt="Hello?", continuation_id=key)))
            await provider.arrived(1)
        async with asyncio.timeout(5):
            await provider.chats[0].gone.wait()
        answer = await call(session, "chat", prompt="Still there?", continuation_id=key)
        page = await call(session, "conversation_get", continuation_id=key)
    whole = [each["content"] for each in page["messages"] if each["kind"] != "partial"]
    assert whole == ["Before", "Hello?", "Still there?", answer["content"]]
