"""Group 6: several clients at the same time."""

from __future__ import annotations

import asyncio

from conversation_store_conformance.rules import rule
from conversation_store_conformance.world import (
    World,
    all_of,
    expect,
    expect_equal,
    first_error,
    messages,
    refusal,
    texts,
)

WRITERS = 8
ROUNDS = 15


@rule("concurrency.first-writers")
async def first_writers(world: World) -> None:
    """Writers that make a conversation at the same time all succeed, and none is lost."""
    store = await world.open()
    for _ in range(3):
        name = world.name()
        first_error(await all_of(*(store.append(name, messages(str(number))) for number in range(WRITERS))))
        found = sorted(texts(await store.read(name)))
        expect_equal(found, [str(number) for number in range(WRITERS)], "the conversation")


@rule("concurrency.first-clients", "persistent")
async def first_clients(world: World) -> None:
    """Clients that make a conversation at the same time all succeed, and none is lost."""
    clients, name = [await world.open() for _ in range(4)], world.name()
    first_error(await all_of(*(each.append(name, messages(str(place))) for place, each in enumerate(clients))))
    expect_equal(sorted(texts(await clients[0].read(name))), ["0", "1", "2", "3"], "the conversation")


@rule("concurrency.pops-differ", "pop")
async def pops_differ(world: World) -> None:
    """Concurrent pops return different items, each once."""
    store, name = await world.open(), world.name()
    wanted = [str(number) for number in range(WRITERS)]
    await store.append(name, messages("kept", *wanted))
    popped = await all_of(*(store.pop(name) for _ in range(WRITERS)))
    first_error(popped)
    expect_equal(sorted(each["content"] for each in popped if each), wanted, "the popped items")
    expect_equal(texts(await store.read(name)), ["kept"], "the conversation")


@rule("concurrency.pop-and-append", "pop")
async def pop_and_append(world: World) -> None:
    """Appends and pops at the same time: every item is either popped or read."""
    store, name = await world.open(), world.name()
    given = [str(number) for number in range(ROUNDS)]
    before = ["before 0", "before 1", "before 2"]
    await store.append(name, messages(*before))
    results = await all_of(
        *(store.append(name, messages(text)) for text in given), *(store.pop(name) for _ in range(ROUNDS))
    )
    first_error(results)
    popped = [each["content"] for each in results if each is not None]
    expect_equal(sorted(popped + texts(await store.read(name))), sorted(before + given), "popped and stored items")


@rule("concurrency.stale-writer", "revision", "append_if")
async def stale_writer(world: World) -> None:
    """A writer that has not seen the last write is refused, and the next attempt with the new revision succeeds."""
    store, name = await world.open(), world.name()
    await store.append(name, messages("a"))
    seen = await store.revision(name)
    await store.append(name, messages("b"))
    expect(await refusal(store.append_if(name, messages("stale"), seen)) is not None, "a stale writer was accepted")
    await store.append_if(name, messages("c"), await store.revision(name))
    expect_equal(texts(await store.read(name)), ["a", "b", "c"], "the conversation")


@rule("concurrency.one-winner", "revision", "append_if")
async def one_winner(world: World) -> None:
    """Of several writers with the same revision exactly one succeeds."""
    store, name = await world.open(), world.name()
    await store.append(name, messages("start"))
    for number in range(3):
        seen = await store.revision(name)
        results = await all_of(*(store.append_if(name, messages(f"{number}.{w}"), seen) for w in range(WRITERS)))
        won = sum(not isinstance(each, BaseException) for each in results)
        expect_equal(won, 1, "the number of writers that succeeded")
        expect_equal(len(texts(await store.read(name))), number + 2, "the number of items")


@rule("concurrency.second-client", "persistent")
async def second_client(world: World) -> None:
    """A second client reads what the first one has written, and the first what the second has."""
    first, second, name = await world.open(), await world.open(), world.name()
    await first.append(name, messages("a"))
    expect_equal(texts(await first.read(name)), ["a"], "the first client's read")
    expect_equal(texts(await second.read(name)), ["a"], "the second client's read")
    await second.append(name, messages("b"))
    expect_equal(texts(await first.read(name)), ["a", "b"], "the first client's read")


@rule("concurrency.no-older-read", "persistent")
async def no_older_read(world: World) -> None:
    """After an acknowledged write no client reads an older state, however often both have read before."""
    first, second, name = await world.open(), await world.open(), world.name()
    wanted: list[str] = []
    for number in range(ROUNDS):
        writer, reader = (first, second) if number % 2 else (second, first)
        await all_of(reader.read(name), writer.read(name))
        await writer.append(name, messages(str(number)))
        wanted.append(str(number))
        expect_equal(texts(await reader.read(name)), wanted, f"the read after write {number}")


@rule("concurrency.monotonic-reads", "persistent")
async def monotonic_reads(world: World) -> None:
    """A client never reads a prefix that is shorter than what it has read before."""
    writer, reader, name = await world.open(), await world.open(), world.name()
    ended = asyncio.Event()

    async def write() -> None:
        for number in range(ROUNDS * 2):
            await writer.append(name, messages(str(number)))
            await asyncio.sleep(0)
        ended.set()

    async def read() -> None:
        longest = 0
        while not ended.is_set():
            found = texts(await reader.read(name))
            expect(found == [str(number) for number in range(len(found))], f"a read is no prefix: {found}")
            expect(len(found) >= longest, f"a read of {longest} items was followed by one of {len(found)}")
            longest = len(found)
            await asyncio.sleep(0)

    first_error(await all_of(write(), read()))


@rule("concurrency.deleted-for-all", "persistent", "delete")
async def deleted_for_all(world: World) -> None:
    """A conversation that one client deletes is gone for a client that has read it before."""
    first, second, name = await world.open(), await world.open(), world.name()
    await first.append(name, messages("a"))
    await second.read(name)
    await first.delete(name)
    expect_equal(texts(await second.read(name)), [], "the second client's read")


@rule("concurrency.side-by-side")
async def side_by_side(world: World) -> None:
    """Writers of different conversations do not disturb one another."""
    store, names = await world.open(), [world.name() for _ in range(WRITERS)]

    async def write(name: str) -> None:
        for number in range(5):
            await store.append(name, messages(f"{name} {number}"))

    first_error(await all_of(*map(write, names)))
    for name in names:
        expect_equal(texts(await store.read(name)), [f"{name} {number}" for number in range(5)], name)
