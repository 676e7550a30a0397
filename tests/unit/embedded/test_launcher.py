"""Error messages of a failed start."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from exai.embedded.launcher import LaunchOptions, attach, startup_error
from exai.embedded.ownership import ServerRecord
from exai.errors import StartupError

RUNNING = ServerRecord(
    pid=42, socket_dir="/tmp/exai-1", durable=True, ready=True, postgres_version="18.6", valkey_version="9.1"
)


@pytest.mark.parametrize(
    ("number", "cure"),
    [
        (errno.ENOSPC, "Free some space"),
        (errno.EDQUOT, "Free some space"),
        (errno.EACCES, "this user can write"),
        (errno.EROFS, "this user can write"),
        (errno.EIO, "EXAI_DATABASE__URL"),
    ],
)
def test_failed_system_call_becomes_a_sentence_with_a_cure(number: int, cure: str) -> None:
    """Promise: a failure is an error with its cause and its cure."""
    text = str(startup_error(Path("/data"), OSError(number, "the reason", "/data/file")))
    assert "the reason (/data/file)" in text
    assert cure in text


def test_attached_program_gets_only_what_it_asked_for() -> None:
    """A configured address is not replaced by an embedded server that happens to run."""
    embedded = attach(RUNNING, Path("/data"), LaunchOptions(postgres=False))
    assert embedded.postgres_url is None
    assert embedded.postgres_version is None
    assert embedded.valkey_url == "unix:///tmp/exai-1/valkey.sock?db=0"


def test_attached_program_learns_that_there_is_no_cache() -> None:
    """Nothing that was asked for is missing in silence."""
    without = ServerRecord(pid=42, socket_dir="/tmp/exai-1", durable=True, ready=True, postgres_version="18.6")
    assert "process 42 runs none" in attach(without, Path("/data"), LaunchOptions()).notes[1]


def test_durable_data_is_not_entrusted_to_servers_of_a_test() -> None:
    """They run with fsync off."""
    volatile = ServerRecord(pid=42, socket_dir="/tmp/exai-1", durable=False, ready=True, postgres_version="18.6")
    with pytest.raises(StartupError, match="process 42 holds it, with a Postgres that may lose data"):
        attach(volatile, Path("/data"), LaunchOptions())
