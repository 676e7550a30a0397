"""Group 1: the order of items."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from contextlib import contextmanager

from conversation_store_conformance.processes import writers
from conversation_store_conformance.rules import rule
from conversation_store_conformance.world import World, all_of, expect, expect_equal, first_error, messages, texts

WRITERS = 6
BATCHES = 5
BATCH = 4


@rule("order.batch")
async def batch(world: World) -> None:
    """Items of one append are read in the order in which they were given."""
    store, name = await world.open(), world.name()
    wanted = [str(number) for number in range(25)]
    world.random.shuffle(wanted)
    await store.append(name, messages(*wanted))
    expect_equal(texts(await store.read(name)), wanted, "the batch")


@rule("order.appends")
async def appends(world: World) -> None:
    """Appends that follow one another are read in that order."""
    store, name = await world.open(), world.name()
    wanted = [str(number) for number in range(25)]
    world.random.shuffle(wanted)
    for text in wanted:
        await store.append(name, messages(text))
    expect_equal(texts(await store.read(name)), wanted, "the conversation")


@rule("order.empty-append")
async def empty_append(world: World) -> None:
    """An append without items changes nothing, also of an unknown conversation."""
    store, name, unknown = await world.open(), world.name(), world.name("empty")
    await store.append(name, messages("one"))
    await store.append(name, [])
    expect_equal(texts(await store.read(name)), ["one"], "the conversation")
    await store.append(unknown, [])
    expect_equal(list(await store.read(unknown) or ()), [], "a conversation without items")


@rule("order.equal-items")
async def equal_items(world: World) -> None:
    """Equal items are stored as often as they are appended."""
    store, name = await world.open(), world.name()
    await store.append(name, messages("yes", "yes"))
    await store.append(name, messages("yes"))
    expect_equal(texts(await store.read(name)), ["yes"] * 3, "three equal items")


@rule("order.whole-batches", "batches")
async def whole_batches(world: World) -> None:
    """Batches of concurrent writers do not interleave."""
    store, name = await world.open(), world.name()
    await _write_concurrently(store, name)
    found = texts(await store.read(name))
    expect_equal(len(found), WRITERS * BATCHES * BATCH, "the number of items")
    for start in range(0, len(found), BATCH):
        batch = [text.rsplit(".", 1) for text in found[start : start + BATCH]]
        expect(len({each[0] for each in batch}) == 1, f"batches interleave: {found[start : start + BATCH]}")
        expect([each[1] for each in batch] == [str(n) for n in range(BATCH)], f"a batch is out of order: {batch}")


@rule("order.own-appends")
async def own_appends(world: World) -> None:
    """The appends of each of several concurrent writers are read in the order of its calls."""
    store, name = await world.open(), world.name()
    await _write_concurrently(store, name)
    _expect_order_of_each(texts(await store.read(name)))


@rule("order.processes", "batches", "persistent")
async def processes(world: World) -> None:
    """Batches of writers in several processes are whole and in the order of each writer."""
    store, name = await world.open(), world.name()
    await writers(world, name, count=4, batches=5, size=BATCH)
    found = texts(await store.read(name))
    expect_equal(len(found), 4 * 5 * BATCH, "the number of items")
    for start in range(0, len(found), BATCH):
        owners = {text.rsplit(".", 1)[0] for text in found[start : start + BATCH]}
        expect(len(owners) == 1, f"batches interleave: {found[start : start + BATCH]}")
    _expect_order_of_each(found)


@rule("order.equal-clock")
async def equal_clock(world: World) -> None:
    """The order does not depend on the clock's resolution."""
    store, name = await world.open(), world.name()
    wanted = [str(number) for number in range(20)]
    world.random.shuffle(wanted)
    with _clock(iter(lambda: 1_700_000_000.0, None)):
        for text in wanted:
            await store.append(name, messages(text))
    expect_equal(texts(await store.read(name)), wanted, "the conversation")


@rule("order.backward-clock")
async def backward_clock(world: World) -> None:
    """The order does not depend on a clock that goes back."""
    store, name = await world.open(), world.name()
    wanted = [str(number) for number in range(10)]
    now = time.time()
    for hours, text in enumerate(wanted):
        with _clock(iter(lambda at=now - 3_600 * hours: at, None)):  # type: ignore[misc]
            await store.append(name, messages(text))
    expect_equal(texts(await store.read(name)), wanted, "the conversation")


async def _write_concurrently(store: object, name: str) -> None:
    async def write(writer: int) -> None:
        for number in range(BATCHES):
            await store.append(name, messages(*(f"{writer}.{number}.{place}" for place in range(BATCH))))  # type: ignore[attr-defined]
            await asyncio.sleep(0)

    first_error(await all_of(*(write(number) for number in range(WRITERS))))


def _expect_order_of_each(found: list[str]) -> None:
    for writer in {text.split(".")[0] for text in found}:
        own = [tuple(map(int, text.split(".")[1:])) for text in found if text.split(".")[0] == writer]
        expect(own == sorted(own), f"appends of writer {writer} are out of order: {own}")


@contextmanager
def _clock(values: Iterator[float]) -> Iterator[None]:
    """Replace `time.time` and `time.time_ns` of this process."""
    before = time.time, time.time_ns
    time.time = lambda: next(values)
    time.time_ns = lambda: int(next(values) * 1_000_000_000)
    try:
        yield
    finally:
        time.time, time.time_ns = before
