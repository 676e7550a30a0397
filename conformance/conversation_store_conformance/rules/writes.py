"""Groups 4 and 5: writes that fail leave nothing, and writes that are repeated are stored once."""

from __future__ import annotations

import asyncio
import re

from conversation_store_conformance.rules import rule
from conversation_store_conformance.world import (
    NotApplicable,
    World,
    all_of,
    expect,
    expect_equal,
    first_error,
    message,
    messages,
    refusal,
    texts,
)

MEGABYTES = (8, 32)


@rule("atomicity.unserializable", "batches")
async def unserializable(world: World) -> None:
    """A batch with a value that is not JSON is refused, and nothing of it is stored."""
    store, name = await world.open(), world.name()
    await store.append(name, messages("before"))
    bad = message("bad", value=object())
    error = await refusal(store.append(name, [message("first"), bad, message("last")]))
    expect(error is not None, "a value that is not JSON was accepted")
    expect_equal(texts(await store.read(name)), ["before"], "the conversation after the refusal")
    await store.append(name, messages("after"))
    expect_equal(texts(await store.read(name)), ["before", "after"], "the conversation after a further append")


@rule("atomicity.too-large", "batches")
async def too_large(world: World) -> None:
    """A batch that exceeds a limit is refused as a whole."""
    store, name = await world.open(), world.name()
    await store.append(name, messages("before"))
    sizes = [6]
    for size in MEGABYTES:
        large = message("0123456789" * (size * 100_000))
        error = await refusal(store.append(name, [message("first"), large, message("last")]))
        if error is None:
            sizes += [5, size * 1_000_000, 4]
        expect_equal([len(text) for text in texts(await store.read(name))], sizes, "the sizes of the items")
        if error is not None:
            world.note(f"{size} MB are refused")
            return
    world.note(f"no limit up to {MEGABYTES[-1]} MB")


@rule("atomicity.limit-is-named")
async def limit_is_named(world: World) -> None:
    """A refusal of a size names the limit."""
    store, name = await world.open(), world.name()
    for size in MEGABYTES:
        error = await refusal(store.append(name, [message("0123456789" * (size * 100_000))]))
        if error is not None:
            expect(re.search(r"\d", str(error)), f"{type(error).__name__} names no number: {str(error)[:200]}")
            return
    raise NotApplicable(f"no limit up to {MEGABYTES[-1]} MB")


@rule("atomicity.cancelled", "batches")
async def cancelled(world: World) -> None:
    """A cancelled append is stored whole or not at all, and the store can be used afterwards."""
    store, name = await world.open(), world.name()
    await store.append(name, messages("before"))
    for number in range(12):
        task = asyncio.ensure_future(store.append(name, messages(*(f"{number}.{place}" for place in range(5)))))
        for _ in range(number):
            await asyncio.sleep(0 if number < 8 else 0.001)
        task.cancel()
        await all_of(task)
    await store.append(name, messages("after"))
    found = texts(await store.read(name))
    expect_equal([found[0], found[-1]], ["before", "after"], "the first and the last item")
    batches = [text.split(".") for text in found[1:-1]]
    for batch in {each[0] for each in batches}:
        places = [each[1] for each in batches if each[0] == batch]
        expect_equal(places, [str(place) for place in range(5)], f"the cancelled batch {batch}")


@rule("retries.same-request", "append_once")
async def same_request(world: World) -> None:
    """A request that is repeated with its key is stored once."""
    store, name, key = await world.open(), world.name(), world.name("key")
    for _ in range(3):
        await store.append_once(name, messages("a", "b"), key)
    await store.append(name, messages("c"))
    await store.append_once(name, messages("a", "b"), key)
    expect_equal(texts(await store.read(name)), ["a", "b", "c"], "the conversation")


@rule("retries.other-content", "append_once")
async def other_content(world: World) -> None:
    """A key that was used for other content is refused, and nothing is stored."""
    store, name, key = await world.open(), world.name(), world.name("key")
    await store.append_once(name, messages("a"), key)
    expect(await refusal(store.append_once(name, messages("b"), key)) is not None, "other content was accepted")
    expect_equal(texts(await store.read(name)), ["a"], "the conversation")


@rule("retries.concurrent", "append_once")
async def concurrent(world: World) -> None:
    """Repetitions that arrive at the same time are stored once."""
    store, name, key = await world.open(), world.name(), world.name("key")
    await store.append(name, messages("start"))
    await all_of(*(store.append_once(name, messages("a", "b"), key) for _ in range(8)))
    expect_equal(texts(await store.read(name)), ["start", "a", "b"], "the conversation")


@rule("retries.other-client", "append_once", "persistent")
async def other_client(world: World) -> None:
    """A request that another client repeats with its key is stored once."""
    first, second, name, key = await world.open(), await world.open(), world.name(), world.name("key")
    await first.append_once(name, messages("a"), key)
    await second.append_once(name, messages("a"), key)
    expect_equal(texts(await second.read(name)), ["a"], "the conversation")


@rule("retries.known-id", "append_identified")
async def known_id(world: World) -> None:
    """An item whose id the conversation has is skipped, and new ones beside it are stored."""
    store, name = await world.open(), world.name()
    await store.append_identified(name, [("1", message("a")), ("2", message("b"))])
    await store.append_identified(name, [("2", message("b")), ("3", message("c"))])
    await store.append_identified(name, [("1", message("a"))])
    expect_equal(texts(await store.read(name)), ["a", "b", "c"], "the conversation")


@rule("retries.id-in-one-batch", "append_identified")
async def id_in_one_batch(world: World) -> None:
    """An id that is given twice in one batch is stored once."""
    store, name = await world.open(), world.name()
    await store.append_identified(name, [("1", message("a")), ("1", message("a")), ("2", message("b"))])
    expect_equal(texts(await store.read(name)), ["a", "b"], "the conversation")


@rule("retries.ids-are-per-conversation", "append_identified")
async def ids_are_per_conversation(world: World) -> None:
    """An id of one conversation is free in every other."""
    store, name, other = await world.open(), world.name(), world.name("other")
    await store.append_identified(name, [("1", message("a"))])
    await store.append_identified(other, [("1", message("b"))])
    expect_equal(texts(await store.read(other)), ["b"], "the other conversation")


@rule("retries.concurrent-ids", "append_identified")
async def concurrent_ids(world: World) -> None:
    """Batches with the same ids that arrive at the same time store each id once."""
    store, name = await world.open(), world.name()
    batch = [(str(number), message(str(number))) for number in range(5)]
    first_error(await all_of(*(store.append_identified(name, batch) for _ in range(6))))
    expect_equal(sorted(texts(await store.read(name))), ["0", "1", "2", "3", "4"], "the conversation")


@rule("retries.lost-reply", "append_once", "lose_reply")
async def lost_reply(world: World) -> None:
    """A write whose reply was lost after its commit is stored once, also if another client repeats it."""
    store, name, key = await world.open(), world.name(), world.name("key")
    await store.append(name, messages("start"))
    await store.lose_reply()
    if await refusal(store.append_once(name, messages("a"), key)) is not None:
        await store.append_once(name, messages("a"), key)
    expect_equal(texts(await store.read(name)), ["start", "a"], "the conversation")
