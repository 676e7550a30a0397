"""The queue of one peer: its limit, its order, dropped and waiting messages."""

from __future__ import annotations

import asyncio

from exai.mcp.core.protocol import Send
from exai.mcp.session.outbox import Outbox
from tests.support.mcp_server import WAIT_S


def message(size: int, mark: bytes = b"x") -> Send:
    return Send(mark * size)


async def test_messages_leave_in_the_order_they_came() -> None:
    """An answer must not overtake the progress before it."""
    outbox = Outbox(100)
    for mark in (b"a", b"b", b"c"):
        await outbox.put(message(10, mark))
    assert [(await outbox.get() or Send(b"")).data[:1] for _ in range(3)] == [b"a", b"b", b"c"]


async def test_answers_wait_for_room() -> None:
    """Memory is bounded by the limit, not by the peer."""
    outbox = Outbox(100)
    await outbox.put(message(90))
    waiting = asyncio.create_task(outbox.put(message(20)))
    await asyncio.sleep(0)
    assert not waiting.done()
    await outbox.get()
    async with asyncio.timeout(WAIT_S):
        await waiting
    assert len(outbox) == 1


async def test_a_message_larger_than_the_limit_passes_alone() -> None:
    """Otherwise it would wait for ever."""
    outbox = Outbox(100)
    async with asyncio.timeout(WAIT_S):
        await outbox.put(message(1_000))
    assert len(outbox) == 1


async def test_progress_is_dropped_when_half_is_taken() -> None:
    """The other half is left to answers."""
    outbox = Outbox(100)
    assert outbox.offer(message(40))
    assert not outbox.offer(message(20))
    await outbox.put(message(60))
    assert len(outbox) == 2


async def test_forced_messages_need_no_room_but_have_a_limit() -> None:
    """Messages at shutdown are small; a peer that reads nothing cannot make the queue grow."""
    outbox = Outbox(100)
    await outbox.put(message(100))
    outbox.force(message(50))
    outbox.force(message(60))
    outbox.force(message(60))
    assert len(outbox) == 3


async def test_a_closed_outbox_is_emptied_and_then_ends() -> None:
    """Nothing new, nothing lost."""
    outbox = Outbox(100)
    await outbox.put(message(10))
    outbox.close()
    await outbox.put(message(10))
    assert not outbox.offer(message(10))
    assert await outbox.get() is not None
    assert await outbox.get() is None


async def test_closing_releases_all_waiters() -> None:
    """A reader that waits for messages, writers that wait for room."""
    empty, full = Outbox(100), Outbox(100)
    await full.put(message(100))
    reader = asyncio.create_task(empty.get())
    writers = [asyncio.create_task(full.put(message(100))) for _ in range(3)]
    await asyncio.sleep(0)
    empty.close()
    full.close(discard=True)
    async with asyncio.timeout(WAIT_S):
        assert await reader is None
        await asyncio.gather(*writers)
    assert await full.get() is None


class Door:
    """Sends at once while it is open."""

    def __init__(self) -> None:
        self.is_open = True
        self.sent: list[bytes] = []

    def send_now(self, data: bytes) -> bool:
        if self.is_open:
            self.sent.append(data)
        return self.is_open


async def test_an_answer_that_the_transport_accepts_is_not_queued() -> None:
    """The queue costs one wakeup of a task for each answer."""
    door, outbox = Door(), Outbox(100)
    outbox.send_now = door.send_now
    await outbox.put(message(10, b"a"))
    assert outbox.offer(message(10, b"b"))
    outbox.force(message(10, b"c"))
    assert b"".join(data[:1] for data in door.sent) == b"abc"
    assert len(outbox) == 0


async def test_no_message_overtakes_a_queued_one() -> None:
    """The transport may become writable between the removal of a message from the queue and its write."""
    door, outbox = Door(), Outbox(100)
    outbox.send_now = door.send_now
    door.is_open = False
    await outbox.put(message(10, b"a"))
    door.is_open = True
    await outbox.put(message(10, b"b"))
    assert (await outbox.get() or Send(b"")).data[:1] == b"a"
    assert (await outbox.get() or Send(b"")).data[:1] == b"b"
    await outbox.put(message(10, b"c"))
    assert door.sent == []
    assert (await outbox.get() or Send(b"")).data[:1] == b"c"
    emptied = asyncio.create_task(outbox.get())
    await asyncio.sleep(0)
    await outbox.put(message(10, b"d"))
    assert [data[:1] for data in door.sent] == [b"d"]
    outbox.close()
    assert await emptied is None
