"""Group 3: reads."""

from __future__ import annotations

from typing import Any

from conversation_store_conformance.rules import rule
from conversation_store_conformance.world import World, expect, expect_equal, message, messages, refusal, texts

MANY = 1_000


@rule("reads.unknown")
async def unknown(world: World) -> None:
    """An unknown conversation reads as nothing, without an error."""
    store = await world.open()
    expect_equal(list(await store.read(world.name("unknown")) or ()), [], "an unknown conversation")


@rule("reads.unknown-is-not-made", "names")
async def unknown_is_not_made(world: World) -> None:
    """Reading an unknown conversation does not make it."""
    store, name = await world.open(), world.name("unknown")
    await store.read(name)
    expect(name not in await store.names(), "the read made a conversation")


@rule("reads.again")
async def again(world: World) -> None:
    """Two reads without a write between them are equal."""
    store, name = await world.open(), world.name()
    await store.append(name, messages("a", "b"))
    expect_equal(await store.read(name), await store.read(name), "a second read")


@rule("reads.long")
async def long(world: World) -> None:
    """A conversation of a thousand items is read whole."""
    store, name = await world.open(), world.name()
    wanted = [str(number) for number in range(MANY)]
    for start in range(0, MANY, 250):
        await store.append(name, messages(*wanted[start : start + 250]))
    expect_equal(texts(await store.read(name)), wanted, "the conversation")


@rule("reads.result-is-a-copy")
async def result_is_a_copy(world: World) -> None:
    """A caller that changes what it read does not change what is stored."""
    store, name = await world.open(), world.name()
    await store.append(name, [message("a", more={"list": [1]})])
    found = await store.read(name)
    found[0]["content"] = "changed"
    found[0]["more"]["list"].append(2)
    found.append(message("added"))
    expect_equal(await store.read(name), [message("a", more={"list": [1]})], "the conversation")


@rule("reads.argument-is-copied")
async def argument_is_copied(world: World) -> None:
    """A caller that changes an item after its append does not change what is stored."""
    store, name = await world.open(), world.name()
    item: Any = message("a", more={"list": [1]})
    given = [item]
    await store.append(name, given)
    item["content"] = "changed"
    item["more"]["list"].append(2)
    given.append(message("added"))
    expect_equal(await store.read(name), [message("a", more={"list": [1]})], "the conversation")


@rule("reads.newest", "newest")
async def newest(world: World) -> None:
    """The newest N items are returned oldest first."""
    store, name = await world.open(), world.name()
    await store.append(name, messages(*"abcdefgh"))
    for count in (1, 3, 8):
        expect_equal(texts(await store.newest(name, count)), list("abcdefgh"[-count:]), f"the newest {count}")


@rule("reads.newest-zero", "newest")
async def newest_zero(world: World) -> None:
    """The newest 0 items are none."""
    store, name = await world.open(), world.name()
    await store.append(name, messages("a", "b"))
    expect_equal(texts(await store.newest(name, 0)), [], "the newest 0")


@rule("reads.newest-of-fewer", "newest")
async def newest_of_fewer(world: World) -> None:
    """The newest N of fewer items are all of them, and of none, none."""
    store, name = await world.open(), world.name()
    await store.append(name, messages("a", "b"))
    expect_equal(texts(await store.newest(name, 100)), ["a", "b"], "the newest 100")
    expect_equal(texts(await store.newest(world.name("unknown"), 5)), [], "the newest of an unknown conversation")


@rule("reads.newest-negative", "newest")
async def newest_negative(world: World) -> None:
    """A negative number is refused, or means all or none: never some of them."""
    store, name = await world.open(), world.name()
    await store.append(name, messages("a", "b", "c"))
    error = await refusal(store.newest(name, -1))
    if error is not None:
        world.note(f"refused: {type(error).__name__}")
        return
    found = texts(await store.newest(name, -1))
    expect(found in ([], ["a", "b", "c"]), f"the newest -1 are {found}")
    world.note("a negative number means all" if found else "a negative number means none")


@rule("reads.pages", "page")
async def pages(world: World) -> None:
    """Pages contain every item once, in order."""
    store, name = await world.open(), world.name()
    wanted = [str(number) for number in range(23)]
    await store.append(name, messages(*wanted))
    for limit in (1, 5, 23, 100):
        expect_equal(await _paged(store, name, limit), wanted, f"pages of {limit}")


@rule("reads.pages-under-appends", "page")
async def pages_under_appends(world: World) -> None:
    """Items that are appended while a client pages make it neither repeat nor miss earlier ones."""
    store, name = await world.open(), world.name()
    wanted = [str(number) for number in range(12)]
    await store.append(name, messages(*wanted))
    found: list[list[str]] = []
    cursor = None
    while True:
        items, cursor = await store.page(name, cursor, 4)
        found.append(texts(items))
        if cursor is None or len(found) > 50:
            break
        if len(found) < 4:
            await store.append(name, messages(f"late {len(found)}"))
    flat = [[text for text in page if not text.startswith("late")] for page in found]
    joined = [text for page in flat for text in page]
    backwards = [text for page in reversed(flat) for text in page]
    expect(wanted in (joined, backwards), f"pages hold {found}")


async def _paged(store: Any, name: str, limit: int) -> list[str]:
    found: list[list[str]] = []
    cursor = None
    while True:
        items, cursor = await store.page(name, cursor, limit)
        expect(len(items) <= limit, f"a page of at most {limit} has {len(items)} items")
        found.append(texts(items))
        if cursor is None:
            break
        expect(len(found) <= 100, "the pages do not end")
    forward = [text for page in found for text in page]
    numbers = [int(text) for text in forward]
    return forward if numbers == sorted(numbers) else [text for page in reversed(found) for text in page]
