"""The adapter of the OpenAI Agents SDK beside `SQLAlchemySession`, counted on the wire."""

from __future__ import annotations

import pytest

pytest.importorskip("agents", reason="the OpenAI Agents SDK is not installed; `make test-adapters` runs this")

from tests.adapters.benches import IS_NEWEST, assert_complete, run_quick


@pytest.mark.skipif(not IS_NEWEST, reason="the newest release is measured")
def test_a_session_is_loaded_from_the_cache_and_a_turn_is_one_statement() -> None:
    """Statements, round trips to the database, commands, round trips to Redis."""
    seen = run_quick("openai-agents")
    assert_complete(seen, "openai-agents")
    ours = {"load": [0, 0, 1, 1], "append": [1, 1, 1, 1], "create": [1, 1, 1, 1]}
    costs = seen["costs"]["openai-agents"]
    assert {store: costs[store] for store in ("process", "daemon")} == {"process": ours, "daemon": ours}
    assert {operation: cost[0] >= 3 for operation, cost in costs["own"].items()} == dict.fromkeys(ours, True)
