"""The timeouts of running calls: a call is stopped at its own, no other is, and all share one timer."""

from __future__ import annotations

import asyncio

from exai.mcp.core.protocol import Call, ClientInfo, Method
from exai.mcp.session.timeouts import RunningCall, Timeouts
from tests.support.mcp_server import WAIT_S


def begun(watch: Timeouts, seconds: float) -> RunningCall:
    running = RunningCall(Call(1, Method("tools/call"), {}, "", ClientInfo()), 10)
    running.task = asyncio.create_task(asyncio.Event().wait())  # type: ignore[assignment]
    loop = asyncio.get_running_loop()
    watch.begin(running, loop.time() + seconds, loop)
    return running


async def ended(running: RunningCall) -> bool:
    assert running.task is not None
    done, _ = await asyncio.wait({running.task}, timeout=WAIT_S)
    return bool(done)


async def test_each_call_is_stopped_at_its_own_time() -> None:
    """A call that begins later may have to end earlier."""
    watch = Timeouts()
    late, early, never = begun(watch, 0.02), begun(watch, 0.0), begun(watch, 3_600.0)
    assert await ended(early)
    assert not late.is_late
    assert await ended(late)
    assert (early.is_late, late.is_late, never.is_late) == (True, True, False)
    assert never.task is not None
    never.task.cancel()


async def test_a_call_that_was_let_go_is_not_stopped() -> None:
    """Its answer is on its way."""
    watch = Timeouts()
    let_go, other = begun(watch, 0.0), begun(watch, 0.001)
    watch.end(let_go)
    assert await ended(other)
    assert not let_go.is_late
    assert let_go.task is not None
    let_go.task.cancel()


async def test_a_call_stopped_for_two_reasons_was_not_only_late() -> None:
    """A peer that cancels gets no answer, even at the last moment."""
    watch = Timeouts()
    found: list[bool] = []

    async def work() -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            found.append(running.is_stopped_by_timeout_only)
            running.undo_stop()

    for cancels in (False, True):
        running = RunningCall(Call(1, Method("tools/call"), {}, "", ClientInfo()), 10)
        running.task = asyncio.create_task(work())
        await asyncio.sleep(0)
        running.stop_late()
        if cancels:
            running.task.cancel()
        assert await ended(running)
    assert found == [True, False]
    assert not watch._ends
