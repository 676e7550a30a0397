"""The adapter of Google's ADK beside `DatabaseSessionService`, counted on the wire."""

from __future__ import annotations

import pytest

pytest.importorskip("google.adk", reason="Google's ADK is not installed; `make test-adapters` runs this")

from tests.adapters.benches import IS_NEWEST, assert_complete, run_quick


@pytest.mark.skipif(not IS_NEWEST, reason="the newest release is measured")
def test_a_session_and_its_states_are_loaded_from_the_cache_and_an_event_is_one_statement() -> None:
    """Statements, round trips to the database, commands, round trips to Redis; a turn is two events."""
    seen = run_quick("adk")
    assert_complete(seen, "adk")
    ours = {"load": [0, 0, 3, 2], "append": [2, 2, 2, 2], "create": [3, 3, 5, 4]}
    costs = seen["costs"]["adk"]
    assert {store: costs[store] for store in ("process", "daemon")} == {"process": ours, "daemon": ours}
    assert {operation: cost[0] >= 6 for operation, cost in costs["own"].items()} == dict.fromkeys(ours, True)
