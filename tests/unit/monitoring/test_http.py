"""The monitoring routes, spoken to as an ASGI application."""

from __future__ import annotations

from collections.abc import AsyncIterator

import httpx
import pytest
from starlette.applications import Starlette

from exai.monitoring.exposition import Values
from exai.monitoring.health import READINESS_CHANGES_AFTER, Component, Health, Probed
from exai.monitoring.metrics import MetricsRecorder
from exai.web.monitoring import metrics_reader, monitoring_routes


class Daemon:
    """Two components whose state the test sets, behind the routes."""

    def __init__(self) -> None:
        self.states = {"database": "ok", "redis": "ok"}
        self.probes = 0
        self.recorder = MetricsRecorder()
        components = [Component(name, self._probe(name), required=name == "database") for name in self.states]
        self.health = Health(components, recorder=self.recorder)
        routes = monitoring_routes(self.health, self.read_metrics, lambda: {"staleness_bound_s": 2.0})
        transport = httpx.ASGITransport(Starlette(routes=routes))
        self.client = httpx.AsyncClient(transport=transport, base_url="http://exai")

    def _probe(self, name: str):  # type: ignore[no-untyped-def]
        async def probe() -> Probed:
            self.probes += 1
            return Probed(self.states[name], "seen")  # type: ignore[arg-type]

        return probe

    async def read_metrics(self) -> Values:
        return self.recorder.values()

    async def settle(self, **states: str) -> None:
        self.states |= states
        for _ in range(READINESS_CHANGES_AFTER):
            await self.health.probe_all()


@pytest.fixture
async def daemon() -> AsyncIterator[Daemon]:
    daemon = Daemon()
    await daemon.settle()
    yield daemon
    await daemon.client.aclose()


async def test_health_shows_every_component_with_its_latency(daemon: Daemon) -> None:
    """Design, monitoring: GET /health with every component and its latency."""
    reply = await daemon.client.get("/health")
    body = reply.json()
    assert reply.status_code == 200
    assert (body["service"], body["status"], body["ready"], body["staleness_bound_s"]) == ("exai", "ok", True, 2.0)
    assert set(body["components"]) == {"database", "redis"}
    redis = body["components"]["redis"]
    assert set(redis) == {"state", "required", "latency_ms", "detail", "since"}
    assert redis["latency_ms"] >= 0
    assert reply.headers["cache-control"] == "no-store"


@pytest.mark.parametrize(
    ("states", "status", "health", "ready"),
    [
        ({}, "ok", 200, 200),
        ({"redis": "down"}, "degraded", 200, 200),
        ({"redis": "off"}, "ok", 200, 200),
        ({"database": "degraded"}, "degraded", 200, 200),
        ({"database": "down"}, "down", 503, 503),
    ],
)
async def test_status_follows_the_components_and_live_stays_200(
    daemon: Daemon, states: dict[str, str], status: str, health: int, ready: int
) -> None:
    """Facts on monitoring: a database outage must not restart daemons; degraded Redis is ready."""
    await daemon.settle(**states)
    reply = await daemon.client.get("/health")
    assert (reply.json()["status"], reply.status_code) == (status, health)
    assert (await daemon.client.get("/health/ready")).status_code == ready
    assert (await daemon.client.get("/health/live")).status_code == 200


async def test_not_ready_names_what_is_down(daemon: Daemon) -> None:
    """An operator reads the reason where the refusal is."""
    await daemon.settle(database="down", redis="down")
    assert (await daemon.client.get("/health/ready")).json() == {
        "ready": False,
        "accepting": True,
        "down": ["database"],
    }


async def test_draining_is_not_ready_but_healthy_and_live(daemon: Daemon) -> None:
    """Style, shutdown: not ready first, so that a load balancer stops sending."""
    daemon.health.stop_accepting()
    ready = await daemon.client.get("/health/ready")
    assert (ready.status_code, ready.json()["accepting"]) == (503, False)
    assert (await daemon.client.get("/health")).status_code == 200


async def test_requests_never_probe(daemon: Daemon) -> None:
    """Facts on monitoring: never probing on request, or health checks become load."""
    before = daemon.probes
    for path in ("/health", "/health/live", "/health/ready", "/metrics"):
        await daemon.client.get(path)
    assert daemon.probes == before


async def test_metrics_are_prometheus_text(daemon: Daemon) -> None:
    """The content type decides how Prometheus reads it."""
    daemon.recorder.count("db_statements_total", statement="append")
    reply = await daemon.client.get("/metrics")
    assert reply.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    assert 'exai_db_statements_total{statement="append"} 1.0' in reply.text


async def test_only_get_and_head_are_answered(daemon: Daemon) -> None:
    """Nothing here changes anything."""
    assert (await daemon.client.head("/health")).status_code == 200
    assert (await daemon.client.post("/health")).status_code == 405


async def test_unauthorized_callers_see_the_status_only() -> None:
    """No version, address, process or name of a component, which a proxy might publish."""
    daemon = Daemon()
    await daemon.settle(redis="down")

    async def may_not(_: object) -> bool:
        return False

    routes = monitoring_routes(
        daemon.health, daemon.read_metrics, lambda: {"pid": 1}, may_see_details=may_not, may_read_metrics=may_not
    )
    transport = httpx.ASGITransport(Starlette(routes=routes))
    async with httpx.AsyncClient(transport=transport, base_url="http://exai") as client:
        assert (await client.get("/health")).json() == {"service": "exai", "status": "degraded"}
        assert (await client.get("/health/ready")).json() == {"ready": True}
        metrics = await client.get("/metrics")
    assert metrics.status_code == 401
    assert metrics.headers["www-authenticate"] == "Bearer"


@pytest.mark.parametrize(
    ("token", "is_guarded", "given", "may"),
    [
        (None, False, None, True),
        (None, True, None, False),
        (None, True, "caller", True),
        ("metrics", True, "metrics", True),
        ("metrics", True, "caller", True),
        ("metrics", True, "other", False),
        ("metrics", True, None, False),
        ("metrics", False, None, False),
        ("metrics", False, "metrics", True),
    ],
)
async def test_metrics_want_a_token_where_there_is_one(
    token: str | None, is_guarded: bool, given: str | None, may: bool
) -> None:
    """Also from this machine: a token of their own, or that of a caller."""

    async def is_admitted(scope: object) -> bool:
        assert is_guarded
        return given == "caller"

    reader = metrics_reader(token, is_guarded=is_guarded, is_admitted=is_admitted)
    headers = [] if given is None else [(b"authorization", f"Bearer {given}".encode())]
    assert await reader({"headers": headers}) is may


async def test_metrics_of_silent_workers_are_not_guessed(daemon: Daemon) -> None:
    """A part of the sums would look like counters that were reset."""

    async def silent() -> Values:
        raise TimeoutError

    transport = httpx.ASGITransport(Starlette(routes=monitoring_routes(daemon.health, silent)))
    async with httpx.AsyncClient(transport=transport, base_url="http://exai") as client:
        assert (await client.get("/metrics")).status_code == 503
