"""Files over the socket: the structured answer, and the text alone."""

from __future__ import annotations

import base64
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from tests.support.client import call, connect, refused
from tests.support.daemon import Daemon, start_daemon
from tests.support.provider_server import ProviderServer

CHINESE = "请解释一下数据库连接池的工作原理。\n错误：连接超时。\n"


@pytest.fixture
async def daemons(
    postgres_url: str, redis_url: str, tmp_path: Path
) -> AsyncIterator[tuple[Daemon, Daemon, ProviderServer]]:
    """Two on one database, each with a data directory of its own."""
    async with AsyncExitStack() as stack:
        provider = await stack.enter_async_context(ProviderServer())
        opened = [
            stack.enter_context(
                start_daemon(
                    {
                        "EXAI_DATA_DIR": str(tmp_path / name),
                        "EXAI_DATABASE__URL": postgres_url,
                        "EXAI_CACHE__URL": redis_url,
                        "KIMI_API_KEY": "sk-test",
                        "EXAI_PROVIDERS__KIMI__BASE_URL": provider.base_url,
                    }
                )
            )
            for name in ("one", "two")
        ]
        yield opened[0], opened[1], provider


async def test_file_of_one_daemon_is_read_and_explained_by_another(
    daemons: tuple[Daemon, Daemon, ProviderServer],
) -> None:
    """The file has a legacy encoding; the answer names the encoding, and the file that was not read."""
    one, two, provider = daemons
    async with connect(one.url) as first, connect(two.url) as second:
        chinese = await call(
            first, "file_put", name="zh.txt", content_base64=base64.b64encode(CHINESE.encode("gb18030")).decode()
        )
        binary = await call(first, "file_put", name="x.bin", content_base64=base64.b64encode(b"\0\1\2\3").decode())
        part = await second.call_tool("file_get", {"file_id": chinese["file_id"]})
        assert part.structuredContent is not None
        assert part.structuredContent["content"] == CHINESE
        assert part.structuredContent["charset"] == "gb18030"
        assert "note: decoded from gb18030" in part.content[0].text  # type: ignore[union-attr]
        answer = await second.call_tool("chat", {"prompt": "Read.", "files": [chinese["file_id"], binary["file_id"]]})
        text = answer.content[0].text  # type: ignore[union-attr]
        assert f"note: file zh.txt ({chinese['file_id']}): decoded from gb18030" in text
        assert f"note: file x.bin ({binary['file_id']}) was not shown to the model: not text, 4 bytes" in text
        assert CHINESE in provider.chats[-1].body["messages"][-1]["content"]


async def test_same_bytes_under_two_names_are_two_files(daemons: tuple[Daemon, Daemon, ProviderServer]) -> None:
    """Each with its media type and its links; a put that comes again is the same file."""
    one, two, _ = daemons
    async with connect(one.url) as first, connect(two.url) as second:
        staging = await call(first, "file_put", name="staging/config.yaml", content="x: 1")
        production = await call(second, "file_put", name="production/config.json", content="x: 1")
        again = await call(second, "file_put", name="staging/config.yaml", content="x: 1")
        assert (staging["created"], production["created"], again["created"]) == (True, True, False)
        assert staging["file_id"] == again["file_id"] != production["file_id"]
        assert staging["sha256"] == production["sha256"]
        assert production["media_type"] == "application/json"
        await call(first, "file_delete", file_id=staging["file_id"])
        assert (await call(first, "file_get", file_id=production["file_id"]))["content"] == "x: 1"
        error = await refused(first, "file_get", file_id=staging["file_id"])
        assert error["code"] == "not_found"


async def test_client_pages_a_file_by_lines_and_reads_large_content_as_it_was_sent(
    daemons: tuple[Daemon, Daemon, ProviderServer],
) -> None:
    """Over the socket, with the official client: each page says where the next one begins."""
    one, two, _ = daemons
    lines = [f"line {number} é\n" for number in range(1, 31)]
    url = "data:image/png;base64," + base64.b64encode(b"\x89PNG\r\n\x1a\n" + bytes(range(256)) * 120).decode()
    async with connect(one.url) as first, connect(two.url) as second:
        file = await call(first, "file_put", name="a.txt", content="".join(lines))
        page = await call(second, "file_get", file_id=file["file_id"], line=3, lines=4)
        assert page["content"] == "".join(lines[2:6])
        rest = await call(second, "file_get", file_id=file["file_id"], line=page["next_line"], lines=100)
        assert rest["content"] == "".join(lines[6:])
        message = {"role": "user", "content": f"see {url} there"}
        name = (await call(first, "conversation_append", messages=[message]))["continuation_id"]
        shown = await call(second, "conversation_get", continuation_id=name)
        assert "<content name=" in shown["messages"][0]["content"]
        assert len(shown["messages"][0]["content"]) < 500
        content, offset = "", 0
        while offset is not None:
            part = await call(second, "conversation_get", continuation_id=name, seq=1, char_offset=offset, whole=True)
            content += part["messages"][0]["content"]
            offset = part["messages"][0]["next_offset"]
        assert content == message["content"]
        assert part["messages"][0]["metadata"] == {}
