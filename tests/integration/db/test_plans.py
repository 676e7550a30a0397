"""Statements read only what they return, in a database large enough for realistic plans.

Counted by the server itself, inside one transaction: rows fetched through indexes, and tables read from end to end. A
sort over a conversation, or a plan that filters one, would show as thousands of rows fetched.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta

import pytest

from exai.db.batching.page_reads import MOST_READS
from exai.db.conversations import LIST_BYTES
from exai.db.cursors import FIRST_ASCENDING, FIRST_PAGE
from exai.db.driver.pool import Database, OneTrip, connect
from exai.db.driver.statements import load_statements
from exai.db.filters import ALL, ListFilter, part_of
from exai.db.search import SearchQuery, SearchRepository
from exai.encryption.codec import PLAIN
from exai.models import LOCAL_OWNER, PAGE_BYTES
from tests.support.backend import Preparation
from tests.support.database import new_id
from tests.support.migrations import run, session

MESSAGES = 5_000

FILL = f"""
insert into conversations (continuation_id, next_seq) select 'c' || i, 21 from generate_series(1, 2000) i;
insert into conversations (continuation_id, next_seq) values ('long', {MESSAGES + 1});
insert into messages (conversation_id, seq, turn_id, role, content)
select c.id, s, c.id, 'user', repeat('x', 100)
  from conversations c cross join lateral generate_series(1, c.next_seq - 1) s;
insert into turns (conversation_id, owner, request_key, request_hash, tool, state, claimed_by, lease_until, revision)
select id, 'local', continuation_id, 'h', 'chat', 'pending', id, now(), 1 from conversations;
insert into exai.checkpoint_threads (thread_id, revision) select 't' || i, 1 from generate_series(1, 2000) i;
"""


SKEWED = f"""
insert into conversations (continuation_id, next_seq) select 'c' || i, 2 from generate_series(1, 3000) i;
insert into conversations (continuation_id, next_seq) values ('long', {MESSAGES + 1});
insert into messages (conversation_id, seq, turn_id, role, content)
select c.id, s, c.id, 'user', case when c.next_seq > 2 and s % 1000 = 0 then 'needle' else 'hay' end
  from conversations c cross join lateral generate_series(1, c.next_seq - 1) s;
insert into turns (conversation_id, owner, request_key, request_hash, tool, state, claimed_by, lease_until, revision,
                   reply_first_seq, reply_last_seq)
select id, 'local', 'key', 'h', 'chat', 'finished', id, now(), 1, 2500, 2500
  from conversations where continuation_id = 'long';
"""


ROWS_READ = "select sum(coalesce(idx_tup_fetch, 0) + seq_tup_read)::bigint from pg_stat_xact_user_tables"

SEARCH = ("local", "needle", *(None,) * 13, 500, 21)


async def fill(url: str) -> None:
    await run(url, FILL, "analyze")


async def fill_skewed(url: str) -> None:
    await run(url, SKEWED, "analyze")


async def fill_needles(url: str) -> None:
    async with session(url) as connection:
        await connection.execute(FILL)
        await connection.execute("update messages set content = 'needle ' || seq where seq % 10 = 0")
        await index(connection)


FILLINGS = {"skewed": fill_skewed, "needles": fill_needles, "sql": fill}
"""By the fixture; the last one is a part of the others."""


@pytest.fixture
def filling(request: pytest.FixtureRequest) -> Preparation | None:
    """By the connection that the test uses."""
    return next((FILLINGS[name] for name in FILLINGS if name in request.fixturenames), None)


@pytest.fixture
async def sql(database: Database) -> AsyncIterator[OneTrip]:
    """One long conversation among many that have 20 messages."""
    connection = await connect(database.address, timeout_s=30)
    yield connection
    await connection.close()


@pytest.fixture
async def skewed(sql: OneTrip) -> OneTrip:
    """One long conversation among many that have one message."""
    return sql


@pytest.fixture
async def needles(sql: OneTrip) -> OneTrip:
    """As `sql`, with a word in each tenth message and all of them indexed."""
    return sql


async def touched(sql: OneTrip, name: str, *args: object) -> dict[str, tuple[int, int]]:
    """Per table: scans from end to end, and rows fetched through indexes."""
    async with sql.transaction():
        before = await counts_of(sql)
        await sql.fetch(load_statements()[name].text, *args)
        after = await counts_of(sql)
    counts = {table: (scans - before[table][0], rows - before[table][1]) for table, (scans, rows) in after.items()}
    return {table: count for table, count in counts.items() if count != (0, 0)}


async def counts_of(sql: OneTrip) -> dict[str, tuple[int, int]]:
    rows = await sql.fetch(
        "select relname, seq_scan, coalesce(idx_tup_fetch, 0) as fetched from pg_stat_xact_user_tables"
        # Read from end to end while it is empty, as is right.
        " where relname not in ('removed_conversations', 'removed_threads', 'purged_turns')"
    )
    return {row["relname"]: (row["seq_scan"], row["fetched"]) for row in rows}


async def vacuum(sql: OneTrip, *tables: str) -> None:
    """Mark the rows as visible to all transactions, so that only executing a statement fetches rows of these tables.

    To estimate a join, the planner looks at the ends of indexes, and fetches the rows there that are not so marked.
    Which joins it estimates depends on the server's version: before 18 it plans functions in SQL without their
    arguments, also the branches that these arguments exclude.
    """
    for table in tables:
        await sql.execute(f"vacuum (analyze) {table}")


@pytest.mark.parametrize("before", [None, 2500])
async def test_a_page_reads_its_own_messages_only(sql: OneTrip, before: int | None) -> None:
    """By the primary key, from the newest backwards; and its pending turn."""
    for _ in range(8):  # more than five, after which the server may settle on a plan for all parameters
        counts = await touched(sql, "read_page", "local", "long", before, 0, 50, PAGE_BYTES, 0)
        assert counts == {"conversations": (0, 1), "messages": (0, 50), "turns": (0, 1)}


async def test_a_group_of_pages_reads_the_messages_of_each(sql: OneTrip) -> None:
    """Each found by its key, as if it were read alone."""
    names = ["long", *(f"c{number}" for number in range(1, MOST_READS - 1)), "nowhere"]
    for _ in range(8):
        counts = await touched(sql, "read_pages", ["local"] * len(names), names, 50, PAGE_BYTES)
        messages = 50 + 20 * (MOST_READS - 2)
        assert counts == {
            "conversations": (0, MOST_READS - 1),
            "messages": (0, messages),
            "turns": (0, MOST_READS - 1),
        }


async def test_a_turn_reads_the_budgets_worth_of_history(sql: OneTrip) -> None:
    """The walk ends where the budget does; the cursor may be a batch ahead of it."""
    for _ in range(8):
        counts = await touched(sql, "begin_turn", *turn(budget=1160))
        assert all(scans == 0 for scans, _ in counts.values()), counts
        assert counts["messages"][1] <= 10 + 50 + 2, counts


async def test_a_turn_that_knows_all_reads_nothing(sql: OneTrip) -> None:
    """The usual case: the cache had the conversation."""
    counts = await touched(sql, "begin_turn", *turn(budget=10_000, known=(0, 1, MESSAGES, 9000)))
    assert all(scans == 0 for scans, _ in counts.values()), counts
    assert counts.get("messages", (0, 0))[1] <= 2, counts


async def test_a_report_of_costs_reads_the_turns_it_sums(sql: OneTrip) -> None:
    """Not those of other days, nor of other conversations."""
    await sql.execute(
        "update turns set model = 'm', started_at = case when request_key = 'long' then now() - interval '9 days'"
        " else now() end where request_key = 'long' or request_key like 'c1%'"
    )
    await vacuum(sql, "turns", "conversations")
    ago = datetime.now(UTC) - timedelta(days=8)
    for by in ("model", "tool", "day"):
        counts = await touched(sql, "usage", "local", by, None, ago, None, 100, None, None)
        assert counts == {"turns": (0, 1)}, by
    counts = await touched(sql, "usage", "local", "conversation", None, None, "long", 100, None, None)
    assert all(scans == 0 for scans, _ in counts.values()), counts
    assert counts["turns"][1] <= 3


async def test_a_search_for_similar_questions_reads_the_owners_rows_with_the_same_rest(sql: OneTrip) -> None:
    """Rows of other owners are not read; of the messages only those that are returned."""
    await sql.execute(
        "insert into exai.answers"
        " select case when i % 10 = 0 then 'local' else 'other' || i % 50 end, 'r' || i % 3, 'e', i::text,"
        " '{0.6,0.8}', c.id, 1, 2, now() from generate_series(1, 9000) i,"
        " (select id from conversations where continuation_id = 'long') c"
    )
    await vacuum(sql, "exai.answers", "turns", "messages")
    for _ in range(8):
        counts = await touched(sql, "similar_answers", "local", "e", "r1", [0.6, 0.8], 0.9, 3_600, 500, 5)
        assert all(scans == 0 for scans, _ in counts.values()), counts
        assert counts["answers"][1] == 300
        assert counts["messages"][1] <= 10


async def test_an_append_reads_no_messages(sql: OneTrip) -> None:
    """Numbers come from the conversation's row."""
    args = ("local", "long", new_id(), new_id(), new_id(), "h", "append", None, ["user"], ["x"], ["message"], [None])
    counts = await touched(sql, "append", *args, [], None, False, [None], [None], None)
    assert all(scans == 0 for scans, _ in counts.values()), counts
    assert counts.get("messages", (0, 0))[1] <= 1


async def test_a_group_of_appends_finds_each_by_its_key(sql: OneTrip) -> None:
    """For any number of them, also if the plan was made before the tables had grown."""
    for _ in range(8):
        names = ["long", *(f"c{number}" for number in range(1, 16))]
        ids, number = [new_id() for _ in names], len(names)
        per_append = (["local"] * number, names, ids, ids, ids, ["h"] * number, ["t"] * number, [None] * number)
        per_message = (list(range(1, number + 1)), [0] * number, ["user"] * number, ["x"] * number, ["m"] * number)
        counts = await touched(
            sql, "append_group", *per_append, [None] * number, [1] * number, *per_message, [None] * number, [], []
        )
        assert all(scans == 0 for scans, _ in counts.values()), counts
        assert counts["conversations"][1] <= 5 * number, counts
        assert counts.get("messages", (0, 0))[1] <= number, counts
        assert counts.get("turns", (0, 0))[1] <= number, counts


async def test_a_lookup_of_a_turn_reads_one_row_each(sql: OneTrip) -> None:
    """By owner and key."""
    assert await touched(sql, "turn_state", "local", "c77") == {"turns": (0, 1)}


async def test_a_turn_by_its_id_is_found_through_indexes(sql: OneTrip) -> None:
    """Waiting clients poll it; the planner itself reads the ends of an index or two."""
    turn_id = str(await sql.fetchval("select id from turns where request_key = 'long'"))
    await sql.execute(f"update turns set state = 'finished', reply_last_seq = 4000 where id = '{turn_id}'")
    for name, more in (("read_turn", ()), ("cancel_turn", ("{}",))):
        counts = await touched(sql, name, "local", turn_id, *more)
        assert all(scans == 0 and rows <= 8 for scans, rows in counts.values()), counts


async def test_a_list_reads_one_page(sql: OneTrip) -> None:
    """The index has the order of the list; no messages are read."""
    args = ("local", 20, datetime(9999, 1, 1, tzinfo=UTC), "ffffffff-ffff-ffff-ffff-ffffffffffff")
    for has_messages in (False, True):
        given = (*args, *ALL.arguments(PLAIN), LIST_BYTES, has_messages)
        assert await touched(sql, "list_conversations", *given) == {"conversations": (0, 20)}


MANY = """
insert into conversations (owner, continuation_id, created_at, updated_at)
select case when i % 100 = 0 then 'other' else 'local' end, 'app/' || i % 1000 || '/' || i,
       timestamptz '2024-01-01' + make_interval(secs => (i * 7919) % 100000),
       timestamptz '2024-01-01' + make_interval(secs => i)
  from generate_series(1, 100000) i;
"""
ORDERS = [(order, ascending) for order in ("updated", "created") for ascending in (False, True)]


async def test_lists_in_any_order_and_by_prefix_read_few_rows(database: Database) -> None:
    """Of 100,000 conversations: a page of them all, or those whose names begin alike."""
    connection = await connect(database.address, timeout_s=60)
    try:
        await connection.execute(MANY)
        # By the default of 100 the planner knows how many names begin alike to 1 %, and these are 0.1 %.
        await connection.execute("alter table conversations alter column continuation_id set statistics 1000")
        await vacuum(connection, "conversations")
        text = load_statements()["list_conversations_in_order"].text
        for order, ascending in ORDERS:
            first = FIRST_ASCENDING if ascending else FIRST_PAGE
            for prefix, found, most in (("", 21, 21), ("app/7/", 21, 101), ("app/77/99", 1, 1), ("x", 0, 1)):
                only = ListFilter(prefix=prefix)
                args = ("local", 21, first.updated_at, first.id, *only.arguments(PLAIN), LIST_BYTES)
                args = (*args, *only.names, order, ascending)
                assert len(await connection.fetch(text, *args)) == found, (order, ascending, prefix)
                counts = await touched(connection, "list_conversations_in_order", *args)
                assert all(scans == 0 for scans, _ in counts.values()), (order, ascending, prefix, counts)
                assert counts.get("conversations", (0, 0))[1] <= 2 * most, (order, ascending, prefix, counts)
    finally:
        await connection.close()


ASKED = """
insert into conversations (continuation_id, next_seq) select 'c' || i, 1 from generate_series(1, 24000) i;
insert into turns (conversation_id, owner, request_key, request_hash, tool, model, state, claimed_by, lease_until,
                   revision)
select c.id, 'local', c.continuation_id || '/' || n, 'h',
       case when n = 2 and c.continuation_id like 'c1234%' then 'secaudit' else 'chat' end,
       case when n = 2 and c.continuation_id like 'c2321%' then 'rare' else 'usual' end, 'finished', c.id, now(), 1
  from conversations c cross join generate_series(1, 2) n;
"""


NARROWED = (
    ("secaudit", None, 11, 11),
    (None, "rare", 11, 11),
    ("chat", "rare", 11, 11),
    ("unknown", None, 0, 0),
    (None, "unknown", 0, 0),
    ("secaudit", "rare", 0, 11),
    ("chat", "usual", 21, 21),
    ("chat", None, 21, 21),
)
"""Tool, model, conversations on the page, and turns that fit."""


async def test_a_list_of_one_tool_or_model_reads_its_turns_only(database: Database) -> None:
    """Of 24,000 conversations: a rare one is found by its index, a common one among the newest conversations."""
    connection = await connect(database.address, timeout_s=60)
    try:
        await connection.execute(ASKED)
        await vacuum(connection, "conversations", "turns")
        place = ("local", 21, datetime(9999, 1, 1, tzinfo=UTC), "ffffffff-ffff-ffff-ffff-ffffffffffff")
        name = "list_conversations_by_turns"
        for tool, model, found, read in NARROWED:
            args = (*place, *ListFilter(tool=tool, model=model).arguments(PLAIN), LIST_BYTES, False)
            assert len(await connection.fetch(load_statements()[name].text, *args)) == found
            counts = await touched(connection, name, *args)
            assert all(scans == 0 for scans, _ in counts.values()), (tool, model, counts)
            assert counts.get("turns", (0, 0))[1] <= 3 * read, (tool, model, counts)
            assert counts.get("conversations", (0, 0))[1] <= 3 * read, (tool, model, counts)
    finally:
        await connection.close()


async def test_files_are_looked_for_among_the_owners(sql: OneTrip) -> None:
    """By the owner's index, for any number of files of other owners."""
    await sql.execute(
        "insert into files (owner, sha256, name, size_bytes)"
        " select case when i % 100 = 0 then 'local' else 'other' end, lpad(i::text, 64, '0'), i || '.md', 1"
        " from generate_series(1, 5000) i"
    )
    await sql.execute("analyze files")
    args = ("local", 51, datetime(9999, 1, 1, tzinfo=UTC), "ffffffff-ffff-ffff-ffff-ffffffffffff")
    for part in ("", "100.md", "no such file"):
        for _ in range(8):
            scans, rows = (await touched(sql, "list_files", *args, *part_of(part)))["files"]
            assert (scans, rows <= 51) == (0, True), (part, rows)


async def test_changes_read_what_has_changed(sql: OneTrip) -> None:
    """Twice a second, for ever: so it may cost nothing when nothing has changed."""
    xmin = (await sql.fetch(load_statements()["changes"].text, None, 10))[0]["xmin"]
    assert await touched(sql, "changes", xmin, 5001) == {}
    await sql.execute("update conversations set title = 'x' where continuation_id in ('c1', 'c2')")
    await sql.execute(
        "update exai.checkpoint_threads set revision = 2, changed_xid = pg_current_xact_id()"
        " where thread_id in ('t1', 't2')"
    )
    counts = await touched(sql, "changes", xmin, 5001)
    for table in ("conversations", "checkpoint_threads"):
        assert counts[table][0] == 0
        assert counts[table][1] <= 4, counts


async def test_a_search_reads_what_it_ranks_and_shows(needles: OneTrip) -> None:
    """For words in any number of messages the newest are ranked by their index rows, and one page is read."""
    for _ in range(8):
        counts = await touched(needles, "search_messages", *SEARCH)
        assert all(scans == 0 for table, (scans, _) in counts.items() if table != "unindexed_messages"), counts
        assert counts["messages"][1] <= 21, counts
        assert counts["message_words"][1] <= 5_000 + 500, counts
        assert counts["conversations"][1] <= 2 * 500 + 21, counts


async def test_a_search_states_the_rows_that_it_has_read(needles: OneTrip, database: Database) -> None:
    """The metric `search_scan_rows` is the server's own count, also of rows that no hit is made of."""
    searches = (
        SearchQuery(LOCAL_OWNER, "needle"),
        SearchQuery(LOCAL_OWNER, "needle", tool="a tool that none was"),
        SearchQuery(LOCAL_OWNER, "absent"),
    )
    for query in searches:
        args = (query.owner, query.text, *(None,) * 4, query.tool, *(None,) * 8, 500, 21)
        async with needles.transaction():
            before = await needles.fetchval(ROWS_READ)
            rows = await needles.fetch(load_statements()["search_messages"].text, *args)
            counted = await needles.fetchval(ROWS_READ) - before
        assert rows[-1]["rows_read"] == counted, query
        assert (await SearchRepository(database).search(query, limit=20)).rows_read == pytest.approx(counted, rel=0.01)


async def test_a_search_by_tags_and_metadata_looks_at_the_owners_matches_only(sql: OneTrip) -> None:
    """The conversation of each match by its key; equal tags of other owners cost nothing."""
    await sql.execute("update messages set content = 'needle ' || seq where seq = 7")
    await sql.execute("update conversations set tags = '{a}', metadata = '{\"p\": 1}'")
    await sql.execute(
        "update conversations set owner = 'other' where continuation_id not in ('c1', 'c2', 'c3', 'long')"
    )
    await sql.execute("update conversations set tags = '{}' where continuation_id = 'c3'")
    await index(sql)
    for labels in ((["a"], '{"p": 1}'), (["a"], None), (None, '{"p": 1}'), (["b"], None)):
        for _ in range(8):
            args = ("local", "needle", *(None,) * 6, *labels, *(None,) * 5, 500, 21)
            counts = await touched(sql, "search_messages", *args)
            assert all(scans == 0 for table, (scans, _) in counts.items() if table != "unindexed_messages"), counts
            assert counts["conversations"][1] <= 3 * 4, counts
            assert counts["message_words"][1] <= 2 * 4, counts
            assert counts.get("messages", (0, 0))[1] <= 4, counts


async def index(sql: OneTrip) -> None:
    """Let nothing wait, and the planner know of it."""
    while (await sql.fetch(load_statements()["index_messages"].text, 10_000, [], [], [], False))[0]["left_over"]:
        pass
    await sql.execute("analyze")


async def test_one_message_of_a_long_conversation_is_one_row_among_short_ones(skewed: OneTrip) -> None:
    """Where most have one message, the planner would look for a message by another index and read all of a long one."""
    turn_id = await skewed.fetchval("select id::text from turns")
    counts = await touched(skewed, "read_turn", "local", turn_id)
    assert counts["messages"] == (0, 1), counts
    counts = await touched(skewed, "search_messages", *SEARCH)
    assert counts["messages"] == (0, MESSAGES + 3000 + 5), "what is not indexed is looked through"
    await index(skewed)
    counts = await touched(skewed, "search_messages", *SEARCH)
    assert counts["messages"] == (0, 5), counts


async def test_similar_questions_of_a_long_conversation_are_two_rows_each_among_short_ones(skewed: OneTrip) -> None:
    """The question and the answer, each by its number."""
    await skewed.execute(
        "insert into exai.answers select 'local', 'r', 'e', i::text, '{0.6,0.8}', c.id, 2 * i - 1, 2 * i, now()"
        " from generate_series(2001, 2300) i, (select id from conversations where continuation_id = 'long') c"
    )
    await vacuum(skewed, "exai.answers", "turns", "messages")
    for _ in range(8):
        counts = await touched(skewed, "similar_answers", "local", "e", "r", [0.6, 0.8], 0.9, 3_600, 500, 5)
        assert counts["messages"] == (0, 2 * 5), counts


async def test_a_batch_that_is_imported_again_reads_the_messages_it_repeats(skewed: OneTrip) -> None:
    """Not those before them, in a conversation of any length."""
    await vacuum(skewed, "turns", "messages")
    number = 10
    contents = ["needle" if seq % 1000 == 0 else "hay" for seq in range(3995, 3995 + number)]
    per_message = (["user"] * number, contents, ["message"] * number, *[[None] * number] * 3)
    keys = [None] * number
    for _ in range(8):
        identity = ("local", "long", new_id(), new_id(), new_id(), "h", "{}")
        counts = await touched(skewed, "import_batch", *identity, 3995, *per_message, None, keys, True)
        assert counts["messages"] == (0, number), counts


def turn(budget: int, known: tuple[int, int, int, int] | tuple[None, ...] = (None,) * 4) -> tuple[object, ...]:
    identity = ("local", "long", new_id(), new_id(), new_id(), "h", "chat", None, 60.0, "kimi", "model")
    return (*identity, ["user"], ["q"], ["message"], [None], [], None, budget, *known, False, None)
