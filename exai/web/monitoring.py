"""The routes that show health and metrics, on the same port as everything else.

Invariant: no route waits for a dependency; all answer from the results of the background probes.
"""

from __future__ import annotations

import hmac
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from exai import __version__
from exai.monitoring.exposition import CONTENT_TYPE, Values, render
from exai.monitoring.health import Health

SERVICE = "exai"
"""By this name `exai health` and `exai doctor` recognize that EXAI answers on a port."""

ReadMetrics = Callable[[], Awaitable[Values]]
"""Returns the metrics of all processes of the daemon. Raises `TimeoutError` if they cannot be had now."""

MaySee = Callable[[Mapping[str, Any]], Awaitable[bool]]
"""Returns whether the caller of an ASGI scope may see details."""

NO_STORE = {"Cache-Control": "no-store"}


def metrics_reader(
    token: str | None, *, is_guarded: bool, is_admitted: MaySee, may_see_details: MaySee | None = None
) -> MaySee:
    """Return who may read the metrics: with `token` or that of a caller; if there are no tokens, who sees details."""
    expected = None if token is None else f"Bearer {token}".encode()

    async def may_read(scope: Mapping[str, Any]) -> bool:
        given = dict(scope["headers"]).get(b"authorization", b"")
        if expected is not None and hmac.compare_digest(given, expected):
            return True
        if is_guarded:
            return await is_admitted(scope)
        return expected is None and (may_see_details is None or await may_see_details(scope))

    return may_read


def monitoring_routes(
    health: Health,
    read_metrics: ReadMetrics,
    facts: Callable[[], Mapping[str, Any]] = dict,
    *,
    may_see_details: MaySee | None = None,
    may_read_metrics: MaySee | None = None,
) -> list[Route]:
    """Return GET /health, /health/live, /health/ready and /metrics; `facts` are further fields of /health.

    /health and /health/ready answer 503 if the daemon is down or should get no work; /health/live answers 200 for as
    long as the process can answer at all, since restarting it does not repair a database. A caller refused by
    `may_see_details` receives the status and nothing else, one refused by `may_read_metrics` no metrics.
    """

    async def is_trusted(request: Request) -> bool:
        return may_see_details is None or await may_see_details(request.scope)

    async def show_health(request: Request) -> Response:
        report = health.report()
        body: dict[str, Any] = {"service": SERVICE, "status": report.state}
        if await is_trusted(request):
            body |= {"version": __version__, **report.as_json(), **facts()}
        return JSONResponse(body, 503 if report.state == "down" else 200, NO_STORE)

    async def show_live(_: Request) -> Response:
        return PlainTextResponse("live\n", headers=NO_STORE)

    async def show_ready(request: Request) -> Response:
        report = health.report()
        body: dict[str, Any] = {"ready": report.ready}
        if await is_trusted(request):
            down = [each.name for each in report.components if each.required and each.state == "down"]
            body |= {"accepting": report.accepting, "down": down}
        return JSONResponse(body, 200 if report.ready else 503, NO_STORE)

    async def show_metrics(request: Request) -> Response:
        if may_read_metrics is not None and not await may_read_metrics(request.scope):
            headers = {"WWW-Authenticate": "Bearer", **NO_STORE}
            return PlainTextResponse(
                "a bearer token is needed: EXAI_SERVER__METRICS_TOKEN, or the token of a caller; without any, the name "
                "of this server as Host (EXAI_SERVER__ALLOWED_HOSTS)\n",
                401,
                headers,
            )
        try:
            values = await read_metrics()
        except TimeoutError:
            return PlainTextResponse("the other workers of this daemon do not answer\n", 503, headers=NO_STORE)
        return Response(render(values), headers={"Content-Type": CONTENT_TYPE, **NO_STORE})

    return [
        Route("/health", show_health, methods=["GET"]),
        Route("/health/live", show_live, methods=["GET"]),
        Route("/health/ready", show_ready, methods=["GET"]),
        Route("/metrics", show_metrics, methods=["GET"]),
    ]
