"""Group 10: state beside the items, forks and rewinding."""

from __future__ import annotations

from conversation_store_conformance.rules import rule
from conversation_store_conformance.world import (
    NotApplicable,
    World,
    all_of,
    expect_equal,
    first_error,
    message,
    messages,
    refusal,
    texts,
)


@rule("state.shallow-merge", "state", "append_with_state")
async def shallow_merge(world: World) -> None:
    """Changes set top-level fields, replace nested ones whole, and leave all others."""
    store, name = await world.open(), world.name()
    await store.append_with_state(name, messages("a"), {"kept": 1, "nested": {"x": 1, "y": 2}})
    await store.append_with_state(name, messages("b"), {"nested": {"x": 3}, "new": [None, 1.5]})
    expect_equal(dict(await store.state(name)), {"kept": 1, "nested": {"x": 3}, "new": [None, 1.5]}, "the state")
    expect_equal(texts(await store.read(name)), ["a", "b"], "the items")


@rule("state.with-the-items", "state", "append_with_state")
async def with_the_items(world: World) -> None:
    """If the items are refused, the state is not changed either."""
    store, name = await world.open(), world.name()
    await store.append_with_state(name, messages("a"), {"x": 1})
    bad = [message("bad", value=object())]
    if await refusal(store.append_with_state(name, bad, {"x": 2})) is None:
        raise NotApplicable("the store accepts what is not JSON")
    expect_equal(dict(await store.state(name)), {"x": 1}, "the state")


@rule("state.concurrent-changes", "state", "append_with_state")
async def concurrent_changes(world: World) -> None:
    """Concurrent changes of different fields are all kept."""
    store, name = await world.open(), world.name()
    await store.append_with_state(name, messages("start"), {"start": True})
    changes = (store.append_with_state(name, messages(str(n)), {f"field{n}": n}) for n in range(6))
    first_error(await all_of(*changes))
    expect_equal(dict(await store.state(name)), {"start": True, **{f"field{n}": n for n in range(6)}}, "the state")


@rule("state.per-conversation", "state", "append_with_state")
async def per_conversation(world: World) -> None:
    """The state of one conversation is not that of another."""
    store, name, other = await world.open(), world.name(), world.name("other")
    await store.append_with_state(name, messages("a"), {"x": 1})
    await store.append_with_state(other, messages("b"), {"y": 2})
    expect_equal(dict(await store.state(name)), {"x": 1}, "the state")


@rule("state.result-is-a-copy", "state", "append_with_state")
async def result_is_a_copy(world: World) -> None:
    """A caller that changes the state it read does not change what is stored."""
    store, name = await world.open(), world.name()
    await store.append_with_state(name, messages("a"), {"x": [1]})
    found = dict(await store.state(name))
    found["x"].append(2)
    expect_equal(dict(await store.state(name)), {"x": [1]}, "the state")


@rule("state.fork", "fork")
async def fork(world: World) -> None:
    """A fork begins with the first items of its source."""
    store, name = await world.open(), world.name()
    await store.append(name, messages(*"abcd"))
    for length in (1, 2, 4):
        expect_equal(
            texts(await store.read(await store.fork(name, length))), list("abcd"[:length]), f"a fork at {length}"
        )


@rule("state.fork-diverges", "fork")
async def fork_diverges(world: World) -> None:
    """Appends to a fork or to its source are not in the other."""
    store, name = await world.open(), world.name()
    await store.append(name, messages("a", "b"))
    other = await store.fork(name, 1)
    await store.append(other, messages("of the fork"))
    await store.append(name, messages("of the source"))
    expect_equal(texts(await store.read(name)), ["a", "b", "of the source"], "the source")
    expect_equal(texts(await store.read(other)), ["a", "of the fork"], "the fork")


@rule("state.fork-outlives-its-source", "fork", "delete")
async def fork_outlives_its_source(world: World) -> None:
    """A fork is whole after its source was deleted."""
    store, name = await world.open(), world.name()
    await store.append(name, messages("a", "b"))
    other = await store.fork(name, 2)
    await store.append(other, messages("c"))
    await store.delete(name)
    expect_equal(texts(await store.read(other)), ["a", "b", "c"], "the fork")


@rule("state.rewind", "rewind")
async def rewind(world: World) -> None:
    """A rewound conversation is what it was, and goes on from there."""
    store, name = await world.open(), world.name()
    await store.append(name, messages(*"abcde"))
    await store.rewind(name, 3)
    expect_equal(texts(await store.read(name)), list("abc"), "the rewound conversation")
    await store.append(name, messages("x"))
    expect_equal(texts(await store.read(name)), list("abcx"), "the conversation after a further append")
    await store.rewind(name, 0)
    expect_equal(texts(await store.read(name)), [], "the conversation rewound to nothing")


@rule("state.rewind-leaves-forks", "rewind", "fork")
async def rewind_leaves_forks(world: World) -> None:
    """A fork keeps the items that its source loses by rewinding."""
    store, name = await world.open(), world.name()
    await store.append(name, messages(*"abc"))
    other = await store.fork(name, 3)
    await store.rewind(name, 1)
    expect_equal(texts(await store.read(other)), list("abc"), "the fork")


@rule("state.rewind-frees-ids", "rewind", "append_identified")
async def rewind_frees_ids(world: World) -> None:
    """Ids of items that were removed by rewinding can be used again."""
    store, name = await world.open(), world.name()
    await store.append_identified(name, [("1", message("a")), ("2", message("b"))])
    await store.rewind(name, 1)
    await store.append_identified(name, [("2", message("b"))])
    expect_equal(texts(await store.read(name)), ["a", "b"], "the conversation")
