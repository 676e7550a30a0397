"""The directory of a client: as a header, and in `_meta` of one call."""

from __future__ import annotations

from pathlib import Path

import pytest

from exai.mcp.core.directories import DIRECTORY_HEADER, directory_header, directory_of, directory_of_call
from exai.mcp.core.jsonrpc import RpcError
from exai.mcp.stdio.daemon_connection import directory_of_client


@pytest.mark.parametrize("directory", ["/home/a b/ü", "/tmp/100%", "/x/\udc80", "/a\nb", "/a, b"])
def test_any_directory_is_read_back_from_its_header(directory: str) -> None:
    """A header holds ASCII only; a name is any bytes."""
    headers = directory_header(directory)
    assert headers[DIRECTORY_HEADER].isascii()
    assert headers[DIRECTORY_HEADER].isprintable()
    assert directory_of(headers) == directory


@pytest.mark.parametrize("directory", ["/", "", "relative", "..", "/" + "x" * 5_000])
def test_no_directory_of_a_project_is_no_header(directory: str) -> None:
    """Desktop applications start their servers at the top; a long value would be refused with its connection."""
    assert directory_header(directory) == {}
    assert directory_of({}) == ""


def test_a_call_comes_before_its_connection() -> None:
    assert directory_of_call({}, "/a") == "/a"
    assert directory_of_call({"_meta": {}}, "/a") == "/a"
    assert directory_of_call({"_meta": {"exai/directory": "/b"}}, "/a") == "/b"
    with pytest.raises(RpcError, match="must be a string"):
        directory_of_call({"_meta": {"exai/directory": ["/b"]}}, "/a")


def test_only_a_daemon_of_this_machine_is_sent_the_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another one has no such directory. One that was removed is no reason not to connect."""
    monkeypatch.delenv("CLAUDE_PROJECT_DIR", raising=False)
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    assert directory_of(directory_of_client("ws://127.0.0.1:8079/")) == str(gone)
    assert directory_of_client("wss://exai.example.com/") == {}
    gone.rmdir()
    assert directory_of_client("ws://localhost:8079/") == {}
    monkeypatch.setenv("CLAUDE_PROJECT_DIR", str(tmp_path))
    assert directory_of(directory_of_client("ws://[::1]:8079/")) == str(tmp_path)
