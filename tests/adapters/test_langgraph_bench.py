"""The adapter of LangGraph beside `AsyncPostgresSaver`, counted on the wire."""

from __future__ import annotations

import pytest

pytest.importorskip(
    "langgraph.checkpoint.postgres", reason="LangGraph is not installed; `make test-adapters` runs this"
)

from tests.adapters.benches import IS_NEWEST, assert_complete, run_quick


@pytest.mark.skipif(not IS_NEWEST, reason="the newest release is measured")
def test_a_thread_is_loaded_from_the_cache_and_a_change_is_one_statement() -> None:
    """Statements, round trips to the database, commands, round trips to Redis; a turn is two changes."""
    seen = run_quick("langgraph")
    assert_complete(seen, "langgraph")
    ours = {"load": [0, 0, 1, 1], "append": [2, 2, 2, 2], "create": [1, 1, 1, 1]}
    costs = seen["costs"]["langgraph"]
    assert {store: costs[store] for store in ("process", "daemon")} == {"process": ours, "daemon": ours}
    assert {operation: cost[0] >= 2 for operation, cost in costs["own"].items()} == dict.fromkeys(ours, True)
