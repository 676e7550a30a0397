"""Places shared by owners: all are used, at most half per owner while others wait, each owner in order."""

from __future__ import annotations

import asyncio
from collections import Counter, deque

import pytest
from hypothesis import given
from hypothesis import strategies as st

from exai.errors import DeadlineExceeded
from exai.fairness import FairQueue, Places, Turns
from exai.models import Owner
from exai.resilience import with_deadline

ALICE, BOB, CAROL = Owner("alice"), Owner("bob"), Owner("carol")
OWNERS = (ALICE, BOB, CAROL, None)

Step = tuple[str, Owner | None, int]
STEPS = st.lists(
    st.tuples(st.sampled_from(["ask", "ask", "end", "leave"]), st.sampled_from(OWNERS), st.integers(0, 50)),
    max_size=80,
)


class Model:
    """Drives `Turns` as `Places` does, and checks after each step what must hold."""

    def __init__(self, size: int, reserve: int) -> None:
        self.turns: Turns[int] = Turns(size, reserve=reserve)
        self.size, self.reserve, self.free = size, reserve, size
        self.holding: list[Owner | None] = []
        self.waiting: dict[Owner | None, deque[int]] = {owner: deque() for owner in OWNERS}

    def ask(self, owner: Owner | None, number: int) -> None:
        if self.turns.may_begin(owner, self.free):
            assert not self.waiting[owner]
            self.turns.begin(owner)
            self.hold(owner)
        else:
            self.turns.wait(owner, number)
            self.waiting[owner].append(number)

    def end(self, at: int) -> None:
        if not self.holding:
            return
        self.turns.end(self.holding.pop(at % len(self.holding)))
        self.free += 1
        while (chosen := self.turns.choose(self.free)) is not None:
            owner, number = chosen
            assert self.waiting[owner].popleft() == number
            others = any(queue for each, queue in self.waiting.items() if each != owner and self.may_have(each))
            assert self.may_have(owner) or not others
            self.hold(owner)

    def leave(self, owner: Owner | None, at: int) -> None:
        queue = self.waiting[owner]
        if queue:
            number = queue[at % len(queue)]
            queue.remove(number)
            self.turns.leave(owner, number)
            self.turns.leave(owner, number)

    def hold(self, owner: Owner | None) -> None:
        self.holding.append(owner)
        self.free -= 1

    def may_have(self, owner: Owner | None) -> bool:
        return owner is None or self.holding.count(owner) < max(1, self.size // 2)

    def check(self) -> None:
        assert 0 <= self.free <= self.size
        assert bool(self.turns) == any(self.waiting.values())
        for owner, queue in self.waiting.items():
            assert self.turns.held(owner) == self.holding.count(owner)
            if queue and self.may_have(owner):
                assert self.free == 0
            if queue:
                assert self.free <= self.reserve


@given(st.integers(1, 9), st.integers(0, 2), STEPS)
def test_no_place_is_free_while_a_request_that_may_have_it_waits(size: int, reserve: int, steps: list[Step]) -> None:
    """The order within an owner, the counts and the half hold for any sequence of arrivals and ends."""
    model = Model(size, reserve)
    for number, (what, owner, at) in enumerate(steps):
        if what == "ask":
            model.ask(owner, number)
        elif what == "end":
            model.end(at)
        else:
            model.leave(owner, at)
        model.check()
    while model.holding:
        model.end(0)
        model.check()
    assert not model.turns


@given(st.integers(2, 9), st.integers(1, 40))
def test_an_owner_that_floods_delays_another_by_one_place(size: int, flood: int) -> None:
    """The next free place is given to the owner that has fewer."""
    model = Model(size, 0)
    for number in range(size + flood):
        model.ask(ALICE, number)
    model.ask(BOB, 1_000)
    model.end(0)
    assert model.turns.held(BOB) == 1


def test_waiting_owners_are_served_in_turn() -> None:
    """One place each, for queues of any length."""
    turns: Turns[str] = Turns(8)
    for number in range(4):
        turns.wait(ALICE, f"alice {number}")
    for number in range(2):
        turns.wait(BOB, f"bob {number}")
    turns.wait(None, "batch")
    order = [chosen[1] for chosen in (turns.choose(1) for _ in range(6)) if chosen]
    assert order == ["alice 0", "bob 0", "batch", "alice 1", "bob 1", "alice 2"]


def test_a_reserve_is_left_to_other_owners() -> None:
    """An owner that is alone stops short of the last places, and another owner takes one without waiting."""
    places = Places(8, reserve=2)
    assert sum(places.take_nowait(ALICE) for _ in range(20)) == 6
    assert places.take_nowait(BOB)
    assert places.take_nowait(None)
    assert places.free == 0


async def test_owners_share_places_half_and_half_under_contention() -> None:
    """Two owners that always want more end up with half each."""
    places, held = Places(6), Counter[Owner]()
    most: list[tuple[int, int]] = []

    async def work(owner: Owner) -> None:
        async with places.hold(owner):
            held[owner] += 1
            most.append((held[ALICE], held[BOB]))
            await asyncio.sleep(0)
            held[owner] -= 1

    async with asyncio.TaskGroup() as group:
        for owner in (ALICE, BOB):
            for _ in range(60):
                group.create_task(work(owner))
    assert places.free == 6
    contended = most[20:100]
    assert max(alice for alice, _ in contended) == max(bob for _, bob in contended) == 3
    assert max(alice + bob for alice, bob in most) == 6


async def test_cancelled_waiters_lose_no_place() -> None:
    """Also not one cancelled in the instant in which it was given the place."""
    places = Places(1)
    await places.take(ALICE)
    tasks = [asyncio.create_task(places.take(owner)) for owner in (BOB, CAROL, BOB)]
    await asyncio.sleep(0)
    tasks[0].cancel()
    places.give(ALICE)
    # CAROL was chosen because BOB's first request had been cancelled; she is cancelled before she runs.
    tasks[1].cancel()
    assert await asyncio.gather(*tasks[:2], return_exceptions=True) != []
    await tasks[2]
    assert places.held(BOB) == 1
    places.give(BOB)
    assert places.free == 1


async def test_the_wait_is_bounded_by_the_deadline_and_the_limit() -> None:
    """The error names the one that ended it."""
    places = Places(1)
    await places.take(ALICE)
    with with_deadline(0.01), pytest.raises(DeadlineExceeded, match="connections"):
        await places.take(BOB, None, "connections")
    with pytest.raises(TimeoutError):
        await places.take(BOB, 0.01)


@given(st.lists(st.tuples(st.sampled_from(["put", "put", "take", "back", "leave"]), st.sampled_from(OWNERS))))
def test_a_queue_keeps_each_owners_order(steps: list[tuple[str, Owner | None]]) -> None:
    """For any items that are taken, put back in reverse, or removed."""
    line: FairQueue[tuple[Owner | None, int]] = FairQueue()
    model: dict[Owner | None, deque[tuple[Owner | None, int]]] = {owner: deque() for owner in OWNERS}
    for number, (what, owner) in enumerate(steps):
        queue = model[owner]
        if what == "put":
            line.put(owner, (owner, number))
            queue.append((owner, number))
        elif what == "leave" and queue:
            line.leave(owner, queue[-1])
            line.leave(owner, queue.pop())
        elif what in ("take", "back") and line:
            first = next(iter(line))
            waiter = line.take()
            assert waiter == model[first].popleft()
            if what == "back":
                line.put_back(first, waiter)
                model[first].appendleft(waiter)
        assert len(line) == sum(map(len, model.values()))
        assert set(line) == {each for each, waiting in model.items() if waiting}


def test_a_line_serves_a_short_queue_beside_a_long_one() -> None:
    """The second owner's first waiter is the second to come out."""
    line: FairQueue[str] = FairQueue()
    for number in range(100):
        line.put(ALICE, f"alice {number}")
    line.put(BOB, "bob")
    assert [line.take() for _ in range(3)] == ["alice 0", "bob", "alice 1"]
