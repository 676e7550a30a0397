"""What the views of the page cost the database, counted there, at 100,000 conversations; an open page costs nothing."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import orjson
import pytest
from websockets.asyncio.client import ClientConnection
from websockets.asyncio.client import connect as dial

from exai.db.driver.statements import load_statements
from exai.mcp.core.versions import MODERN
from tests.support.daemon import Daemon, start_daemon
from tests.support.mcp_server import modern, tool_call
from tests.support.migrations import run
from tests.support.pg_proxy import PgProxy
from tests.support.waiting import wait_until

pytestmark = pytest.mark.direct

FILL = """
insert into conversations (continuation_id, title, next_seq)
select 'c' || i, 'About ' || i, 2 from generate_series(1, 100000) i;
insert into messages (conversation_id, seq, turn_id, role, content)
select id, 1, id, 'user', 'A question about ' || title from conversations;
insert into turns (conversation_id, owner, request_key, request_hash, tool, model, state, claimed_by, lease_until,
                   revision)
select id, 'local', continuation_id, 'h', case when continuation_id like 'c777%' then 'debug' else 'chat' end,
       'kimi-k3', 'finished', id, now(), 1 from conversations;
analyze;
"""
BY_ITSELF = {
    *("changes", "ping", "renew_leases", "index_messages", "server_limit", "standing", "revision", "store_metrics"),
    *("apply_metrics_retention", "create_metrics_partitions", "server_time"),
}
"""Statements that a daemon sends whether or not a page is open."""

BOTH = "application/json, text/event-stream"
HISTORY = {"metric": "tool_call", "since": "1800000000", "until": "1800003600", "step": "60", "by": "outcome"}
VIEWS: dict[str, list[tuple[str, dict[str, Any]]]] = {
    "list": [("conversation_list", {"limit": 40})],
    "list of a rare tool": [("conversation_list", {"limit": 40, "tool": "debug"})],
    "list of a model": [("conversation_list", {"limit": 40, "model": "kimi-k3"})],
    "conversation": [
        ("conversation_get", {"continuation_id": "c5"}),
        ("usage", {"by": "turn", "continuation_id": "c5"}),
    ],
    "overview": [("usage", {"by": "day", "since": "2026-11-30T23:00:00Z", "time_zone": "Europe/Berlin"})],
    "search": [("conversation_search", {"query": "77701*", "limit": 40})],
    "settings": [],
    "connect": [("listmodels", {})],
}


class Rig:
    """A daemon whose statements pass a counting proxy."""

    def __init__(self, daemon: Daemon, proxy: PgProxy) -> None:
        self.daemon, self.proxy = daemon, proxy
        self.url = f"http://127.0.0.1:{daemon.port}"
        self._names = {each.text: name for name, each in load_statements().items()}

    def sent(self) -> Counter[str]:
        """Return the statements since the last reset that a caller has caused, by name, or by text without one."""
        names = (self._names.get(text, text) for text in self.proxy.statements)
        return Counter(name for name in names if name not in BY_ITSELF)


@pytest.fixture
async def rig(postgres_url: str, redis_url: str, tmp_path: Path) -> AsyncIterator[Rig]:
    await run(postgres_url, FILL)
    async with PgProxy(postgres_url) as proxy:
        settings = {
            "EXAI_DATA_DIR": str(tmp_path),
            "EXAI_DATABASE__URL": proxy.url,
            "EXAI_CACHE__URL": redis_url,
            # The messages wait: the index of their words is of no interest here, and a pass over all takes long.
            "EXAI_DATABASE__INDEX_PAUSE_S": "3600",
        }
        starting = start_daemon(settings)
        daemon = await asyncio.to_thread(starting.__enter__)
        try:
            yield Rig(daemon, proxy)
        finally:
            await asyncio.to_thread(starting.__exit__, None, None, None)


async def ask(socket: ClientConnection, tool: str, arguments: dict[str, Any]) -> None:
    """Call a tool that must succeed."""
    await socket.send(orjson.dumps(modern(tool, "tools/call", tool_call(tool, **arguments))), text=True)
    result = orjson.loads(await socket.recv())["result"]
    assert not result["isError"], result


async def costs(rig: Rig, socket: ClientConnection) -> list[Counter[str]]:
    """The statements of a read and of an append by another client."""
    found = []
    message = {"role": "user", "content": "beside a page"}
    for tool, arguments in (
        ("conversation_get", {"continuation_id": "c7"}),
        ("conversation_append", {"continuation_id": "c7", "messages": [message]}),
    ):
        rig.proxy.reset()
        await ask(socket, tool, arguments)
        found.append(rig.sent())
    return found


async def test_each_view_is_one_or_two_statements_and_an_open_page_none(rig: Rig) -> None:
    """The page itself is tested in a browser; these are the calls of its views."""
    async with dial(rig.daemon.url, proxy=None) as socket, httpx.AsyncClient(base_url=rig.url, timeout=30) as client:
        for view, calls in VIEWS.items():
            rig.proxy.reset()
            for tool, arguments in calls:
                await ask(socket, tool, arguments)
            assert sum(rig.sent().values()) <= len(calls) <= 2, (view, rig.sent())
        await ask(socket, "conversation_get", {"continuation_id": "c7"})
        alone = [await costs(rig, socket) for _ in range(2)]
        wanted = {"resourcesListChanged": True, "resourceSubscriptions": ["exai://conversations/c7"]}
        listening = modern("listen", "subscriptions/listen", {"notifications": wanted})
        headers = {"mcp-protocol-version": MODERN, "mcp-method": "subscriptions/listen", "accept": BOTH}
        async with (
            client.stream("GET", "/live") as stream,
            client.stream("POST", "/mcp", json=listening, headers=headers) as changes,
        ):
            async for line in changes.aiter_lines():
                if "acknowledged" in line:
                    break
            lines = stream.aiter_lines()

            async def event() -> None:
                async for line in lines:
                    if line.startswith("data:"):
                        return

            await event()
            # The first reader starts an examination, whose connections end with it.
            examined = len(rig.proxy._clients)
            await wait_until(lambda: bool(rig.proxy.connects) and len(rig.proxy._clients) <= examined, limit_s=30)
            await event()
            rig.proxy.reset()
            # Between two events lies a whole interval of two seconds.
            await event()
            await event()
            assert rig.sent() == Counter()
            assert [await costs(rig, socket) for _ in range(2)] == alone
        # The overview is its tool and one chart; events are read when they are unfolded.
        await client.get("/events")
        rig.proxy.reset()
        assert (await client.get("/events")).status_code == 200
        assert rig.sent() == {"recent_events": 1}
        await client.get("/history", params=HISTORY)
        rig.proxy.reset()
        assert (await client.get("/history", params=HISTORY)).status_code == 200
        assert rig.sent() == {"metrics_history": 1}
