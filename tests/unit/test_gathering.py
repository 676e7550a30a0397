"""The parent reads values of its workers: late, silent and ended ones never make a counter go back."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from exai.background import open_background
from exai.daemon.control import Channel, ControlMessage, Parent, parent_watched
from exai.daemon.gathering import LIVE, METRICS, Gathering
from exai.monitoring.exposition import add_up_values, as_json, from_json
from exai.monitoring.metrics import MetricsRecorder


class Rig:
    """Workers by their numbers, each with a recorder, and the parent's end of their channels."""

    def __init__(self) -> None:
        self.gathering = Gathering()
        self.recorders: dict[int, MetricsRecorder] = {}
        self.channels: dict[int, Channel] = {}

    @asynccontextmanager
    async def worker(self, pid: int, *, is_silent: bool = False) -> AsyncIterator[Parent]:
        ours, theirs = socket.socketpair()
        for each in (ours, theirs):
            each.setblocking(False)
        channel = self.channels[pid] = await Channel.open(ours)
        listening = asyncio.create_task(self._listen(pid, channel))
        recorder = self.recorders[pid] = MetricsRecorder()
        async with parent_watched(theirs, asyncio.Event()) as parent:
            assert parent is not None
            if not is_silent:
                parent.readers[METRICS] = lambda: as_json(recorder.values())
            yield parent
        del self.channels[pid]
        await listening
        channel.close()

    async def _listen(self, pid: int, channel: Channel) -> None:
        async with open_background() as background:
            async for message in channel.messages():
                if "gather" in message:
                    background.start("gather", self._answer(channel, message))
                else:
                    self.gathering.take(pid, message)
        self.gathering.end(pid)

    async def _answer(self, channel: Channel, message: ControlMessage) -> None:
        gathered = await self.gathering.gather(message["gather"], list(self.channels.items()))
        channel.send({"number": message["number"], "gathered": gathered})

    async def calls(self, parent: Parent) -> float:
        values = add_up_values(map(from_json, await parent.gather(METRICS)))
        return sum(series.total for series in values["exai_calls_total"].series.values())


@pytest.fixture
def rig() -> Rig:
    return Rig()


async def test_any_worker_gives_the_sum_of_all(rig: Rig) -> None:
    """Whichever a scrape meets."""
    async with rig.worker(1) as one, rig.worker(2) as other:
        rig.recorders[1].count("calls_total", 3)
        rig.recorders[2].count("calls_total", 4)
        assert [await rig.calls(one), await rig.calls(other)] == [7, 7]


async def test_a_worker_that_ended_keeps_what_it_had_counted(rig: Rig) -> None:
    """One that drained gives its last values; of one that was killed those of the last scrape stay."""
    async with rig.worker(1) as one:
        async with rig.worker(2) as other:
            rig.recorders[2].count("calls_total", 4)
            rig.recorders[1].count("calls_total", 1)
            assert await rig.calls(one) == 5
            rig.recorders[2].count("calls_total", 2)
            await other.give_last(METRICS)
        async with rig.worker(3):
            rig.recorders[3].count("calls_total", 10)
            assert await rig.calls(one) == 17
        assert await rig.calls(one) == 17


async def test_a_worker_that_does_not_answer_counts_as_it_was(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its event loop may be blocked."""
    monkeypatch.setattr("exai.daemon.gathering.WORKER_LIMIT_S", 0.05)
    async with rig.worker(1) as one, rig.worker(2) as other:
        rig.recorders[1].count("calls_total", 1)
        rig.recorders[2].count("calls_total", 4)
        assert await rig.calls(one) == 5
        other.readers.clear()
        rig.recorders[1].count("calls_total", 1)
        assert await rig.calls(one) == 6


async def test_a_value_that_no_worker_offers_is_empty(rig: Rig) -> None:
    """An older worker knows fewer of them."""
    async with rig.worker(1) as one:
        assert await one.gather(LIVE) == []


async def test_the_end_of_the_parent_ends_the_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    """And stops the worker."""
    monkeypatch.setattr("exai.daemon.control.GATHER_LIMIT_S", 0.05)
    ours, theirs = socket.socketpair()
    theirs.setblocking(False)
    stop = asyncio.Event()
    async with parent_watched(theirs, stop) as parent:
        assert parent is not None
        with pytest.raises(TimeoutError):
            await parent.gather(METRICS)
        ours.close()
        await stop.wait()
        assert not parent.is_retired
