"""What the cache holds of a thread, repeated by a reader, is what the database holds."""

from __future__ import annotations

from dataclasses import replace

from exai.cache.entry import Shown
from exai.checkpoints.entries import (
    commit_of_thread,
    lacks_values,
    loaded_of,
    newest_of_entry,
    same_thread,
)
from exai.db.checkpoints.records import NewestCheckpoint, ThreadRow, ThreadState
from exai.models import LOCAL_OWNER, PAGE_MESSAGES, ConversationId, Message
from tests.support.checkpoints import checkpoint, task_writes

PLENTY = 1_000_000
ID = ConversationId("00000000-0000-0000-0000-000000000001")


def thread(revision: int) -> ThreadRow:
    return ThreadRow(ID, LOCAL_OWNER, ThreadState("thread", revision), (), False, "epoch")


def loaded(number: int, text: str, revision: int) -> Shown:
    """What a read of the database gives for the cache."""
    found = checkpoint(str(number), text, version=str(number))
    read = loaded_of(NewestCheckpoint(thread(revision), found, ()), PLENTY)
    return read.conversation, read.messages


def changed(shown: Shown, number: int, text: str) -> Shown:
    """An entry after one more checkpoint."""
    put = checkpoint(str(number), text, version=str(number))
    commit = commit_of_thread(thread(shown[0].revision + 1), put, most_bytes=PLENTY)
    assert commit.added is not None
    return commit.conversation, (*shown[1], *commit.added)


def test_changes_are_repeated_in_their_order() -> None:
    entry = changed(changed(loaded(1, "one", 1), 2, "two"), 3, "three")
    assert same_thread(entry, loaded(3, "three", 3))
    assert not same_thread(entry, loaded(3, "other", 3))
    assert not same_thread(entry, loaded(2, "two", 3))
    assert not same_thread((entry[0], (Message(1, "system", "{", entry[0].created_at),)), loaded(3, "three", 3))


def test_an_older_checkpoint_that_is_stored_later_is_not_the_newest() -> None:
    entry = changed(loaded(5, "five", 1), 2, "two")
    assert same_thread(entry, loaded(5, "five", 2))


def test_writes_before_their_checkpoint_belong_to_it() -> None:
    early = [replace(each, checkpoint_id="2") for each in task_writes("early", "messages")]
    first = loaded_of(NewestCheckpoint(thread(1), checkpoint("1"), tuple(early)), PLENTY)
    newest = newest_of_entry(changed((first.conversation, first.messages), 2, "two"))
    assert newest.checkpoint is not None
    assert newest.checkpoint.writes == tuple(early)


def test_an_entry_that_is_not_whole_is_no_evidence() -> None:
    """A value from before it, or more changes than an entry holds: readers ask the database."""
    fork = replace(checkpoint("9", version="0"), values=())
    commit = commit_of_thread(thread(2), fork, most_bytes=PLENTY)
    assert commit.added is not None
    entry = commit.conversation, (*loaded(1, "one", 1)[1], *commit.added)
    assert lacks_values(newest_of_entry(entry))
    assert same_thread(entry, loaded(9, "nine", 2))
    long = loaded(1, "one", 1)
    for number in range(2, PAGE_MESSAGES + 1):
        long = changed(long, number, str(number))
    assert same_thread(long, loaded(1, "one", 1))


def test_what_does_not_fit_is_not_cached() -> None:
    large = checkpoint("1", "x" * 1_000)
    assert commit_of_thread(thread(2), large, most_bytes=1_000).added is None
    assert commit_of_thread(thread(2), adds_all=False).added is None
    assert commit_of_thread(thread(2)).added == ()
    assert not loaded_of(NewestCheckpoint(thread(1), large, ()), 1_000).is_whole
