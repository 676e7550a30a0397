"""The history of metrics: one statement, the same numbers from minutes and hours, and no other owner's rows."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import orjson
import pytest

from exai.db.driver.pool import Database
from exai.db.history import HistoryQuery, HistoryRepository
from exai.distribution import counted
from exai.errors import InvalidArgument
from exai.models import Owner
from tests.support.counters import Counters
from tests.support.database import new_id, opened

HOUR = datetime.now(UTC).replace(minute=0, second=0, microsecond=0) - timedelta(hours=3)


def calls(at: datetime, seconds: list[float], **labels: str) -> dict[str, Any]:
    data = {"count": len(seconds), "sum": sum(seconds), "buckets": counted(seconds), "labels": labels}
    return {"type": "tool_call", "timestamp": at.isoformat(), "data": data}


async def store(history: HistoryRepository, *metrics: dict[str, Any], batch: str | None = None) -> None:
    answer = await history.store(orjson.dumps(metrics), batch or new_id(), "test")
    assert answer.status in ("stored", "duplicate"), answer


@pytest.fixture
def history(database: Database) -> HistoryRepository:
    return HistoryRepository(database)


def query(step_s: int, *by: str, **where: str) -> HistoryQuery:
    return HistoryQuery("tool_call", HOUR, HOUR + timedelta(hours=3), step_s, by, where)


async def test_minutes_and_hours_have_the_same_sums_and_quantiles(history: HistoryRepository) -> None:
    """Steps of whole hours are read from other rows than shorter ones."""
    for minute in range(120):
        await store(history, calls(HOUR + timedelta(minutes=minute), [0.02] * 98 + [4.0] * 2, tool="chat"))
    hours = await history.read(query(3600))
    halves = await history.read(query(1800))
    assert [(point.at - HOUR, point.count) for point in hours] == [(timedelta(hours=n), 6000) for n in (0, 1)]
    assert [(point.at - HOUR, point.count) for point in halves] == [(timedelta(minutes=30 * n), 3000) for n in range(4)]
    for point in (*hours, *halves):
        assert point.sum == pytest.approx(point.count * 0.0996)
        assert point.p50 is not None and 0.01 <= point.p50 <= 0.025
        assert point.p99 is not None and 2.5 <= point.p99 <= 5


async def test_sums_are_made_by_the_labels_asked_for(history: HistoryRepository) -> None:
    """Other labels are added up; `where` selects rows."""
    for tool, outcome, number in (("chat", "ok", 3), ("chat", "timeout", 1), ("status", "ok", 5)):
        await store(history, calls(HOUR, [1.0] * number, tool=tool, outcome=outcome))
    assert [point.count for point in await history.read(query(3600))] == [9]
    by_tool = {point.labels["tool"]: point.count for point in await history.read(query(3600, "tool"))}
    assert by_tool == {"chat": 4, "status": 5}
    by_outcome = await history.read(query(60, "outcome", "absent", tool="chat"))
    assert [(dict(point.labels), point.count) for point in by_outcome] == [
        ({"outcome": "ok"}, 3),
        ({"outcome": "timeout"}, 1),
    ]


async def test_an_owner_sees_no_other_owners_rows(history: HistoryRepository) -> None:
    """Metrics without an owner are those of the daemon, for all."""
    for owner, number in (("anna", 2), ("bert", 4)):
        await store(history, calls(HOUR, [1.0] * number, owner=owner))
    await store(history, calls(HOUR, [1.0]))
    for owner, number in ((Owner("anna"), 3), (Owner("bert"), 5), (Owner("x"), 1), (None, 7)):
        asked = HistoryQuery("tool_call", HOUR, HOUR + timedelta(hours=1), 3600, owner=owner)
        assert [point.count for point in await history.read(asked)] == [number]


async def test_recent_rows_come_as_they_were_stored(history: HistoryRepository) -> None:
    """Newest first, of one metric or of all."""
    now = datetime.now(UTC)
    await store(history, {"type": "a", "timestamp": (now - timedelta(seconds=9)).isoformat(), "data": {"x": 1}})
    await store(history, {"type": "b", "timestamp": now.isoformat(), "data": {"y": [2]}})
    assert [(row.type, row.data) for row in await history.recent(None)] == [("b", {"y": [2]}), ("a", {"x": 1})]
    assert [row.data for row in await history.recent("a", 5, 9)] == [{"x": 1}]


async def test_a_batch_is_stored_once(history: HistoryRepository) -> None:
    """A repetition after a lost reply changes nothing."""
    batch = new_id()
    for _ in range(2):
        await store(history, calls(HOUR, [1.0], tool="chat"), batch=batch)
    assert [point.count for point in await history.read(query(3600))] == [1]


async def test_events_are_changes_commands_and_batches_with_a_problem(history: HistoryRepository) -> None:
    """Newest first, from the raw metrics and the processing log; batches that were stored are no events."""
    change = {"labels": {"component": "cache", "state": "down"}, "before": "ok", "detail": "no answer"}
    await store(history, {"type": "health_change", "data": change}, calls(datetime.now(UTC), [1.0]))
    assert (await history.store(b"{}", new_id(), "one daemon")).status == "refused"
    assert (await history.store(b'[{"type": "a"}, 1]', new_id(), "another")).rejected == 1
    await history.insert("command_run", {"labels": {"command": "prune", "outcome": "ok"}, "value": 1.5})
    command, part, refused, first = await history.events()
    assert (command.type, command.data["value"]) == ("command_run", 1.5)
    assert (part.type, part.data["status"], part.data["source"]) == ("metrics_batch", "stored", "another")
    assert (refused.data["status"], refused.data["source"]) == ("refused", "one daemon")
    assert "must be a JSON array" in refused.data["error"]
    assert (first.type, dict(first.data)) == ("health_change", change)
    assert len(await history.events(limit=2)) == 2
    since = datetime.now(UTC).replace(minute=0, second=0, microsecond=0)
    asked = HistoryQuery("command_run", since, since + timedelta(hours=1), 3600, ("command",))
    assert [(dict(point.labels), point.sum) for point in await history.read(asked)] == [({"command": "prune"}, 1.5)]


@pytest.mark.direct
async def test_a_history_is_one_statement(postgres_url: str) -> None:
    """For each step."""
    counters = Counters()
    async with opened(postgres_url, recorder=counters) as database:
        history = HistoryRepository(database)
        await history.read(query(60))
        await history.read(query(3600, "tool"))
    assert {name: int(n) for name, n in counters.counts.items() if name[0] == "db_statements_total"} == {
        ("db_statements_total", "metrics_history"): 2
    }


@pytest.mark.parametrize(
    ("field", "change"),
    [
        ("metric", {"metric": ""}),
        ("metric", {"metric": "x" * 201}),
        ("since", {"since": datetime(2026, 1, 1)}),
        ("until", {"until": HOUR}),
        ("step_s", {"step_s": 0}),
        ("step_s", {"step_s": 60, "until": HOUR + timedelta(days=9)}),
    ],
)
def test_a_query_names_the_field_that_is_wrong(field: str, change: dict[str, Any]) -> None:
    """Before anything is sent."""
    given = {"metric": "a", "since": HOUR, "until": HOUR + timedelta(hours=1), "step_s": 60, **change}
    with pytest.raises(InvalidArgument) as refused:
        HistoryQuery(**given).validate()
    assert refused.value.field == field
