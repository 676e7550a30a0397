"""A background task ends with its block, and its failure ends the block."""

from __future__ import annotations

import asyncio
import traceback

import pytest

from exai.background import open_background, running
from exai.errors import NotFound
from tests.support.waiting import WAIT_LIMIT_S


async def fail() -> None:
    raise ZeroDivisionError


async def wait_forever() -> None:
    await asyncio.Event().wait()


async def test_a_task_is_cancelled_when_its_block_ends() -> None:
    """Its own cleanup is waited for."""
    started, cleaned = asyncio.Event(), []

    async def work() -> None:
        started.set()
        try:
            await wait_forever()
        finally:
            await asyncio.sleep(0)
            cleaned.append(True)

    async with running("work", work()):
        await started.wait()
    assert cleaned == [True]


async def test_a_failure_ends_the_block_with_the_same_exception() -> None:
    """The traceback names the task; the waiting owner does not see a cancellation."""
    with pytest.raises(ZeroDivisionError) as caught:
        async with asyncio.timeout(WAIT_LIMIT_S), running("conversation-watch", fail()):
            await wait_forever()
    assert "background task 'conversation-watch'" in "".join(traceback.format_exception(caught.value))
    owner = asyncio.current_task()
    assert owner is not None
    assert owner.cancelling() == 0
    await asyncio.sleep(0)


async def test_a_failure_while_the_block_ends_is_raised() -> None:
    """Also one of the task's own cleanup."""

    async def work() -> None:
        try:
            await wait_forever()
        finally:
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        async with running("work", work()):
            await asyncio.sleep(0)


async def test_a_task_may_end_by_itself() -> None:
    async def work() -> str:
        return "done"

    async with open_background() as background:
        assert await background.start("work", work()) == "done"


async def test_an_error_of_the_block_passes_unchanged() -> None:
    """Users of the library catch NotFound, not a group with a NotFound in it."""
    with pytest.raises(NotFound):
        async with running("work", wait_forever()):
            raise NotFound("conversation", "x", "List them")


async def test_a_cancellation_from_outside_stays_one() -> None:
    """Also when the background task fails in the same turn of the event loop."""
    for work in (wait_forever, fail):
        entered = asyncio.Event()

        async def block(entered: asyncio.Event = entered, work=work) -> None:  # type: ignore[no-untyped-def]
            async with running("work", work()):
                entered.set()
                await wait_forever()

        task = asyncio.create_task(block())
        await entered.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task


async def test_the_first_of_several_failures_is_raised() -> None:
    """The other tasks are cancelled."""
    ended = []

    async def work() -> None:
        try:
            await wait_forever()
        finally:
            ended.append(True)

    with pytest.raises(ZeroDivisionError):
        async with open_background() as background:
            background.start("a", work())
            background.start("b", fail())
            await wait_forever()
    assert ended == [True]
