"""The routes of the page beside MCP: who may read them, and what they show."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Any

import httpx
import orjson
import pytest

from exai.db.history import HistoryPoint, HistoryQuery, RecentMetric
from exai.mcp.auth.tokens import authenticator
from exai.mcp.server import McpServer
from exai.mcp.transport.asgi import build_asgi
from exai.mcp.transport.listener import RunningServer, open_server
from exai.models import Finding, Owner
from exai.monitoring.health import Component, Health, Probed
from exai.monitoring.live import Live, LiveSnapshot
from exai.monitoring.metrics import MetricsRecorder
from exai.web.live import PageSources, live_routes
from tests.support.mcp_server import Tools, fast_settings, new_server

ALICE, BOB = "a-token-of-alice-long-enough", "a-token-of-bob-that-is-long-enough"
HISTORY = {"metric": "turn_cost_usd", "since": "1800000000", "until": "1800003600", "step": "60", "by": "model,kind"}
WAIT_S = 5.0
SECRET = "cache.internal.example"
FORWARDED = {"x-forwarded-for": "203.0.113.9"}
AT = datetime(2026, 11, 30, tzinfo=UTC)


class Site:
    """A server with the routes, and what they asked for."""

    def __init__(
        self, server: McpServer, running: RunningServer, asked: list[HistoryQuery], gathered: list[int]
    ) -> None:
        self.server, self.running, self.asked, self.gathered = server, running, asked, gathered
        self.url = f"http://127.0.0.1:{running.port}"


@pytest.fixture
async def site() -> AsyncIterator[Site]:
    settings = fast_settings(tokens={"alice": ALICE, "bob": BOB}, owner_max_connections=3)
    server = new_server(Tools(), settings, authenticate=authenticator(settings))
    recorder = MetricsRecorder()
    kimi = {"name": "kimi", "configured": True, "state": "degraded", "breaker": "open", "detail": f"{SECRET} is away"}
    live = Live(recorder, pool=lambda: (1, 2, 10), providers=lambda: [kimi], running=lambda: 0)
    asked: list[HistoryQuery] = []
    gathered: list[int] = []

    async def gather() -> LiveSnapshot:
        gathered.append(1)
        return await live.gather()

    async def read(query: HistoryQuery) -> tuple[HistoryPoint, ...]:
        query.validate()
        asked.append(query)
        return (HistoryPoint(query.since, {"model": "kimi-k3"}, 2, 0.5, 0.1, 0.4, None, None),)

    async def events() -> tuple[RecentMetric, ...]:
        changed = {"labels": {"component": "cache", "state": "down"}, "detail": f"{SECRET} refused"}
        moved = {"status": "failed", "source": f"{SECRET}:1", "error": f"relation of {SECRET}"}
        return RecentMetric("health_change", changed, AT), RecentMetric("metrics_batch", moved, AT)

    async def unreachable() -> Probed:
        return Probed("down", f"{SECRET}:6379 does not answer")

    problem = Finding("redis", "fail", f"no answer of {SECRET}", "Start it")
    health = Health([Component("cache", unreachable)], recorder=recorder)
    await health.probe_all()
    routes = live_routes(server, PageSources(health, gather, lambda: (problem,), read, events))
    async with open_server(build_asgi(server, routes), settings) as running:
        yield Site(server, running, asked, gathered)


@pytest.fixture
async def client(site: Site) -> AsyncIterator[httpx.AsyncClient]:
    headers = {"authorization": f"Bearer {ALICE}"}
    async with httpx.AsyncClient(base_url=site.url, headers=headers, timeout=WAIT_S, verify=False) as opened:
        yield opened


async def next_event(lines: AsyncIterator[str]) -> dict[str, Any]:
    """The next event of a stream, which ends when its iterator is forgotten."""
    async for line in lines:
        if line.startswith("data:"):
            found = orjson.loads(line[5:])
            assert isinstance(found, dict)
            return found
    raise AssertionError("the stream ended without an event")


@pytest.mark.parametrize("path", ["/live", "/history", "/events"])
async def test_a_stranger_is_refused_as_by_mcp(site: Site, path: str) -> None:
    """Without a token, with one that is none, and a page of another site."""
    async with httpx.AsyncClient(base_url=site.url) as stranger:
        none = await stranger.get(path)
        wrong = await stranger.get(path, headers={"authorization": "Bearer another-token-of-some-length"})
        foreign = await stranger.get(
            path, headers={"origin": "https://evil.example", "authorization": f"Bearer {ALICE}"}
        )
        query = await stranger.get(f"{path}?token={ALICE}", headers={"host": "evil.example"})
    assert [none.status_code, wrong.status_code, foreign.status_code, query.status_code] == [401, 401, 403, 421]
    assert "bearer" in none.headers["www-authenticate"].lower()


async def test_the_stream_shows_the_daemon_and_no_sums_of_other_owners(site: Site, client: httpx.AsyncClient) -> None:
    """Costs and tokens of all owners together would tell each what the others do."""
    async with client.stream("GET", "/live") as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        assert (answer.headers["cache-control"], answer.headers["x-accel-buffering"]) == ("no-store", "no")
        shown = await next_event(answer.aiter_lines())
    assert shown["pool"] == {"in_use": 1, "open": 2, "size": 10}
    assert shown["health"]["status"] in ("ok", "degraded", "down")
    assert not {"cost_usd", "tokens"} & set(shown)
    assert shown["problems"] == [{"part": "redis", "detail": f"no answer of {SECRET}", "cure": "Start it"}]
    assert SECRET in shown["health"]["components"]["cache"]["detail"]


async def test_an_owner_who_is_not_the_operator_sees_states_without_details(client: httpx.AsyncClient) -> None:
    """As from GET /health: which part is down, and neither hosts nor errors. A proxy forwards other machines."""
    async with client.stream("GET", "/live", headers=FORWARDED) as answer:
        shown = await next_event(answer.aiter_lines())
        async with client.stream("GET", "/live") as local:
            assert SECRET in str(await next_event(local.aiter_lines()))
    (problem,) = shown["problems"]
    assert (problem["part"], problem["detail"], problem["cure"]) == ("cache", "down", "")
    assert (shown["health"]["status"], shown["providers"][0]["state"], shown["pids"]) == ("degraded", "degraded", [])
    events = await client.get("/events", headers=FORWARDED)
    assert [each["text"] for each in events.json()["events"]] == ["cache was None, is down"]
    assert SECRET not in str(shown)


async def test_many_streams_cost_as_much_as_one_and_count_as_connections(site: Site, client: httpx.AsyncClient) -> None:
    """The fourth of an owner is refused; another owner has places of its own."""
    async with client.stream("GET", "/live") as one, client.stream("GET", "/live") as two:
        streams = [one.aiter_lines(), two.aiter_lines()]
        for each in streams:
            await next_event(each)
        assert len(site.gathered) == 1
        async with client.stream("GET", "/live") as three:
            streams.append(three.aiter_lines())
            await next_event(streams[-1])
            assert (await client.get("/live")).status_code == 429
            assert (await client.get("/history", params=HISTORY)).status_code == 429
            bob = await client.get("/history", params=HISTORY, headers={"authorization": f"Bearer {BOB}"})
            assert bob.status_code == 200
    async with asyncio.timeout(WAIT_S):
        while (await client.get("/history", params=HISTORY)).status_code != 200:
            await asyncio.sleep(0.01)


async def test_a_stream_ends_when_the_daemon_stops(site: Site, client: httpx.AsyncClient) -> None:
    """A page that is open does not delay a shutdown."""
    async with client.stream("GET", "/live") as answer:
        lines = answer.aiter_lines()
        await next_event(lines)
        await site.running.close(grace_s=WAIT_S)
        assert [line async for line in lines if line.startswith("data:")] == []


async def test_the_history_is_that_of_its_owner(site: Site, client: httpx.AsyncClient) -> None:
    """The owner is the caller's, also if the request names another."""
    answer = await client.get("/history", params={**HISTORY, "owner": "bob", "where": "{}"})
    assert answer.headers["cache-control"] == "no-store"
    point = {"at": 1_800_000_000, "labels": {"model": "kimi-k3"}, "count": 2, "sum": 0.5, "p50": None, "p99": None}
    assert answer.json() == {"points": [point]}
    assert [(each.owner, each.by, each.step_s) for each in site.asked] == [(Owner("alice"), ("model", "kind"), 60)]


async def test_the_events_are_those_of_the_daemon(client: httpx.AsyncClient) -> None:
    answer = await client.get("/events")
    assert answer.headers["cache-control"] == "no-store"
    assert [each["text"] for each in answer.json()["events"]] == [
        f"cache was None, is down: {SECRET} refused",
        f"metrics of {SECRET}:1 were failed: relation of {SECRET}",
    ]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("step", "1"),
        ("step", "nan"),
        ("step", ""),
        ("step", "9" * 400),
        ("since", "-1"),
        ("since", "99999999999"),
        ("until", "0"),
        ("until", "٣"),
        ("metric", ""),
        ("metric", "x" * 300),
    ],
)
async def test_a_wrong_query_is_refused_with_its_field(
    site: Site, client: httpx.AsyncClient, field: str, value: str
) -> None:
    answer = await client.get("/history", params={**HISTORY, field: value})
    assert answer.status_code == 400
    assert answer.json()["error"]["code"] == "invalid_argument"
    assert site.asked == []
