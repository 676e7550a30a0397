"""When items are sent together or alone, and their outcomes."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from exai.batching import MAX_PASSED_OVER, Batcher, Fit, Queue, Unanswered, Unlimited
from exai.errors import CacheError, DatabaseError, DeadlineExceeded, ExaiError
from exai.models import LOCAL_OWNER, Owner
from exai.resilience import request_deadline, with_deadline
from tests.support.waiting import WAIT_LIMIT_S, wait_until

ALICE, BOB = Owner("alice"), Owner("bob")


class Places(Unlimited):
    """So many places, and a short patience with what hangs."""

    def __init__(self, places: int) -> None:
        self.places, self.interval_s, self.starts = places, 0.0, 0

    def attach(self, batcher: Queue) -> None:
        self.batcher = batcher

    def may_send(self, in_flight: int) -> bool:
        return in_flight < self.places

    def pause_s(self, in_flight: int) -> float:
        return self.interval_s if in_flight else 0.0

    def note_start(self) -> None:
        self.starts += 1

    def max_wait_s(self) -> float | None:
        return 0.02

    def note_end(self) -> None:
        self.batcher.look()


class Way:
    """A batcher whose answers are held until `answer`; it records the batches in order."""

    def __init__(self, places: int = 1, *, max_items: int = 9, is_read: bool = False, choose: object = None) -> None:
        self.sent: list[list[str]] = []
        self.answers: dict[str, asyncio.Future[None]] = {}
        self.error: ExaiError | None = None
        self.limit = Places(places)
        self.batcher: Batcher[str, str] = Batcher(
            self.limit,
            self.send,
            self.fallback,
            failure=lambda item, error: None if isinstance(error, DatabaseError) else CacheError("redis", item),
            name="batch",
            what="a server",
            max_items=max_items,
            is_read=is_read,
            choose=choose,  # type: ignore[arg-type]
        )

    async def send(self, items: Sequence[str]) -> list[str | None]:
        assert request_deadline.get() is None
        await self._answer(items)
        if self.error is not None:
            raise self.error
        return [None if item.startswith("odd") else f"{item} of {len(items)}" for item in items]

    async def fallback(self, item: str) -> str:
        await self._answer([item])
        return f"{item} alone"

    async def _answer(self, items: Sequence[str]) -> None:
        self.sent.append(list(items))
        answer = self.answers[items[0]] = asyncio.get_running_loop().create_future()
        await answer

    async def start(self, *items: str, owner: Owner = LOCAL_OWNER) -> list[asyncio.Task[str]]:
        """Add these items in one iteration of the loop, and let their batches be sent."""
        tasks = [asyncio.create_task(self.batcher.run(owner, item)) for item in items]
        await self.settle()
        return tasks

    async def answer(self, *first: str) -> None:
        for each in first:
            self.answers.pop(each).set_result(None)
        await self.settle()

    async def settle(self) -> None:
        for _ in range(8):
            await asyncio.sleep(0)


async def test_items_that_arrive_within_an_interval_go_together() -> None:
    """They do not take a place each, and nothing else has to happen for them to be sent."""
    way = Way(places=9)
    way.limit.interval_s = 3_600
    first = await way.start("first")
    others = [*await way.start("a"), *await way.start("b"), *await way.start("c", "d")]
    assert way.sent == [["first"]]
    way.limit.interval_s = 0.001
    # The timer of the long interval is running; the end of a batch looks again.
    await way.answer("first")
    assert way.sent == [["first"], ["a", "b", "c", "d"]]
    later = await way.start("e")
    await wait_until(lambda: way.sent[-1] == ["e"])
    assert way.limit.starts == 3
    await way.answer("a", "e")
    assert await asyncio.gather(*first, *others, *later) == [
        "first alone",
        *(f"{item} of 4" for item in "abcd"),
        "e alone",
    ]


async def test_interval_of_a_batcher_that_closes_does_not_outlive_it() -> None:
    """Its waiting callers get the reason."""
    way = Way(places=9)
    way.limit.interval_s = 3_600
    tasks = [*await way.start("first"), *await way.start("second")]
    await way.batcher.close(lambda: CacheError("redis", "closed"))
    assert way.batcher._pause is None or way.batcher._pause.cancelled()
    way.answers["first"].set_result(None)
    assert [type(each) for each in await asyncio.gather(*tasks, return_exceptions=True)] == [str, CacheError]


async def test_items_of_one_turn_go_together() -> None:
    """Up to the size of a batch; the others are sent at once if the limit allows it."""
    way = Way(2, max_items=3)
    tasks = await way.start("a", "b", "c", "d")
    assert way.sent == [["a", "b", "c"], ["d"]]
    await way.answer("a", "d")
    assert [await task for task in tasks] == ["a of 3", "b of 3", "c of 3", "d alone"]


async def test_one_that_meets_no_other_goes_alone() -> None:
    way = Way(3)
    (first,) = await way.start("a")
    (second,) = await way.start("b")
    assert way.sent == [["a"], ["b"]]
    assert way.batcher.in_flight == 2
    await way.answer("a", "b")
    assert (await first, await second) == ("a alone", "b alone")
    assert way.batcher.in_flight == 0


async def test_items_that_come_meanwhile_wait_for_an_end_and_go_together() -> None:
    way = Way()
    tasks = await way.start("a")
    for item in "bcd":
        tasks += await way.start(item)
    assert way.sent == [["a"]]
    await way.answer("a")
    assert way.sent[1:] == [["b", "c", "d"]]
    await way.answer("b")
    assert [await task for task in tasks] == ["a alone", "b of 3", "c of 3", "d of 3"]
    assert way.batcher._timer is None


async def test_owners_take_turns() -> None:
    """A flood of one owner's items does not put those of another at the end; those of one owner keep their order."""
    way = Way(max_items=4)
    tasks = await way.start("first")
    tasks += await way.start(*"abcdef", owner=ALICE)
    tasks += await way.start("x", "y", owner=BOB)
    await way.answer("first")
    assert way.sent[1:] == [["a", "x", "b", "y"]]
    await way.answer("a")
    assert way.sent[2:] == [["c", "d", "e", "f"]]
    await way.answer("c")
    await asyncio.gather(*tasks)


async def test_an_item_without_an_outcome_is_sent_by_its_caller() -> None:
    """In its caller's context; the others are not concerned."""
    way = Way()
    tasks = await way.start("a", "odd", "c")
    await way.answer("a")
    assert way.sent == [["a", "odd", "c"], ["odd"]]
    await way.answer("odd")
    assert [await task for task in tasks] == ["a of 3", "odd alone", "c of 3"]


@pytest.mark.parametrize("error", [DatabaseError("database", "failed"), CacheError("redis", "failed")])
async def test_each_item_of_a_failed_batch_is_judged_for_itself(error: ExaiError) -> None:
    """Sent by its caller, or failed with an exception of its own."""
    way = Way()
    way.error = error
    tasks = await way.start("a", "b")
    await way.answer("a")
    if isinstance(error, DatabaseError):
        await way.answer("a", "b")
        assert [await task for task in tasks] == ["a alone", "b alone"]
    else:
        found = await asyncio.gather(*tasks, return_exceptions=True)
        assert [type(each) for each in found] == [CacheError] * 2
        assert found[0] is not found[1]
    assert way.batcher.in_flight == 0


async def test_a_deadline_says_whether_the_item_was_sent() -> None:
    """Before that nothing can have been written, afterwards it is not known."""
    way = Way()

    async def hurried(item: str) -> str:
        with with_deadline(0.02):
            return await way.batcher.run(LOCAL_OWNER, item)

    sent = [asyncio.create_task(hurried("a")), *await way.start("b")]
    waits = asyncio.create_task(hurried("c"))
    with pytest.raises(Unanswered):
        await sent[0]
    way.batcher._limit.places = 0  # type: ignore[attr-defined]
    with pytest.raises(DeadlineExceeded) as caught:
        await waits
    assert type(caught.value) is DeadlineExceeded
    await way.answer("a")
    assert await sent[1] == "b of 2"
    assert way.sent == [["a", "b"]]


async def test_a_cancelled_caller_does_not_affect_the_others() -> None:
    """Neither before its batch is sent nor afterwards."""
    way = Way()
    first = await way.start("a")
    waiting = await way.start("b", "c", "d")
    waiting[0].cancel()
    await way.settle()
    await way.answer("a")
    assert way.sent[1:] == [["c", "d"]]
    waiting[1].cancel()
    await way.settle()
    await way.answer("c")
    assert await waiting[2] == "d of 2"
    assert await first[0] == "a alone"
    assert way.batcher.in_flight == 0


@pytest.mark.parametrize("is_read", [True, False])
async def test_a_batch_that_no_caller_waits_for_is_cancelled_if_it_is_a_read(is_read: bool) -> None:
    way = Way(is_read=is_read)
    tasks = await way.start("a", "b")
    for task in tasks:
        task.cancel()
    await way.settle()
    assert way.answers["a"].cancelled() == is_read
    assert way.batcher.in_flight == (0 if is_read else 1)
    if not is_read:
        await way.answer("a")
    assert way.batcher.in_flight == 0


async def test_what_does_not_fit_waits_for_a_later_batch_in_its_order() -> None:
    def choose() -> object:
        taken: set[str] = set()

        def fit(item: str) -> Fit:
            if item == "stop" and taken:
                return "full"
            if item[0] in taken:
                return "later"
            taken.add(item[0])
            return "take"

        return fit

    way = Way(choose=choose)
    tasks = await way.start("a1", "a2", "b1", "a3", "stop", "c1")
    assert way.sent == [["a1", "b1"]]
    await way.answer("a1")
    assert way.sent[1:] == [["a2"]], "the next one does not go with it, and what is full ends the batch"
    await way.answer("a2")
    assert way.sent[2:] == [["a3"]]
    await way.answer("a3")
    assert way.sent[3:] == [["stop", "c1"]]
    await way.answer("stop")
    await asyncio.gather(*tasks)


async def test_few_are_passed_over() -> None:
    """A long queue of incompatible items costs each batch a bounded time."""
    seen: list[str] = []

    def choose() -> object:
        seen.clear()

        def fit(item: str) -> Fit:
            seen.append(item)
            return "take" if len(seen) == 1 else "later"

        return fit

    way = Way(choose=choose)
    tasks = await way.start(*(f"{number}" for number in range(3 * MAX_PASSED_OVER)))
    assert len(seen) == 1 + MAX_PASSED_OVER
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def test_batches_that_hang_are_waited_for_no_more() -> None:
    """If all of them do, what waits is sent; as long as one is answered the queue keeps to its places."""
    way = Way(2, max_items=1)
    tasks = await way.start(*"abcdef")
    assert way.sent == [["a"], ["b"]]
    await way.answer("a")
    assert way.sent[2:] == [["c"]]
    await wait_until(lambda: len(way.sent) > 3)
    assert way.sent[3:] == [["d"]], "only the place of the one that was in flight all the time is free"
    assert way.batcher.in_flight == 2
    await wait_until(lambda: len(way.sent) == 6)
    for each in "bcdef":
        way.answers.pop(each).set_result(None)
    async with asyncio.timeout(WAIT_LIMIT_S):
        await asyncio.gather(*tasks)


@pytest.mark.parametrize("turns", range(6))
async def test_closing_leaves_no_caller_waiting(turns: int) -> None:
    """Whether its item was sent, waits, or has just arrived; nothing is sent afterwards."""
    way = Way()
    tasks = [asyncio.create_task(way.batcher.run(LOCAL_OWNER, item)) for item in "ab"]
    for _ in range(turns):
        await asyncio.sleep(0)
    tasks.append(asyncio.create_task(way.batcher.run(LOCAL_OWNER, "c")))
    await way.batcher.close(lambda: CacheError("redis", "closed"))
    sent = list(way.sent)
    async with asyncio.timeout(WAIT_LIMIT_S):
        found = await asyncio.gather(*tasks, return_exceptions=True)
    assert [type(each) for each in found] == [CacheError] * 3
    assert way.sent == sent
    assert way.batcher.in_flight == 0
