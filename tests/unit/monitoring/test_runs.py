"""The record of a command: how it ended, also if the record itself cannot be written."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
from structlog.testing import capture_logs

from exai.errors import DatabaseUnavailable, NotFound
from exai.monitoring.runs import recorded_run


class Store:
    """Keeps what is recorded, or is away."""

    def __init__(self) -> None:
        self.metrics: list[tuple[str, Mapping[str, Any]]] = []
        self.is_away = False

    async def insert(self, metric: str, data: Mapping[str, Any]) -> None:
        if self.is_away:
            raise DatabaseUnavailable("database", "it does not answer")
        self.metrics.append((metric, data))


async def test_a_run_is_recorded_with_its_figures() -> None:
    store = Store()
    async with recorded_run(store.insert, "prune") as figures:
        figures["files"] = 3
    ((metric, data),) = store.metrics
    assert (metric, data["labels"], data["figures"]) == (
        "command_run",
        {"command": "prune", "outcome": "ok"},
        {"files": 3},
    )
    assert data["value"] >= 0


async def test_a_failed_run_is_recorded_with_its_error_which_is_raised() -> None:
    store = Store()
    for error, outcome in ((NotFound("file", "x", "Store it"), "not_found"), (RuntimeError("a defect"), "failed")):
        with pytest.raises(type(error)):
            async with recorded_run(store.insert, "import"):
                raise error
        assert store.metrics[-1][1]["labels"]["outcome"] == outcome


async def test_a_record_that_cannot_be_stored_fails_nothing() -> None:
    """It is logged."""
    store = Store()
    store.is_away = True
    with capture_logs() as lines:
        async with recorded_run(store.insert, "prune"):
            pass
    assert [line["event"] for line in lines] == ["command_not_recorded"]
