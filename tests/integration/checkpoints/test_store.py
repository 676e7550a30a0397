"""The store of checkpoints on real servers: what is stored is read, by whom, and at what cost."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from exai.app import App, open_app
from exai.checkpoints import service
from exai.db.checkpoints.records import EMPTY, ChannelValue
from exai.errors import Conflict, InvalidArgument
from exai.models import LOCAL_OWNER, Owner
from exai.settings.store import StoreSettings
from tests.integration.conversations.conftest import Rig, open_rig
from tests.support.checkpoints import checkpoint, store_checkpoint, task_writes
from tests.support.migrations import run, value

OTHER = Owner("other")
STORE = {"plain": None, "encrypted": StoreSettings(keys=SecretStr("k1:" + "0" * 64))}


@pytest.fixture(params=STORE)
async def rig(request: pytest.FixtureRequest, postgres_url: str, redis_url: str, tmp_path: Path) -> AsyncIterator[Rig]:
    async with open_rig(postgres_url, redis_url, tmp_path, store=STORE[request.param]) as opened:
        yield opened


async def newest(app: App, thread_id: str = "thread", **more: Any) -> str | None:
    found = await app.checkpoints.get(LOCAL_OWNER, thread_id, **more)
    return None if found is None else found.checkpoint_id


async def listed(app: App, owner: Owner = LOCAL_OWNER, **only: Any) -> list[tuple[str, str, str]]:
    """Thread, namespace and id of all checkpoints that a list has, by its pages."""
    found, cursor = [], None
    while True:
        page = await app.checkpoints.list(owner, cursor=cursor, **only)
        found += [(each.thread_id, each.namespace, each.checkpoint_id) for each in page.checkpoints]
        if (cursor := page.next_cursor) is None:
            return found


async def test_a_checkpoint_is_read_as_it_was_stored(rig: Rig) -> None:
    """With U+0000 and any bytes; values of later versions, and an earlier checkpoint with its own."""
    store = rig.app.checkpoints
    data = bytes(range(256)) * 10
    first = checkpoint("1", "\0 one", facts={"source": "input", "nested": {"list": [1, "a", None]}})
    first = replace(first, body=data, metadata=data, run_id="run", parent_id="0")
    await store.put(LOCAL_OWNER, first)
    second = checkpoint("2", "two", version="2", parent_id="1")
    other = ChannelValue("other", "1", EMPTY, b"")
    second = replace(second, versions={"messages": "2", "other": "1"}, values=(*second.values, other))
    await store.put(LOCAL_OWNER, second)
    assert await store.get(LOCAL_OWNER, "thread", checkpoint_id="1") == first
    found = await store.get(LOCAL_OWNER, "thread")
    assert found is not None
    assert replace(found, values=()) == replace(second, values=())
    assert {each.channel: each for each in found.values} == {each.channel: each for each in second.values}
    assert await store.get(LOCAL_OWNER, "thread", checkpoint_id="3") is None
    assert await store.get(LOCAL_OWNER, "unknown") is None
    assert await store.get(LOCAL_OWNER, "thread", namespace="child") is None


async def test_a_version_is_stored_once(rig: Rig, postgres_url: str) -> None:
    """Later checkpoints name it; a value that is given again is the first one."""
    store = rig.app.checkpoints
    for number in range(1, 4):
        await store.put(LOCAL_OWNER, checkpoint(str(number), f"text {number}"))
    assert await value(postgres_url, "select count(*) from exai.checkpoint_blobs") == 1
    for checkpoint_id in (None, "2", "3"):
        found = await store.get(LOCAL_OWNER, "thread", checkpoint_id=checkpoint_id)
        assert found is not None
        assert [each.data for each in found.values] == [b"text 1"]


async def test_writes_stay_with_their_checkpoint(rig: Rig) -> None:
    """In the order of a step; stored before the checkpoint or after it; once, or replaced."""
    store = rig.app.checkpoints
    await store.put_writes(LOCAL_OWNER, "thread", "1", task_writes("early", "b", "a", task_id="t2", task_path="2"))
    assert await newest(rig.app) is None
    await store.put(LOCAL_OWNER, checkpoint("1"))
    await store.put_writes(LOCAL_OWNER, "thread", "1", task_writes("late", "c", task_id="t9", task_path="1"))
    await store.put_writes(LOCAL_OWNER, "thread", "1", task_writes("again", "c", task_id="t9", task_path="1"))
    for checkpoint_id in (None, "1"):
        found = await store.get(LOCAL_OWNER, "thread", checkpoint_id=checkpoint_id)
        assert found is not None
        assert [(each.channel, each.data) for each in found.writes] == [
            ("c", b"late"),
            ("b", b"early"),
            ("a", b"early"),
        ]
    await store.put_writes(
        LOCAL_OWNER, "thread", "1", task_writes("new", "d", task_id="t9", task_path="1"), replaces=True
    )
    found = await store.get(LOCAL_OWNER, "thread")
    assert found is not None
    assert (found.writes[0].channel, found.writes[0].data) == ("d", b"new")
    await store.put(LOCAL_OWNER, checkpoint("2", version="2"))
    found = await store.get(LOCAL_OWNER, "thread")
    assert found is not None
    assert found.writes == ()


async def test_owners_are_apart(rig: Rig) -> None:
    """Each method with the thread of another owner."""
    store = rig.app.checkpoints
    await store.put(LOCAL_OWNER, checkpoint("1", run_id="run"))
    assert await store.get(OTHER, "thread") is None
    assert await listed(rig.app, OTHER) == []
    assert [each.writes for each in await store.ancestry(OTHER, "thread", "1", ["messages"])] == [()]
    assert await store.prune(OTHER, ["thread"]) == await store.prune(OTHER, run_ids=["run"]) == 0
    assert await store.copy(OTHER, "thread", "copy") is None
    await store.put(OTHER, checkpoint("2", "theirs"))
    assert await newest(rig.app) == "1"
    assert await store.prune(OTHER, ["thread"]) == 1
    assert await newest(rig.app) == "1"


@pytest.mark.direct
async def test_round_trips(rig: Rig) -> None:
    """One statement each; the newest checkpoint costs none while it is cached, also after further changes."""
    store = rig.app.checkpoints
    await rig.app.chat.cancel(LOCAL_OWNER, "00000000-0000-0000-0000-000000000000")
    await store.put(LOCAL_OWNER, checkpoint("1"))
    rig.reset()
    await store.put(LOCAL_OWNER, checkpoint("2", version="2"))
    assert rig.cost() == (1, 1)
    await store.get(LOCAL_OWNER, "thread")
    await rig.app.cache.wait_settled()
    assert rig.cost() == (2, 3)
    rig.reset()
    assert await newest(rig.app) == "2"
    assert rig.cost() == (0, 1)
    await store.put_writes(LOCAL_OWNER, "thread", "2", task_writes("x", "messages"))
    await store.put(LOCAL_OWNER, checkpoint("3", version="3"))
    await store.put(LOCAL_OWNER, checkpoint("4", version="4", namespace="child"))
    assert rig.cost() == (3, 4)
    assert await newest(rig.app) == "3"
    assert rig.cost() == (3, 5)
    await store.get(LOCAL_OWNER, "thread", checkpoint_id="2")
    await store.list(LOCAL_OWNER, thread_id="thread")
    await store.ancestry(LOCAL_OWNER, "thread", "3", ["messages"])
    await store.copy(LOCAL_OWNER, "thread", "copy")
    await store.prune(LOCAL_OWNER, ["thread"], keeps_newest=True)
    await store.prune(LOCAL_OWNER, ["thread"])
    assert rig.database.round_trips == 9


async def test_many_changes_are_read_from_the_cache_and_from_the_database_alike(rig: Rig) -> None:
    """More than an entry holds: it is filled again."""
    store = rig.app.checkpoints
    await store.put(LOCAL_OWNER, checkpoint("000"))
    for number in range(1, 70):
        name = f"{number:03}"
        await store.put(LOCAL_OWNER, checkpoint(name, f"text {name}", version=name))
        await store.put_writes(LOCAL_OWNER, "thread", name, task_writes(name, "messages"))
        if number % 3 == 0:
            cached = await store.get(LOCAL_OWNER, "thread")
            assert cached == await store.get(LOCAL_OWNER, "thread", checkpoint_id=name)
            await rig.app.cache.wait_settled()


async def test_a_fork_from_an_earlier_checkpoint_has_its_values(rig: Rig) -> None:
    """Their versions are stored, but not in the entry."""
    store = rig.app.checkpoints
    await store.put(LOCAL_OWNER, checkpoint("1", "one"))
    await store.put(LOCAL_OWNER, checkpoint("2", "two", version="2"))
    assert await newest(rig.app) == "2"
    await rig.app.cache.wait_settled()
    fork = replace(checkpoint("3", parent_id="1"), values=())
    await store.put(LOCAL_OWNER, fork)
    found = await store.get(LOCAL_OWNER, "thread")
    assert found is not None
    assert (found.checkpoint_id, [each.data for each in found.values]) == ("3", [b"one"])


async def test_concurrent_puts_and_reads(rig: Rig) -> None:
    """Of one thread: each is stored, and a read shows every acknowledged one."""
    store = rig.app.checkpoints
    acknowledged = [""]

    async def write(number: int) -> None:
        name = f"{number:03}"
        await store.put(LOCAL_OWNER, checkpoint(name, name, version=name))
        acknowledged.append(name)

    async def read() -> None:
        for _ in range(15):
            least = max(acknowledged)
            found = await newest(rig.app) or ""
            assert found >= least

    await asyncio.gather(*(write(number) for number in range(30)), *(read() for _ in range(4)))
    assert await newest(rig.app) == "029"
    assert len(await listed(rig.app, thread_id="thread", limit=7)) == 30


async def test_lists(rig: Rig) -> None:
    """By thread, namespace, id, facts and an earlier id, in pages, newest first."""
    store = rig.app.checkpoints
    for number in range(1, 5):
        await store.put(LOCAL_OWNER, checkpoint(str(number), version=str(number), facts={"step": number, "all": True}))
    await store.put(LOCAL_OWNER, checkpoint("5", namespace="child", facts={"step": 5}))
    await store.put(LOCAL_OWNER, checkpoint("3", thread_id="second", facts={"step": 1, "nested": {"a": [1, 2]}}))
    assert [each[2] for each in await listed(rig.app, thread_id="thread")] == ["5", "4", "3", "2", "1"]
    assert [each[2] for each in await listed(rig.app, thread_id="thread", namespace="", limit=1)] == list("4321")
    assert await listed(rig.app, limit=2) == await listed(rig.app)
    assert len(await listed(rig.app)) == 6
    assert {each[0] for each in await listed(rig.app, facts={"step": 1})} == {"thread", "second"}
    assert len(await listed(rig.app, facts={"all": True, "step": 2}, limit=1)) == 1
    assert len(await listed(rig.app, facts={"nested": {"a": [2]}})) == 1
    assert await listed(rig.app, facts={"step": True}) == []
    assert [each[2] for each in await listed(rig.app, thread_id="thread", before="3")] == ["2", "1"]
    assert [each[2] for each in await listed(rig.app, checkpoint_id="4")] == ["4"]


async def test_a_page_of_large_checkpoints_is_bounded(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """By bytes, with one checkpoint at least."""
    monkeypatch.setattr("exai.db.checkpoints.repository.PAGE_BYTES", 100_000)
    for number in range(1, 6):
        await rig.app.checkpoints.put(LOCAL_OWNER, checkpoint(str(number), "x" * 60_000, version=str(number)))
    page = await rig.app.checkpoints.list(LOCAL_OWNER)
    assert 1 <= len(page.checkpoints) < 5
    assert [each[2] for each in await listed(rig.app)] == list("54321")


async def test_prune_keeps_what_the_newest_needs(rig: Rig, postgres_url: str) -> None:
    """Of each namespace the newest; of a channel made of writes also the ancestors up to its last value."""
    store = rig.app.checkpoints
    for number in range(1, 6):
        await store.put(LOCAL_OWNER, checkpoint(str(number), version=str(number), parent_id=str(number - 1)))
        await store.put_writes(LOCAL_OWNER, "thread", str(number), task_writes("x", "messages"))
    await store.put(LOCAL_OWNER, checkpoint("1", namespace="child"))
    await store.put_writes(LOCAL_OWNER, "thread", "9", task_writes("of a checkpoint that comes later", "messages"))
    assert await store.prune(LOCAL_OWNER, ["thread", "unknown"], keeps_newest=True) == 1
    assert await listed(rig.app) == [("thread", "", "5"), ("thread", "child", "1")]
    found = await store.get(LOCAL_OWNER, "thread")
    assert found is not None
    assert (found.parent_id, len(found.writes), len(found.values)) == (None, 1, 1)
    assert await value(postgres_url, "select count(*) from exai.checkpoint_blobs") == 2
    assert await value(postgres_url, "select count(*) from exai.checkpoint_writes") == 2

    delta: dict[str, Any] = {"thread_id": "delta", "delta_channels": ("messages",)}
    await store.put(LOCAL_OWNER, checkpoint("1", **delta))
    await store.put(LOCAL_OWNER, checkpoint("2", version="2", parent_id="1", **delta))
    for number in (3, 4):
        names: dict[str, Any] = {"version": str(number), "parent_id": str(number - 1), "values": ()}
        await store.put(LOCAL_OWNER, checkpoint(str(number), **names, **delta))
        await store.put_writes(LOCAL_OWNER, "delta", str(number - 1), task_writes(f"to {number}", "messages", "other"))
    [before] = await store.ancestry(LOCAL_OWNER, "delta", "4", ["messages"])
    assert [each.data for each in before.writes] == [b"to 3", b"to 4"]
    assert before.value is not None
    assert before.value.version == "2"
    await store.prune(LOCAL_OWNER, ["delta"], keeps_newest=True)
    assert [each[2] for each in await listed(rig.app, thread_id="delta")] == ["4", "3", "2"]
    assert await store.ancestry(LOCAL_OWNER, "delta", "4", ["messages"]) == (before,)


async def test_removed_threads_and_runs(rig: Rig, postgres_url: str) -> None:
    """The cache shows nothing of them; the name is free at once; nothing stays in the tables."""
    store = rig.app.checkpoints
    await store_checkpoint(store, "one")
    assert await newest(rig.app) == "1"
    await rig.app.cache.wait_settled()
    assert await store.prune(LOCAL_OWNER, ["thread"]) == 1
    assert await store.prune(LOCAL_OWNER, ["thread"]) == 0
    assert await newest(rig.app) is None
    for table in ("checkpoints", "checkpoint_blobs", "checkpoint_writes"):
        assert await value(postgres_url, f"select count(*) from exai.{table}") == 0
    await store.put(LOCAL_OWNER, checkpoint("0", "new", run_id="a"))
    found = await store.get(LOCAL_OWNER, "thread")
    assert found is not None
    assert (found.checkpoint_id, found.writes) == ("0", ())
    await store.put(LOCAL_OWNER, checkpoint("2", version="2", run_id="b"))
    assert await newest(rig.app) == "2"
    assert await store.prune(LOCAL_OWNER, run_ids=["b", "c"]) == 1
    assert await newest(rig.app) == "0"


async def test_copies(rig: Rig) -> None:
    """Whole, also of a copy, and repeated; not over another thread."""
    store = rig.app.checkpoints
    assert await store.copy(LOCAL_OWNER, "thread", "copy") is None
    await store_checkpoint(store, "one")
    await store.copy(LOCAL_OWNER, "thread", "copy")
    await store.put(LOCAL_OWNER, checkpoint("2", version="2"))
    await store.copy(LOCAL_OWNER, "thread", "copy")
    await store.copy(LOCAL_OWNER, "copy", "second copy")
    ours = [replace(each, thread_id="") for each in (await store.list(LOCAL_OWNER, thread_id="thread")).checkpoints]
    for name in ("copy", "second copy"):
        theirs = (await store.list(LOCAL_OWNER, thread_id=name)).checkpoints
        assert [replace(each, thread_id="") for each in theirs] == ours
        assert await newest(rig.app, name) == "2"
    await store.put(LOCAL_OWNER, checkpoint("3", thread_id="copy"))
    with pytest.raises(Conflict, match="checkpoints of its own"):
        await store.copy(LOCAL_OWNER, "thread", "copy")


async def test_time_to_live(rig: Rig, postgres_url: str) -> None:
    """Of a thread: extended by changes and, if asked, by reads; at its end nothing is shown, and the name is free."""
    store = rig.app.checkpoints
    state = await store.put(LOCAL_OWNER, checkpoint("1"), ttl_s=1_000)
    assert state.expires_at is not None
    later = await store.put_writes(LOCAL_OWNER, "thread", "1", task_writes("x", "messages"))
    assert later is not None
    assert later.expires_at is not None
    assert later.expires_at > state.expires_at
    left = "select extract(epoch from expires_at - now()) from exai.checkpoint_threads"
    await run(postgres_url, "update exai.checkpoint_threads set expires_at = now() + interval '900 seconds'")
    assert await newest(rig.app, checkpoint_id="1") == "1"
    assert await value(postgres_url, left) < 901
    assert await newest(rig.app, checkpoint_id="1", extends=True) == "1"
    assert await value(postgres_url, left) > 990
    assert await newest(rig.app) == "1"
    await rig.app.cache.wait_settled()
    await store.put(LOCAL_OWNER, checkpoint("2", version="2"), ttl_s=0.000_001)
    assert await newest(rig.app) is None
    assert await listed(rig.app) == []
    assert await rig.app.maintenance.retain() == (0, 0)
    assert await value(postgres_url, "select count(*) from exai.checkpoints") == 0
    await store.put(LOCAL_OWNER, checkpoint("0", "anew"))
    assert await newest(rig.app) == "0"
    assert await value(postgres_url, left) is None


async def test_limits_name_the_field(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is stored."""
    store = rig.app.checkpoints
    monkeypatch.setattr(service, "MAX_PUT_BYTES", 1_000)
    twice = checkpoint("1").values * 2
    for refused, field in (
        (checkpoint("1", thread_id="t\0"), "thread_id"),
        (checkpoint(""), "checkpoint_id"),
        (checkpoint("1", run_id="x" * 201), "run_id"),
        (checkpoint("1", "x" * 1_000), "values"),
        (replace(checkpoint("1"), values=twice), "values"),
        (replace(checkpoint("1"), versions={"": "1"}), "channel"),
    ):
        with pytest.raises(InvalidArgument, match=field):
            await store.put(LOCAL_OWNER, refused)
    mixed = [*task_writes("x", "a"), *task_writes("x", "a", task_id="other")]
    with pytest.raises(InvalidArgument, match="writes"):
        await store.put_writes(LOCAL_OWNER, "thread", "1", mixed)
    with pytest.raises(InvalidArgument, match="cursor"):
        await store.list(LOCAL_OWNER, cursor='["1", "x", 2]')
    with pytest.raises(InvalidArgument, match="run_ids"):
        await store.prune(LOCAL_OWNER, ["thread"], run_ids=["run"])
    with pytest.raises(InvalidArgument, match="ttl_s"):
        await store.put(LOCAL_OWNER, checkpoint("1"), ttl_s=0)
    assert await listed(rig.app) == []


async def test_a_large_value_is_exact(rig: Rig) -> None:
    """Of several MB, which no entry of the cache holds."""
    data = bytes(range(256)) * 40_000
    large = replace(checkpoint("1"), values=(ChannelValue("messages", "1", "bytes", data),))
    await rig.app.checkpoints.put(LOCAL_OWNER, large)
    for _ in range(2):
        assert await rig.app.checkpoints.get(LOCAL_OWNER, "thread") == large


async def test_another_application_reads_each_change(
    rig: Rig, postgres_url: str, redis_url: str, tmp_path: Path
) -> None:
    """Whose cache is the same; neither shows anything older than what was acknowledged."""
    settings = rig.app.settings
    async with open_app(settings) as other:
        for number in range(1, 12):
            name = f"{number:03}"
            writer, reader = (rig.app, other) if number % 2 else (other, rig.app)
            await writer.checkpoints.put(LOCAL_OWNER, checkpoint(name, name, version=name))
            assert await newest(reader) == await newest(writer) == name
        await other.checkpoints.prune(LOCAL_OWNER, ["thread"])
        assert await newest(rig.app) is None
