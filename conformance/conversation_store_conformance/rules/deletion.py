"""Group 8: deletion, clearing and popping."""

from __future__ import annotations

from conversation_store_conformance.rules import rule
from conversation_store_conformance.world import (
    NotApplicable,
    World,
    expect,
    expect_equal,
    message,
    messages,
    refusal,
    texts,
)


@rule("deletion.gone", "delete")
async def gone(world: World) -> None:
    """Nothing of a deleted conversation is read."""
    store, name = await world.open(), world.name()
    await store.append(name, messages("a", "b"))
    await store.delete(name)
    expect_equal(texts(await store.read(name)), [], "the deleted conversation")


@rule("deletion.not-listed", "delete", "names")
async def not_listed(world: World) -> None:
    """A deleted conversation is not listed."""
    store, name, kept = await world.open(), world.name(), world.name("kept")
    await store.append(name, messages("a"))
    await store.append(kept, messages("b"))
    expect({name, kept} <= set(await store.names()), "a conversation is not listed")
    await store.delete(name)
    found = await store.names()
    expect(name not in found, "the deleted conversation is listed")
    expect(found.count(kept) == 1, "the other conversation is not listed once")


@rule("deletion.siblings", "delete")
async def siblings(world: World) -> None:
    """Deleting a conversation leaves all others."""
    store, name, others = await world.open(), world.name(), [world.name() for _ in range(3)]
    for each in (name, *others):
        await store.append(each, messages(each))
    await store.delete(name)
    for each in others:
        expect_equal(texts(await store.read(each)), [each], "another conversation")


@rule("deletion.unknown", "delete")
async def unknown(world: World) -> None:
    """Deleting an unknown conversation, or one twice, is quiet."""
    store, name = await world.open(), world.name()
    await store.delete(world.name("unknown"))
    await store.append(name, messages("a"))
    await store.delete(name)
    await store.delete(name)


@rule("deletion.name-is-free", "delete")
async def name_is_free(world: World) -> None:
    """The name of a deleted conversation can be used again, for a conversation without the former items."""
    store, name = await world.open(), world.name()
    for text in ("first", "second", "third"):
        await store.append(name, messages(text))
        expect_equal(texts(await store.read(name)), [text], "the conversation")
        await store.delete(name)


@rule("deletion.children", "delete", "child")
async def children(world: World) -> None:
    """Children are deleted with their conversation, and a child without it."""
    store, name = await world.open(), world.name()
    first, second = store.child(name, "a"), store.child(name, "b")
    for each in (name, first, second):
        await store.append(each, messages(each))
    await store.delete(first)
    expect_equal(
        [texts(await store.read(each)) for each in (name, first, second)], [[name], [], [second]], "one child deleted"
    )
    await store.delete(name)
    expect_equal([texts(await store.read(each)) for each in (name, second)], [[], []], "the conversation deleted")


@rule("deletion.ids-are-free", "delete", "append_identified")
async def ids_are_free(world: World) -> None:
    """Ids of a deleted conversation are free in the next one of its name."""
    store, name = await world.open(), world.name()
    await store.append_identified(name, [("1", message("a"))])
    await store.delete(name)
    await store.append_identified(name, [("1", message("b"))])
    expect_equal(texts(await store.read(name)), ["b"], "the conversation")


@rule("deletion.clear", "clear")
async def clear(world: World) -> None:
    """A cleared conversation is empty and can be used again; clearing an unknown one is quiet."""
    store, name, other = await world.open(), world.name(), world.name("other")
    await store.append(name, messages("a", "b"))
    await store.append(other, messages("kept"))
    await store.clear(name)
    expect_equal(texts(await store.read(name)), [], "the cleared conversation")
    await store.append(name, messages("c"))
    expect_equal(texts(await store.read(name)), ["c"], "the conversation after a further append")
    await store.clear(world.name("unknown"))
    expect_equal(texts(await store.read(other)), ["kept"], "another conversation")


@rule("deletion.pop", "pop")
async def pop(world: World) -> None:
    """A pop removes and returns the newest item as it was given, and nothing of an empty conversation."""
    store, name = await world.open(), world.name()
    last = message("c", more={"x": [1, None]})
    await store.append(name, [message("a"), message("b"), last])
    expect_equal(await store.pop(name), last, "the popped item")
    expect_equal(texts(await store.read(name)), ["a", "b"], "the conversation")
    await store.append(name, messages("d"))
    expect_equal([texts([await store.pop(name)]), texts([await store.pop(name)])], [["d"], ["b"]], "two further pops")
    await store.pop(name)
    expect(await store.pop(name) is None, "an empty conversation gave an item")
    expect(await store.pop(world.name("unknown")) is None, "an unknown conversation gave an item")


@rule("deletion.read-after-refusal", "delete")
async def read_after_refusal(world: World) -> None:
    """A refused append to the name of a deleted conversation does not bring it back."""
    store, name = await world.open(), world.name()
    await store.append(name, messages("former"))
    await store.delete(name)
    if await refusal(store.append(name, [message("bad", value=object())])) is None:
        raise NotApplicable("the store accepts what is not JSON")
    expect_equal(texts(await store.read(name)), [], "the conversation")
