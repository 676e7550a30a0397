"""Selection of socket paths, without creating sockets."""

from __future__ import annotations

import pytest

from exai.embedded.ownership import SOCKET_PATH_MAX_BYTES, fits


@pytest.mark.parametrize(
    "parent", ["/", "/tmp", "/home/x/.local/share/exai", "/Users/x/Library/Application Support/exai"]
)
def test_usual_directory_can_hold_sockets(parent: str) -> None:
    """Data directories of Linux and macOS among them."""
    assert fits(parent)


@pytest.mark.parametrize("parent", ["", "relative", "/a,b", "/a%b", "/a?b", "/a#b", '/a"b', "/jürgen"])
def test_directory_that_is_syntax_to_a_driver_cannot(parent: str) -> None:
    """The path becomes a part of an address: a comma begins another host there, a percent sign an escape."""
    assert not fits(parent)


def test_long_directory_cannot() -> None:
    """The kernel has about a hundred bytes for the whole path, counted in bytes."""
    assert fits("/" + "x" * 70)
    assert not fits("/" + "x" * SOCKET_PATH_MAX_BYTES)
