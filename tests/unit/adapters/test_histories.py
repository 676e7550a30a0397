"""What all adapters do: writes that end although their caller is cancelled, blocks, readable texts."""

from __future__ import annotations

import asyncio

import pytest

from exai.adapters.histories import BLOCK_MESSAGES, MAX_TEXT_CHARS, blocks_of, completed, shown
from exai.models import NewMessage


async def test_a_cancelled_caller_ends_after_its_write() -> None:
    began, may_end, ended = asyncio.Event(), asyncio.Event(), []

    async def write() -> None:
        began.set()
        await may_end.wait()
        ended.append("written")

    task = asyncio.create_task(completed(write()))
    await began.wait()
    for _ in range(2):
        task.cancel()
        await asyncio.sleep(0)
    assert not task.done()
    may_end.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert ended == ["written"]


async def test_the_error_of_a_write_is_that_of_its_caller_also_after_a_cancellation() -> None:
    async def fail() -> None:
        await asyncio.sleep(0)
        raise ValueError("refused")

    with pytest.raises(ValueError, match="refused"):
        await completed(fail())
    task = asyncio.create_task(completed(fail()))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


def test_many_or_long_messages_are_several_blocks() -> None:
    assert list(blocks_of([])) == []
    short = [NewMessage("user", "x")] * (2 * BLOCK_MESSAGES + 1)
    assert [len(block) for block in blocks_of(short)] == [BLOCK_MESSAGES, BLOCK_MESSAGES, 1]
    long = [NewMessage("user", "", item="x" * 1_500_000)] * 3
    assert [len(block) for block in blocks_of(long)] == [1, 1, 1]


def test_a_readable_text_is_storable_and_limited() -> None:
    assert shown("a\0b\ud800") == "a\u2400b\ufffd"
    assert len(shown("x" * (MAX_TEXT_CHARS + 1))) == MAX_TEXT_CHARS
