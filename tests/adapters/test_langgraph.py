"""The checkpointer of LangGraph: its conformance suite, and graphs with a scripted node."""

from __future__ import annotations

import asyncio
import operator
import uuid
from collections.abc import AsyncIterator, Mapping
from typing import Annotated, Any, TypedDict

import pytest

from exai.app import open_app
from exai.client import blocking, connect, connect_blocking
from exai.errors import Conflict, InvalidArgument
from exai.settings.load import load_settings
from exai.store import Store

pytest.importorskip("langgraph.checkpoint.conformance", reason="langgraph is not installed")

from langchain_core.language_models.fake_chat_models import GenericFakeChatModel
from langchain_core.messages import AIMessage
from langgraph.checkpoint.base import empty_checkpoint
from langgraph.checkpoint.conformance import checkpointer_test, validate
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import END, START, StateGraph
from langgraph.types import Command, interrupt

from exai.adapters.langgraph import ExaiSaver
from tests.adapters.quick_starts import run_quick_start

BASE_TESTS, EXTENDED_TESTS = 58, 23


class State(TypedDict):
    """Two channels, one of which grows."""

    log: Annotated[list[str], operator.add]
    count: int


def node(state: State) -> dict[str, Any]:
    return {"log": [f"step {state['count']}"], "count": state["count"] + 1}


def graph(saver: Any, *, asks: bool = False) -> Any:
    def ask(state: State) -> dict[str, Any]:
        return {"log": [f"answered {interrupt('which?')}"]} if asks else {}

    builder = StateGraph(State)
    builder.add_node("first", node)
    builder.add_node("ask", ask)
    builder.add_node("last", node)
    for one, other in ((START, "first"), ("first", "ask"), ("ask", "last"), ("last", END)):
        builder.add_edge(one, other)
    return builder.compile(checkpointer=saver)


def thread(name: str | None = None, **more: Any) -> dict[str, Any]:
    return {"configurable": {"thread_id": name or str(uuid.uuid4()), **more}}


async def put(
    saver: ExaiSaver, config: Any, checkpoint_id: str, value: Any, version: str = "1", **metadata: Any
) -> Any:
    """Store a checkpoint with one channel."""
    checkpoint = empty_checkpoint() | {
        "id": checkpoint_id,
        "channel_values": {"ch": value},
        "channel_versions": {"ch": version},
    }
    facts: dict[str, Any] = {"source": "loop", "step": 1, **metadata}
    return await saver.aput(config, checkpoint, facts, {"ch": version})


async def test_conformance_suite(store: Store) -> None:
    """All base and all extended tests."""

    @checkpointer_test(name="ExaiSaver")
    async def savers() -> AsyncIterator[ExaiSaver]:
        yield ExaiSaver(store)

    report = await validate(savers)
    results = report.results.values()
    assert [failure for each in results for failure in each.failures or ()] == []
    assert sum(each.tests_passed for each in results) == BASE_TESTS + EXTENDED_TESTS
    assert report.passed_all_base()
    assert {name for name, each in report.results.items() if not each.passed} == set()


async def test_a_graph_ends_as_with_the_saver_of_the_framework(store: Store) -> None:
    """States, history, an interruption and its answer, and a fork from an earlier checkpoint."""
    ended = []
    for saver in (ExaiSaver(store), InMemorySaver()):
        config, asking = thread(), graph(saver, asks=True)
        await asking.ainvoke({"log": ["start"], "count": 0}, config)
        stopped = await asking.aget_state(config)
        await asking.ainvoke(Command(resume="that"), config)
        await asking.ainvoke({"log": ["again"], "count": 5}, config)
        history = [each async for each in asking.aget_state_history(config)]
        forked = await asking.aupdate_state(history[3].config, {"count": 100})
        await asking.ainvoke(None, forked)
        states = [(each.values, each.next, each.metadata["step"]) for each in history]
        final = (await asking.aget_state(config)).values
        ended.append((stopped.values, stopped.next, [each.value for each in stopped.interrupts], states, final))
    assert ended[0] == ended[1]


def test_synchronous_graph_needs_no_event_loop(settings: Mapping[str, str], address: str) -> None:
    """With a store of a loop in a thread, a client, and the address of a daemon."""
    with blocking(open_app(load_settings(dict(settings)))) as in_process, connect_blocking(address) as client:
        for store in (in_process, client, address):
            saver, config = ExaiSaver(store), thread()
            ended = graph(saver).invoke({"log": ["start"], "count": 0}, config)
            assert ended == {"log": ["start", "step 0", "step 1"], "count": 2}
            assert len(list(saver.list(config))) == 5
            assert len(list(saver.list(config, limit=2))) == 2
            saver.copy_thread(config["configurable"]["thread_id"], "copy")
            assert graph(saver).get_state(thread("copy")).values == ended
            saver.prune(["copy"])
            assert len(list(saver.list(thread("copy")))) == 1
            saver.delete_thread("copy")
            assert saver.get_tuple(thread("copy")) is None
            saver.close()


async def test_synchronous_calls_run_on_the_loop_of_the_store(settings: Mapping[str, str]) -> None:
    """From another thread; on the loop itself they would wait for themselves."""
    async with open_app(load_settings(dict(settings))) as app:
        saver, config = ExaiSaver(app), thread()
        ended = await asyncio.to_thread(graph(saver).invoke, {"log": [], "count": 0}, config)
        assert ended["count"] == 2
        with pytest.raises(InvalidArgument, match="event loop"):
            saver.get_tuple(config)


async def test_owners_are_apart(settings: Mapping[str, str]) -> None:
    """From the configuration of a run, and by a saver of an owner. A daemon takes the owner from the token."""
    async with open_app(load_settings(dict(settings))) as app:
        await check_owners(ExaiSaver(app, owner=lambda config: config["configurable"]["user"]))


async def check_owners(saver: ExaiSaver) -> None:
    name, (one, other) = str(uuid.uuid4()), [str(uuid.uuid4()) for _ in range(2)]
    for number, user in enumerate((one, other)):
        await graph(saver).ainvoke({"log": [user], "count": number}, thread(name, user=user))
    for user in (one, other):
        found = await saver.aget_tuple(thread(name, user=user))
        assert found is not None
        assert found.checkpoint["channel_values"]["log"][0] == user
    with pytest.raises(InvalidArgument, match="owner"):
        await saver.adelete_thread(name)
    await saver.of(one).adelete_thread(name)
    assert await saver.aget_tuple(thread(name, user=one)) is None
    assert await saver.aget_tuple(thread(name, user=other)) is not None
    assert len([each async for each in saver.of(other).alist(None)]) == 5


async def test_any_metadata_and_values_are_exact(store: Store) -> None:
    """U+0000 in values and in nested metadata, which other savers refuse on Postgres; and any bytes."""
    saver, config = ExaiSaver(store), thread()
    odd = {"nested": {"nul": "a\0b", "list": [2**60, "\0"]}, "plain": "x\0y", "long": "z" * 20_000}
    data = bytes(range(256)) * 8_192
    stored = await put(saver, config, "1", {"bytes": data, "text": "\0 😀"}, **odd)
    for wanted in (config, stored):
        found = await saver.aget_tuple(wanted)
        assert found is not None
        assert found.checkpoint["channel_values"] == {"ch": {"bytes": data, "text": "\0 😀"}}
        assert {name: found.metadata[name] for name in odd} == odd
    assert len([each async for each in saver.alist(config, filter={"plain": "x\0y"})]) == 1
    assert [each async for each in saver.alist(config, filter={"plain": "xy"})] == []
    with pytest.raises(InvalidArgument, match="8 KiB"):
        _ = [each async for each in saver.alist(config, filter={"long": odd["long"]})]


async def test_what_exceeds_a_request_is_refused_with_the_limit(address: str, settings: Mapping[str, str]) -> None:
    """At a daemon; in the process it is stored."""
    large = bytes(range(256)) * 40_000
    async with connect(address) as client:
        config = thread()
        with pytest.raises(InvalidArgument, match="EXAI_SERVER__MESSAGE_MAX_BYTES"):
            await put(ExaiSaver(client), config, "1", large)
        assert await ExaiSaver(client).aget_tuple(config) is None
        async with open_app(load_settings(dict(settings))) as app:
            await put(ExaiSaver(app), config, "1", large)
        # An answer comes in parts.
        found = await ExaiSaver(client).aget_tuple(config)
        assert found is not None
        assert found.checkpoint["channel_values"]["ch"] == large


async def test_time_to_live(store: Store) -> None:
    """By saver or by run; a read of a thread that is gone finds nothing, and its name is free."""
    config = thread()
    saver = ExaiSaver(store, ttl_s=lambda config: config["configurable"].get("ttl"), refresh_on_read=True)
    await put(saver, thread(config["configurable"]["thread_id"], ttl=1_000), "1", 1)
    assert await saver.aget_tuple(config) is not None
    await put(saver, thread(config["configurable"]["thread_id"], ttl=0.000_001), "2", 2, "2")
    assert await saver.aget_tuple(config) is None
    assert [each async for each in saver.alist(config)] == []
    await put(saver, config, "0", 0)
    assert (await saver.aget_tuple(config)).checkpoint["id"] == "0"  # type: ignore[union-attr]


async def test_concurrent_tasks_of_a_step_lose_nothing(store: Store) -> None:
    """Nor do concurrent puts of a thread; it can be pruned, so that it does not grow without bound."""
    saver, config = ExaiSaver(store), thread()
    stored = await put(saver, config, "000", 0)
    await asyncio.gather(*(saver.aput_writes(stored, [("ch", n)], f"task {n:02}", f"{n:02}") for n in range(20)))
    found = await saver.aget_tuple(config)
    assert found is not None
    assert [each[2] for each in found.pending_writes or ()] == list(range(20))
    await asyncio.gather(*(put(saver, stored, f"{n:03}", n, str(n)) for n in range(1, 21)))
    assert [each.checkpoint["id"] async for each in saver.alist(config, limit=1)] == ["020"]
    name = config["configurable"]["thread_id"]
    await saver.aprune([name])
    assert len([each async for each in saver.alist(config)]) == 1
    with pytest.raises(InvalidArgument, match="strategy"):
        await saver.aprune([name], strategy="newest")


async def test_branches_from_one_checkpoint_have_their_own_values(store: Store) -> None:
    """Versions of branches differ, as reported of savers whose second branch showed the values of the first."""
    saver, config = ExaiSaver(store), thread()
    compiled = graph(saver)
    await compiled.ainvoke({"log": ["start"], "count": 0}, config)
    first = [each async for each in compiled.aget_state_history(config)][-2].config
    logs = []
    for name in ("one", "other"):
        branch = await compiled.aupdate_state(first, {"log": [name], "count": 10})
        await compiled.ainvoke(None, branch)
        logs.append((branch, name))
    for branch, name in logs:
        assert (await compiled.aget_state(branch)).values["log"][-1] == name


async def test_the_newest_checkpoint_has_its_id(store: Store) -> None:
    """Also if the configuration had none, as reported of an asynchronous saver. One that is stored late is not it."""
    saver, config = ExaiSaver(store), thread()
    await put(saver, config, "2", "new", "2")
    await put(saver, config, "1", "old", "1")
    for _ in range(2):
        found = await saver.aget_tuple(config)
        assert found is not None
        assert found.config["configurable"]["checkpoint_id"] == found.checkpoint["id"] == "2"
        assert found.checkpoint["channel_values"] == {"ch": "new"}


async def test_metadata_may_hold_messages_and_any_key(store: Store) -> None:
    """As older releases wrote them, and reported of savers that raise, or ignore the filter, for unknown keys."""
    saver, config = ExaiSaver(store), thread()
    await put(saver, config, "1", 1, writes={"model": {"messages": [AIMessage("hello")]}}, tenant="acme")
    await put(saver, config, "2", 2, "2", tenant="globex")
    [found] = [each async for each in saver.alist(config, filter={"tenant": "acme"})]
    assert found.metadata["writes"]["model"]["messages"] == [AIMessage("hello")]  # type: ignore[typeddict-item]
    assert [each async for each in saver.alist(config, filter={"unknown": 1})] == []


async def test_writes_after_a_deletion_make_no_checkpoint(store: Store) -> None:
    """A task that ends after its thread was deleted, as reported of a saver that then showed a thread again."""
    saver, config = ExaiSaver(store), thread()
    stored = await put(saver, config, "1", 1)
    await saver.adelete_thread(config["configurable"]["thread_id"])
    await saver.aput_writes(stored, [("ch", "late")], "task")
    assert await saver.aget_tuple(config) is None
    assert [each async for each in saver.alist(config)] == []


async def test_a_copy_does_not_overwrite(store: Store) -> None:
    """A thread with checkpoints of its own."""
    saver, one, other = ExaiSaver(store), thread(), thread()
    await put(saver, one, "1", 1)
    await put(saver, other, "2", 2)
    names = [each["configurable"]["thread_id"] for each in (one, other)]
    with pytest.raises(Conflict, match="checkpoints of its own"):
        await saver.acopy_thread(*names)


async def test_delta_history_is_that_of_the_framework(store: Store) -> None:
    """As its walk over parents finds it, in one request, also after a pruning."""
    saver, config = ExaiSaver(store), thread()
    metadata = {"counters_since_delta_snapshot": {"ch": [1, 1]}}
    stored = await put(saver, config, "1", ["seed"], "1", **metadata)
    for number in range(2, 6):
        await saver.aput_writes(stored, [("ch", f"b{number}"), ("other", 1)], "task b", "2")
        await saver.aput_writes(stored, [("ch", f"a{number}")], "task a", "1")
        checkpoint = empty_checkpoint() | {"id": str(number), "channel_versions": {"ch": str(number)}}
        stored = await saver.aput(stored, checkpoint, {"source": "loop", "step": number, **metadata}, {})
    expected = await super(ExaiSaver, saver).aget_delta_channel_history(config=config, channels=["ch", "none"])
    assert await saver.aget_delta_channel_history(config=config, channels=["ch", "none"]) == expected
    assert expected["ch"]["seed"] == ["seed"]
    assert [each[2] for each in expected["ch"]["writes"]][:2] == ["a2", "b2"]
    await saver.aprune([config["configurable"]["thread_id"]])
    assert await saver.aget_delta_channel_history(config=config, channels=["ch", "none"]) == expected


async def test_cancelled_put_is_stored(store: Store) -> None:
    """A run that is cancelled while it stores a checkpoint."""
    saver, config = ExaiSaver(store), thread()
    task = asyncio.create_task(put(saver, config, "1", 1))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await saver.aget_tuple(config) is not None


async def test_missing_thread_is_refused(store: Store) -> None:
    """With the field and the cure."""
    with pytest.raises(InvalidArgument, match="thread_id"):
        await ExaiSaver(store).aget_tuple({"configurable": {}})


async def test_quick_start(address: str) -> None:
    model = GenericFakeChatModel(messages=iter([AIMessage("Hi, Bob."), AIMessage("Bob")]))
    names = await run_quick_start("langgraph", address, model=model)
    shown = [each.content for each in names["state"]["messages"]]
    assert shown == ["Hi, I am Bob.", "Hi, Bob.", "What is my name?", "Bob"]
