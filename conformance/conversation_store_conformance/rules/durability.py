"""Group 9: what was acknowledged survives."""

from __future__ import annotations

from conversation_store_conformance.processes import killed_writer
from conversation_store_conformance.rules import rule
from conversation_store_conformance.world import World, expect, expect_equal, messages, texts

BATCH = 5


@rule("durability.reopened", "persistent")
async def reopened(world: World) -> None:
    """A client that is opened after all others were closed reads everything."""
    name = world.name()
    async with world.open_store(world.place) as store:
        await store.append(name, messages("a", "b"))
    async with world.open_store(world.place) as store:
        expect_equal(texts(await store.read(name)), ["a", "b"], "the conversation")


@rule("durability.killed-client", "persistent")
async def killed_client(world: World) -> None:
    """Every append that a killed process had acknowledged is there."""
    name = world.name()
    acknowledged = await killed_writer(world, name, size=BATCH, after=6)
    found = set(texts(await (await world.open()).read(name)))
    missing = [text for text in acknowledged if text not in found]
    expect(not missing, f"acknowledged and lost: {missing[:10]}")


@rule("durability.all-or-nothing", "batches", "persistent")
async def all_or_nothing(world: World) -> None:
    """Of a batch whose process was killed during the append either everything is there or nothing."""
    name = world.name()
    for after in (1, 3):
        await killed_writer(world, name, size=BATCH, after=after)
    found = texts(await (await world.open()).read(name))
    for batch in {text.rsplit(".", 1)[0] for text in found}:
        places = [text.rsplit(".", 1)[1] for text in found if text.rsplit(".", 1)[0] == batch]
        expect_equal(places, [str(place) for place in range(BATCH)], f"batch {batch}")


@rule("durability.writes-after-a-kill", "persistent")
async def writes_after_a_kill(world: World) -> None:
    """A killed process leaves no lock that stops other writers."""
    name = world.name()
    await killed_writer(world, name, size=BATCH, after=2)
    store = await world.open()
    await store.append(name, messages("after"))
    expect_equal(texts(await store.read(name))[-1], "after", "the last item")


@rule("durability.killed-store", "persistent", "restart")
async def killed_store(world: World) -> None:
    """What was acknowledged is there after the store's own process was killed."""
    store, name = await world.open(), world.name()
    for number in range(5):
        await store.append(name, messages(str(number)))
    await store.restart()
    expect_equal(texts(await (await world.open()).read(name)), ["0", "1", "2", "3", "4"], "the conversation")


@rule("durability.lost-cache", "lose_cache")
async def lost_cache(world: World) -> None:
    """What was acknowledged is there after the cache was lost."""
    store, name = await world.open(), world.name()
    await store.append(name, messages("a"))
    await store.read(name)
    await store.append(name, messages("b"))
    await store.lose_cache()
    expect_equal(texts(await store.read(name)), ["a", "b"], "the conversation")
