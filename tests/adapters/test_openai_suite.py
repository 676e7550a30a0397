"""The OpenAI Agents SDK's own tests of sessions, from its source distribution, on EXAI in a daemon."""

from __future__ import annotations

from typing import Final

import pytest

from tests.adapters.suites import run_suite, source_of, version_of

pytest.importorskip("agents", reason="the OpenAI Agents SDK is not installed; `make test-adapters` runs this")

FILES: Final = ("test_session.py", "test_session_limit.py", "test_sqlalchemy_session.py")
OTHER_BACKENDS: Final = {
    "threads and connections of SQLite": (
        "test_sqlite_session_close_closes_worker_thread_connections",
        "test_sqlite_session_reaps_connections_from_exited_worker_threads",
        "test_sqlite_session_closes_retired_connections_before_the_next_allocation",
        "test_sqlite_session_keeps_connections_of_live_worker_threads",
        "test_sqlite_session_closed_rejects_empty_add_items",
        "test_sqlite_session_rollback_failure_evicts_connection",
        "test_sqlite_session_close_retries_quarantined_connection",
    ),
    "locks of SQLite": (
        "test_sqlite_session_file_lock_is_shared_across_instances",
        "test_sqlite_session_failed_add_items_releases_write_lock",
        "test_sqlite_session_failed_clear_session_rolls_back",
        "test_sqlite_session_failed_pop_item_releases_write_lock",
        "test_sqlite_session_post_commit_cancellation_propagates_after_known_outcome",
    ),
    "rows written past the session": (
        "test_sqlite_session_pop_item_skips_corrupt_most_recent",
        "test_sqlite_session_pop_item_returns_none_after_dropping_only_corrupt_rows",
        "test_sqlite_session_get_items_limit_skips_corrupt_newest_rows",
        "test_sqlite_session_get_items_session_settings_limit_skips_corrupt_rows",
        "test_pop_item_skips_corrupt_most_recent",
        "test_get_items_limit_skips_corrupt_newest_rows",
        "test_pop_item_returns_none_after_dropping_only_corrupt_rows",
    ),
    "tables, statements and transactions of SQLAlchemy": (
        "test_sqlalchemy_session_defaults_to_escaped_non_ascii_storage",
        "test_sqlalchemy_session_can_store_non_ascii_without_escaping",
        "test_sqlite_fallback_reserves_writer_before_tail_claim",
        "test_pop_item_supports_unknown_delete_rowcount",
        "test_pop_item_retries_returning_claim_lost_to_concurrent_delete",
        "test_mutation_cancellation_waits_for_transaction_exit",
        "test_add_items_waits_for_transient_sqlite_write_lock",
        "test_add_items_cancelled_waiter_does_not_strand_table_init_lock",
        "test_create_tables_false_does_not_allocate_shared_init_lock",
        "test_get_items_same_timestamp_consistent_order",
        "test_pop_item_same_timestamp_returns_latest",
        "test_get_items_orders_by_id_for_ties",
        "test_engine_property_from_url",
        "test_engine_property_from_external_engine",
        "test_engine_property_is_read_only",
        "test_sqlite_configuration_registry_releases_collected_engines",
        "test_sqlite_configuration_registry_does_not_grow_unbounded",
    ),
}
"""Their tests of what the other backends are made of, by reason."""

LEAST_OF_TODAY: Final = 71


def test_all_their_tests_pass_that_are_not_about_another_backend(address: str) -> None:
    source = source_of("openai-agents")
    found = [path.relative_to(source) for name in FILES for path in (source / "tests").rglob(name)]
    files = sorted(str(path) for path in found if "realtime" not in path.parts)
    assert len(files) == len(FILES)
    without = [name for names in OTHER_BACKENDS.values() for name in names]
    outcome = run_suite(source, files, "exai_openai_sessions", address, without=without)
    assert not outcome.failed, outcome.output[-8_000:]
    if version_of("openai-agents") >= (0, 24):
        assert len(outcome.passed) >= LEAST_OF_TODAY
    assert len(outcome.passed) >= 20
