"""Readings that hang: how many there may be, and whom they keep from reading."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from exai.errors import DeadlineExceeded, Overloaded
from exai.files.threads import MAX_HUNG, MAX_OWN_HUNG, PathReading, ReadingThreads
from exai.models import Owner

ALICE, BOB, CAROL = Owner("alice"), Owner("bob"), Owner("carol")


@pytest.fixture
def disk() -> Iterator[threading.Event]:
    """A file system that answers once the event is set, at the end of the test at last."""
    answers = threading.Event()
    yield answers
    answers.set()


async def hang(threads: ReadingThreads, disk: threading.Event, owner: Owner, number: int) -> None:
    def work(reading: PathReading) -> None:
        reading.touch("files", f"/mount/{owner}/{number}")
        disk.wait()

    with pytest.raises(DeadlineExceeded):
        await threads.run(owner, work)


def read(reading: PathReading) -> str:
    reading.touch("files", "/other/file")
    return "content"


async def test_the_hanging_files_of_one_owner_keep_no_other_from_reading(disk: threading.Event) -> None:
    """One with a dead network file system has half of the threads that may hang, and the error names his files only."""
    threads = ReadingThreads(4, 0.02)
    for number in range(MAX_OWN_HUNG):
        await hang(threads, disk, ALICE, number)
    with pytest.raises(Overloaded, match="/mount/alice/0"):
        await threads.run(ALICE, read)
    for number in range(MAX_HUNG - MAX_OWN_HUNG):
        await hang(threads, disk, BOB, number)
    with pytest.raises(Overloaded) as refused:
        await threads.run(CAROL, read)
    assert "/mount" not in str(refused.value)
