"""Files that a client stores or reads cost in proportion to the request, and never reach EXAI's own files."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import orjson
import pytest
from websockets.asyncio.client import ClientConnection, connect

from tests.support.attack import MALLORY_TOKEN, Target
from tests.support.mcp_server import handshake, request

MIB = 1_048_576
FILE_BYTES = 32 * MIB
NUMBERS = itertools.count(1)


@pytest.fixture
def target_settings(tmp_path: Path) -> dict[str, str]:
    """A root above the data directory, as an operator would allow their home."""
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "16439").write_text("everybody's messages")
    return {"EXAI_DATA_DIR": str(tmp_path / "data"), "EXAI_FILES__ROOTS": str(tmp_path)}


@asynccontextmanager
async def mallory(target: Target) -> AsyncIterator[ClientConnection]:
    token = {"Authorization": f"Bearer {MALLORY_TOKEN}"}
    url = f"ws://127.0.0.1:{target.port}/"
    async with connect(url, additional_headers=token, ping_interval=None, max_size=None, open_timeout=30) as peer:
        await asks(peer, handshake())
        yield peer


async def asks(peer: ClientConnection, message: dict[str, Any]) -> dict[str, Any]:
    await peer.send(orjson.dumps(message), text=True)
    async for data in peer:
        found: dict[str, Any] = orjson.loads(data)
        if found.get("id") == message["id"]:
            return found
    raise AssertionError("the connection ended")


async def calls(peer: ClientConnection, tool: str, **arguments: Any) -> dict[str, Any]:
    """Call a tool; its result, be it an error."""
    answer = await asks(peer, request(next(NUMBERS), "tools/call", {"name": tool, "arguments": arguments}))
    result: dict[str, Any] = answer["result"]
    return result


def written(path: Path, seed: str) -> Path:
    line = f"{seed} the quick brown fox jumps over the lazy dog\n".encode()
    path.write_bytes((line * (FILE_BYTES // len(line) + 1))[:FILE_BYTES])
    return path


async def test_store_of_all_owners_is_unreadable_below_any_root(target: Target, tmp_path: Path) -> None:
    """The database's own files, its settings and the daemon's environment were a file_put away."""
    (tmp_path / "link").symlink_to(tmp_path / "data")
    async with mallory(target) as peer:
        for path in (
            tmp_path / "data" / "16439",
            tmp_path / "link" / "16439",
            Path("/proc/self/environ"),
            Path(f"/proc/{target.daemon.process.pid}/environ"),
            Path(f"/proc/self/root{tmp_path}/data/16439"),
        ):
            result = await calls(peer, "file_put", path=str(path))
            assert result["isError"]
            assert "is not below an allowed root" in result["content"][0]["text"]


async def test_calls_that_name_a_large_file_many_times_hold_it_once(target: Target, tmp_path: Path) -> None:
    """60 names of one file of 32 MiB took 2 GB; here calls have 200 names of two files each, two at once."""
    paths = [str(written(tmp_path / f"{n}.txt", f"{n}")) for n in range(2)]
    names = [path.replace("/", "/" + "./" * n, 1) for n in range(100) for path in paths]
    async with target.watched() as seen, mallory(target) as peer, mallory(target) as other:
        messages = [{"role": "user", "content": "all"}]
        results = [
            await calls(peer, "conversation_append", messages=messages, files=names),
            *await asyncio.gather(
                *(calls(each, "conversation_append", messages=messages, files=names) for each in (peer, other))
            ),
        ]
        assert [result.get("isError", False) for result in results] == [False] * 3
        name = results[0]["structuredContent"]["continuation_id"]
        listed = await calls(peer, "file_list", continuation_id=name)
        assert len(listed["structuredContent"]["files"]) == 2
    seen.check()


async def test_reading_a_little_of_a_large_file_reads_no_more(target: Target, tmp_path: Path) -> None:
    """16 clients at once: resources that are too large are refused by their size, and a character is a character."""
    path = written(tmp_path / "large.txt", "large")
    async with mallory(target) as peer:
        stored = await calls(peer, "file_put", path=str(path))
        file_id = stored["structuredContent"]["file_id"]
        async with target.watched() as seen:

            async def reads(number: int) -> None:
                async with mallory(target) as each:
                    answer = await asks(each, request(number, "resources/read", {"uri": f"exai://files/{file_id}"}))
                    assert "bytes" in answer["error"]["message"]
                    for offset in (0, FILE_BYTES // 2, FILE_BYTES - 1):
                        part = await calls(each, "file_get", file_id=file_id, offset=offset, limit=1)
                        assert len(part["structuredContent"]["content"]) == 1

            await asyncio.gather(*(reads(1_000_000 + number) for number in range(16)))
        seen.check()
    assert seen.peak_bytes <= seen.start_bytes + 6 * FILE_BYTES
