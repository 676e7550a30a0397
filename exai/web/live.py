"""The routes of the page beside MCP: the numbers of now as a stream, their history, and the events of the last week.

Invariant: a caller is admitted, counted and limited here as for MCP, and receives no other owner's data. The stream
costs no statement, the other two cost one.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

import orjson
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from exai.db.history import HistoryPoint, HistoryQuery, RecentMetric
from exai.errors import ExaiError, InvalidArgument, Overloaded, RequestError
from exai.fairness import request_owner
from exai.mcp.admission import Rejection, expired, too_many
from exai.mcp.identity import Admitted
from exai.mcp.server import McpServer
from exai.mcp.transport.extensions import abort_of
from exai.mcp.transport.http.streamable import Gone, HttpReply
from exai.models import Finding, Owner
from exai.monitoring.health import Health
from exai.monitoring.live import LiveSnapshot
from exai.resilience import with_deadline
from exai.web.sentences import event_text, problems_of, states_of

INTERVAL_S: Final = 2.0
NOTICE_S: Final = 0.25
"""Time within which a stream notices that the daemon stops."""

HISTORY_TIMEOUT_S: Final = 5.0
MAX_DIGITS: Final = 10
OF_ALL_OWNERS: Final = ("cost_usd", "tokens")
"""Fields of a snapshot with sums over all owners; an owner's own are in the ledger."""

SEEN_BY_ALL: Final = frozenset({"health_change"})
"""Types of events that an owner sees who is not the operator, without their details."""

NO_STORE: Final = {"Cache-Control": "no-store"}

Gather = Callable[[], Awaitable[LiveSnapshot]]
ReadHistory = Callable[[HistoryQuery], Awaitable[tuple[HistoryPoint, ...]]]
ReadEvents = Callable[[], Awaitable[tuple[RecentMetric, ...]]]


@dataclass(frozen=True, slots=True)
class PageSources:
    """Where the routes read: `problems` returns the findings of `exai doctor` that are not well."""

    health: Health
    gather: Gather
    problems: Callable[[], Sequence[Finding]]
    read_history: ReadHistory
    read_events: ReadEvents


def live_routes(server: McpServer, sources: PageSources) -> list[Route]:
    """Return the routes.

    GET /live is a stream with one event every two seconds, GET /history one metric by steps of time, and GET /events
    the newest changes of health, runs of commands, and batches of metrics with a problem. Callers to whom GET /health
    shows the status only see the states of the parts here, without hosts and errors.
    """

    async def history(request: Request, owner: Owner) -> Any:
        points = await sources.read_history(_query(request.query_params, owner))
        return {"points": [_point(each) for each in points]}

    async def events(request: Request, _: Owner) -> Any:
        with_details = await server.edge.may_see_details(request.scope)
        found = [each for each in await sources.read_events() if with_details or each.type in SEEN_BY_ALL]
        texts = [event_text(each.type, each.data, with_details=with_details) for each in found]
        return {"events": [{"at": each.at.isoformat(), "text": text} for each, text in zip(found, texts, strict=True)]}

    return [
        Route("/live", _LiveStream(server, _Snapshots(sources)), methods=["GET"]),
        Route("/history", _endpoint(server, history), methods=["GET"]),
        Route("/events", _endpoint(server, events), methods=["GET"]),
    ]


class _Snapshots:
    """The newest snapshot as JSON, which all streams share: many open pages cost as much as one."""

    def __init__(self, sources: PageSources) -> None:
        self._sources = sources
        self._lock = asyncio.Lock()
        self._read_at = float("-inf")
        self._facts: dict[str, Any] = {}
        self._latest: dict[bool, bytes] = {}

    async def read(self, *, with_details: bool) -> bytes:
        """Return a snapshot that is not older than half of the interval."""
        async with self._lock:
            if time.monotonic() - self._read_at > INTERVAL_S / 2:
                snapshot = (await self._sources.gather()).as_json()
                self._facts = {name: value for name, value in snapshot.items() if name not in OF_ALL_OWNERS}
                self._latest.clear()
                self._read_at = time.monotonic()
            if with_details not in self._latest:
                self._latest[with_details] = orjson.dumps(self._detailed() if with_details else self._without_details())
            return self._latest[with_details]

    def _detailed(self) -> dict[str, Any]:
        report = self._sources.health.report()
        problems = problems_of(report, self._sources.problems(), self._facts["providers"])
        return {**self._facts, "health": report.as_json(), "problems": problems}

    def _without_details(self) -> dict[str, Any]:
        report = self._sources.health.report()
        shown = {
            "pids": [],
            "providers": [{**each, "detail": ""} for each in self._facts["providers"]],
            "health": report.as_json(with_details=False),
            "problems": states_of(report),
        }
        return {**self._facts, **shown}


class _LiveStream:
    """The ASGI application of GET /live. A stream ends with its client, its token or the daemon."""

    def __init__(self, server: McpServer, snapshots: _Snapshots) -> None:
        self._server, self._snapshots = server, snapshots

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one stream."""
        reply = HttpReply(send, abort_of(scope), self._server.settings.send_timeout_s)
        admitted = await self._server.edge.admit(scope)
        if isinstance(admitted, Rejection):
            await reply.text(admitted)
            return
        quota = self._server.quotas.of(admitted.owner)
        with_details = await self._server.edge.may_see_details(scope)
        try:
            quota.take(0)
            with quota.hold_connection():
                await self._while_there(receive, self._stream(reply, admitted, with_details=with_details))
        except Overloaded as error:
            await reply.text(too_many(error))

    async def _while_there(self, receive: Receive, streaming: Awaitable[None]) -> None:
        task = asyncio.ensure_future(streaming)
        gone = asyncio.create_task(_wait_until_gone(receive), name="page stream disconnect")
        try:
            await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            gone.cancel()
            task.cancel()
            await asyncio.wait({task, gone})
        if not task.cancelled() and (error := task.exception()) is not None and not isinstance(error, Gone):
            raise error

    async def _stream(self, reply: HttpReply, admitted: Admitted, *, with_details: bool) -> None:
        if _has_expired(admitted):
            await reply.text(expired())
            return
        await reply.begin_stream()
        while not self._server.is_draining and not _has_expired(admitted):
            await reply.event(await self._snapshots.read(with_details=with_details))
            for _ in range(int(INTERVAL_S / NOTICE_S)):
                if not self._server.is_draining:
                    await asyncio.sleep(NOTICE_S)
        await reply.end_stream()


async def _wait_until_gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def _has_expired(admitted: Admitted) -> bool:
    return admitted.expires_at is not None and admitted.expires_at <= time.time()


def _endpoint(
    server: McpServer, read: Callable[[Request, Owner], Awaitable[Any]]
) -> Callable[[Request], Awaitable[Response]]:
    """Return the endpoint that answers an admitted caller with what `read` returns, as JSON."""

    async def show(request: Request) -> Response:
        admitted = await server.edge.admit(request.scope)
        if isinstance(admitted, Rejection):
            return _refusal(admitted)
        quota = server.quotas.of(admitted.owner)
        try:
            quota.take(0)
            with quota.hold_connection():
                request_owner.set(admitted.owner)
                with with_deadline(HISTORY_TIMEOUT_S):
                    body = await read(request, admitted.owner)
        except Overloaded as error:
            return _refusal(too_many(error))
        except ExaiError as error:
            return _json({"error": error.report()}, 400 if isinstance(error, RequestError) else 503)
        return _json(body)

    return show


def _query(given: Mapping[str, str], owner: Owner) -> HistoryQuery:
    return HistoryQuery(
        metric=given.get("metric", ""),
        since=_moment("since", given),
        until=_moment("until", given),
        step_s=_seconds("step", given),
        by=tuple(filter(None, given.get("by", "").split(","))),
        owner=owner,
    )


def _seconds(name: str, given: Mapping[str, str]) -> int:
    text = given.get(name, "")
    if not text.isdecimal() or len(text) > MAX_DIGITS:
        raise InvalidArgument(name, "is not a number of seconds", "Give whole seconds; a time in seconds since 1970")
    return int(text)


def _moment(name: str, given: Mapping[str, str]) -> datetime:
    return datetime.fromtimestamp(_seconds(name, given), UTC)


def _point(point: HistoryPoint) -> dict[str, Any]:
    return {
        "at": point.at.timestamp(),
        "labels": point.labels,
        "count": point.count,
        "sum": point.sum,
        "p50": point.p50,
        "p99": point.p99,
    }


def _json(body: Any, status: int = 200) -> Response:
    return Response(orjson.dumps(body), status, NO_STORE, "application/json")


def _refusal(rejection: Rejection) -> Response:
    headers = {name.decode(): value.decode() for name, value in rejection.headers}
    return PlainTextResponse(rejection.text, rejection.status, {**NO_STORE, **headers})
