"""How many statements that several share are under way at once, and who may go when."""

from __future__ import annotations

import asyncio

from exai.db.pace import WINDOW, Gate, Pace, Room
from exai.fairness import Line
from exai.models import LOCAL_OWNER
from tests.support.waiting import WAIT_LIMIT_S, wait_until

FAR_S = 1.0


class Way:
    """A gate that sends `size` at once, and what was sent through it."""

    def __init__(self, room: Room, *, size: int = 1) -> None:
        self.gate = Gate(room, self._send)
        self.gate.saw(FAR_S)
        self.size = size
        self.sent: list[list[str]] = []
        self.last = asyncio.Event()

    def _send(self, waiting: Line[str]) -> str | None:
        if not waiting:
            return None
        self.sent.append([waiting.take() for _ in range(min(self.size, len(waiting)))])
        if "last" in self.sent[-1]:
            self.last.set()
        return self.sent[-1][0]

    async def put(self, *names: str) -> list[list[str]]:
        """What is sent until the end of the turn in which these come."""
        before = len(self.sent)
        for name in names:
            self.gate.put(LOCAL_OWNER, name)
        await asyncio.sleep(0)
        return self.sent[before:]

    async def end(self, name: str) -> None:
        self.gate.end(name)
        await asyncio.sleep(0)


def test_one_statement_goes_to_a_database_that_is_near() -> None:
    """However busy it is: what counts is how quickly it can answer."""
    pace = Pace(1, 5)
    assert pace.at_once == 1
    for took_s in (0.4, 0.0007, 0.02, 0.3):
        pace.saw(took_s)
    assert pace.at_once == 1


def test_the_farther_the_database_the_more_are_under_way() -> None:
    """So that none waits for long until the next one goes; never more than a share of the pool."""
    for took_s, at_once in ((0.0019, 1), (0.0055, 3), (0.009, 5), (0.1, 5)):
        pace = Pace(1, 5)
        pace.saw(took_s)
        assert pace.at_once == at_once, took_s


def test_a_database_that_has_moved_away_is_noticed() -> None:
    """What was quickest is forgotten after a while."""
    pace = Pace(1, 5)
    pace.saw(0.0007)
    for _ in range(2 * WINDOW):
        pace.saw(0.0055)
    assert pace.at_once == 3


def test_some_want_more_than_one_under_way_in_any_case() -> None:
    """But no more than they may have."""
    pace = Pace(2, 5)
    assert pace.at_once == 2
    for took_s, at_once in ((0.0055, 3), (0.0007, 2)):
        pace.saw(took_s)
        assert pace.at_once == at_once
    assert Pace(2, 1).at_once == 1


async def test_what_comes_in_one_turn_goes_together() -> None:
    """Up to what one statement holds."""
    way = Way(Room(10), size=3)
    assert await way.put("a", "b") == [["a", "b"]]
    assert await way.put("c", "d", "e", "f") == [["c", "d", "e"], ["f"]]


async def test_what_comes_meanwhile_waits_for_an_end() -> None:
    """Half of the pool may be under way."""
    way = Way(Room(4), size=2)
    assert await way.put("a", "b", "c", "d", "e") == [["a", "b"], ["c", "d"]]
    assert await way.put("f") == []
    patience = way.gate._timer
    assert patience is not None
    await way.end("a")
    assert way.sent[2:] == [["e", "f"]]
    assert way.gate.under_way == 2
    assert patience.cancelled(), "nobody waits who could lose it"
    assert way.gate._timer is None


async def test_what_was_not_under_way_frees_no_place() -> None:
    """Whoever leaves says so, sent or not."""
    way = Way(Room(4))
    await way.put("a", "b", "c")
    await way.end("c")
    await way.end("c")
    assert way.sent == [["a"], ["b"]]


async def test_one_may_use_what_the_others_leave() -> None:
    """And has its own part of it when they do not; together they never have more than three quarters of the pool."""
    room = Room(12)
    one, other = Way(room), Way(room)
    assert len(await one.put(*"abcdefgh")) == 6
    assert len(await other.put(*"ABCDEFGH")) == 3
    assert one.gate.under_way + other.gate.under_way == 9
    for name in "abc":
        await one.end(name)
    assert (one.gate.under_way, other.gate.under_way) == (3, 3)
    await one.end("d")
    assert (one.gate.under_way, other.gate.under_way) == (3, 3), "its next one went"
    for name in "efgh":
        await one.end(name)
    assert (one.gate.under_way, other.gate.under_way) == (0, 6), "all is left to the other"


async def test_one_is_let_in_by_the_end_of_another() -> None:
    """Nothing of its own has to end."""
    room = Room(4)
    one, other = Way(room), Way(room)
    await one.put("a")
    assert await other.put("A", "B") == [["A"]]
    await one.end("a")
    assert other.sent == [["A"], ["B"]]


async def test_who_meets_nobody_goes_alone() -> None:
    """Without the queue; who meets somebody does not, whoever was first."""
    way = Way(Room(6), size=9)

    async def come(name: str) -> bool:
        alone = await way.gate.goes_alone(name)
        if not alone:
            way.gate.put(LOCAL_OWNER, name)
        return alone

    assert await come("a")
    assert (way.gate.under_way, way.sent) == (1, [])
    assert await asyncio.gather(*map(come, "bcd")) == [False] * 3
    assert await come("e")
    assert (way.gate.under_way, way.sent) == (3, [["b", "c", "d"]])
    assert not await come("f"), "all places are taken"


async def test_a_long_queue_is_worked_off_in_the_places_there_are() -> None:
    """As long as statements are answered; one that is not takes up no place for long."""
    way = Way(Room(4))
    await way.put(*"abcdefg", "last")
    await way.end("a")
    assert way.sent == [["a"], ["b"], ["c"]]
    await wait_until(lambda: len(way.sent) > 3)
    assert way.sent[3:] == [["d"]], "only the place of the one that was under way all the time is free"
    assert way.gate.under_way == 2
    async with asyncio.timeout(WAIT_LIMIT_S):
        await way.last.wait()
    assert way.sent[4:] == [["e"], ["f"], ["g"], ["last"]], "when all hang nobody waits for them"


async def test_those_who_wait_for_long_are_sent() -> None:
    """Whatever is under way may hang."""
    way = Way(Room(4))
    await way.put("a", "b", "c", "d", "last")
    async with asyncio.timeout(WAIT_LIMIT_S):
        await way.last.wait()
    assert way.sent == [["a"], ["b"], ["c"], ["d"], ["last"]]
    assert way.gate.under_way == 3
