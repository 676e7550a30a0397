"""Statements for checkpoints read only what they return, of a long thread among others."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from exai.db.driver.pool import Database, OneTrip, connect
from exai.models import LOCAL_OWNER
from tests.integration.db.test_plans import touched
from tests.support.backend import Preparation
from tests.support.migrations import run

CHECKPOINTS = 3_000
ROWS = 10 * CHECKPOINTS
# The planner takes a thread for one of the average length: where that is below a page, sorting all costs it the same.
FILL = f"""
insert into exai.checkpoint_threads (thread_id, revision) values ('long', 1);
insert into exai.checkpoint_threads (thread_id, revision) select 't' || i, 1 from generate_series(1, 500) i;
insert into exai.checkpoints (thread, namespace, checkpoint_id, owner, parent_id, run_id, body_type, body,
                              metadata_type, metadata, facts, versions, delta_channels)
select t.id, '', to_char(i, 'FM000000'), 'local', to_char(i - 1, 'FM000000'), 'run ' || i % 100, 'x', '',
       'x', '', '{{}}', jsonb_build_object('a', i::text, 'b', (i / 10)::text, 'delta', i::text), '{{delta}}'
  from exai.checkpoint_threads t
 cross join lateral generate_series(1, case t.thread_id when 'long' then {CHECKPOINTS} else 30 end) i;
insert into exai.checkpoint_blobs (thread, namespace, channel, version, value_type, value)
select distinct c.thread, '', v.key, v.value, 'x', ''::bytea
  from exai.checkpoints c cross join lateral jsonb_each_text(c.versions) v
 where v.key <> 'delta' or v.value::integer % 10 = 0;
insert into exai.checkpoint_writes (thread, namespace, checkpoint_id, task_id, place, channel, value_type, value)
select c.thread, '', c.checkpoint_id, 'task', i, 'delta', 'x', '' from exai.checkpoints c, generate_series(0, 2) i;
"""


async def fill(url: str) -> None:
    await run(url, FILL, "analyze")


@pytest.fixture
def filling() -> Preparation:
    return fill


@pytest.fixture
async def sql(database: Database) -> AsyncIterator[OneTrip]:
    connection = await connect(database.address, timeout_s=30)
    yield connection
    await connection.close()


@pytest.mark.parametrize("checkpoint_id", [None, "000100"])
async def test_a_checkpoint_is_read_by_keys(sql: OneTrip, checkpoint_id: str | None) -> None:
    """Its thread, itself, its values and its writes."""
    counts = await touched(sql, "read_checkpoint", LOCAL_OWNER, "long", "", checkpoint_id)
    assert {table: scans for table, (scans, _) in counts.items() if scans} == {}
    assert sum(rows for _, rows in counts.values()) <= 12


@pytest.mark.parametrize("thread_id", ["long", None])
@pytest.mark.parametrize("after", [None, "000200"])
async def test_a_page_of_a_list_is_read_by_an_index(sql: OneTrip, thread_id: str | None, after: str | None) -> None:
    """From any place on; the rows of a page, their values and their writes."""
    cursor = (None, None, None) if after is None else (after, "ffffffff-ffff-ffff-ffff-ffffffffffff", "")
    given = (LOCAL_OWNER, thread_id, None, None, None, None, *cursor, 10, 1_000_000)
    counts = await touched(sql, "list_checkpoints", *given)
    assert counts["checkpoints"][1] <= 40
    assert counts["checkpoint_blobs"][1] <= 100
    assert counts["checkpoint_writes"][1] <= 40
    assert {table: scans for table, (scans, _) in counts.items() if scans and table != "checkpoint_threads"} == {}


async def test_ancestors_are_read_up_to_the_nearest_value(sql: OneTrip) -> None:
    """Of which each tenth has one."""
    counts = await touched(sql, "read_ancestry", LOCAL_OWNER, "long", "", "002009", ["delta"])
    assert {table: scans for table, (scans, _) in counts.items() if scans} == {}
    assert sum(rows for _, rows in counts.values()) <= 80


async def test_pruning_a_long_thread_looks_at_each_row_some_times(sql: OneTrip) -> None:
    """By runs, and to the newest: comparing each value with each checkpoint would look at millions."""
    runs = [f"run {number}" for number in range(50)]
    for given in ([], False, runs), (["long"], True, None):
        counts = await touched(sql, "prune_threads", LOCAL_OWNER, *given)
        assert sum(rows for _, rows in counts.values()) <= 10 * ROWS
        assert sum(scans for scans, _ in counts.values()) <= 10
