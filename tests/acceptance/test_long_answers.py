"""Results longer than clients show come in parts, which are requested by ids and positions."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest
from mcp import ClientSession
from mcp.types import CallToolResult, TextContent

from exai.token_estimate import text_tokens
from tests.support.client import connect
from tests.support.daemon import Daemon
from tests.support.provider_server import ProviderServer, kimi_answer

SHOWN_CHARS = 49_900
"""Up to which Claude Code hands a model the whole answer."""

REPLY_BYTES = 1_048_576

LONG = "".join(f'{number}: "Größe" \\ 漢字 😀\n' for number in range(7_000))


async def bounded(session: ClientSession, tool: str, *, chars: int = SHOWN_CHARS, **arguments: Any) -> dict[str, Any]:
    """Call a tool and hold its answer to the limits, text and structure each."""
    result = await session.call_tool(tool, arguments)
    assert not result.isError, result.content
    assert result.structuredContent is not None
    shown = json.dumps(result.structuredContent, ensure_ascii=False, separators=(",", ":"))
    assert len(shown.encode("utf-16-le")) // 2 <= chars
    assert len(result.model_dump_json().encode()) <= REPLY_BYTES
    (text,) = result.content
    assert text.type == "text"
    assert len(text.text) > 0
    return result.structuredContent


async def test_a_long_answer_is_read_on_by_its_handle(daemon: Daemon, provider: ProviderServer) -> None:
    """The rest is in the stored message, so any connection, daemon or day will do."""
    provider.script(kimi_answer(LONG, reasoning=""))
    async with connect(daemon.url) as session:
        answer = await bounded(session, "chat", prompt="Tell me everything.", idempotency_key="one")
        repeated = await bounded(session, "chat", prompt="Tell me everything.", idempotency_key="one")
        assert (repeated["content"], repeated["next_offset"]) == (answer["content"], answer["next_offset"])
    handle = {"continuation_id": answer["continuation_id"], "seq": answer["seq"]}
    content, offset = answer["content"], answer["next_offset"]
    async with connect(daemon.url) as session:
        while offset is not None:
            page = await bounded(session, "conversation_get", **handle, char_offset=offset)
            (message,) = page["messages"]
            content, offset = content + message["content"], message["next_offset"]
        assert content == LONG
        whole = await bounded(session, "conversation_get", **handle, max_chars=400_000, chars=402_000)
        assert [each["content"] for each in whole["messages"]] == [LONG]
        newest = await bounded(session, "conversation_get", continuation_id=handle["continuation_id"])
        assert [each["seq"] for each in newest["messages"]] == [2]
        assert newest["next_before_seq"] == 2
        for arguments, field in (
            ({"seq": 9}, "there is no message '9'"),
            ({"seq": 2, "char_offset": len(LONG)}, "char_offset: is"),
            ({"char_offset": 5}, "char_offset: comes without seq"),
            ({"seq": 2, "offset": 1}, "seq: comes with"),
        ):
            refused = await session.call_tool("conversation_get", {**handle, "seq": None, **arguments})
            assert refused.isError
            assert field in refused.content[0].text


async def test_exports_come_in_parts_that_fit(daemon: Daemon) -> None:
    """The joined parts can be imported, even if the conversation was renamed meanwhile."""
    messages = [{"role": "user", "content": part} for part in ("short", LONG, "\x01" * 50_000, "last")]
    async with connect(daemon.url) as session:
        stored = await bounded(session, "conversation_append", messages=messages)
        source = stored["continuation_id"]
        for kind in ("markdown", "jsonl"):
            text, cursor = "", {"after_seq": 0, "char_offset": 0}
            while cursor["after_seq"] is not None:
                part = await bounded(session, "conversation_export", continuation_id=source, format=kind, **cursor)
                text += part["text"]
                cursor = {"after_seq": part["next_after_seq"], "char_offset": part["next_char_offset"]}
                # Renaming changes the first lines of the text, which have been given out.
                await session.call_tool("conversation_update", {"continuation_id": source, "title": f"at {len(text)}"})
            copied = await bounded(
                session, "conversation_import", text=text, format=kind, continuation_id=f"copy {kind}"
            )
            assert copied["messages"] == 4
            for seq, message in enumerate(messages, 1):
                read, offset = "", 0
                while offset is not None:
                    page = await bounded(
                        session, "conversation_get", continuation_id=f"copy {kind}", seq=seq, char_offset=offset
                    )
                    read, offset = read + page["messages"][0]["content"], page["messages"][0]["next_offset"]
                assert read == message["content"]


async def test_files_come_in_parts_that_fit(daemon: Daemon) -> None:
    """Base64 is longer than the bytes, and a text longer in JSON than by itself."""
    data = bytes(range(256)) * 700
    files = ({"content": LONG}, LONG.encode()), ({"content_base64": base64.b64encode(data).decode()}, data)
    async with connect(daemon.url) as session:
        for given, whole in files:
            file = await bounded(session, "file_put", name="long", **given)
            found, offset = b"", 0
            while offset is not None:
                part = await bounded(session, "file_get", file_id=file["file_id"], offset=offset)
                piece = part["content"]
                found += base64.b64decode(piece) if part["encoding"] == "base64" else piece.encode()
                offset = part["next_offset"]
            assert found == whole


async def test_lists_come_in_pages_that_fit(daemon: Daemon) -> None:
    """Pages have no gap and no repetition, for any requested size."""
    async with connect(daemon.url) as session:
        for number in range(8):
            titled = {"title": f"{number} " + "😀" * 240, "messages": [{"role": "user", "content": "a"}]}
            made = await bounded(session, "conversation_append", **titled)
            tags = [f"{tag}" + "t" * 190 for tag in range(60)]
            await session.call_tool("conversation_update", {"continuation_id": made["continuation_id"], "tags": tags})
        hay = [{"role": "user", "content": f"needle {'n' * 1_500}"}] * 150
        await bounded(session, "conversation_append", messages=hay)
        lists: list[tuple[str, str, dict[str, Any], str, int]] = [
            ("conversation_list", "conversations", {}, "continuation_id", 9),
            ("conversation_search", "hits", {"query": "needle"}, "seq", 150),
        ]
        for tool, items, arguments, key, expected in lists:
            seen: list[str] = []
            pages, cursor = 0, None
            while pages == 0 or cursor is not None:
                listed = await bounded(session, tool, limit=200, cursor=cursor, **arguments)
                seen += [each[key] for each in listed[items]]
                pages, cursor = pages + 1, listed["next_cursor"]
            assert (len(seen), len(set(seen))) == (expected, expected)
            assert pages > 1


DENSE = {"hex": "".join(f"{number:08x}" for number in range(20_000)), "Han": "漢字仮名交文" * 10_000}
CLIENTS = {"someone": (40_000, 10_000), "codex-mcp-client": (40_000, 10_000), "claude-code": (49_900, 25_000)}
"""Characters and tokens that a client shows of an answer."""


def fits(result: CallToolResult, client: str) -> bool:
    """Return whether text and structure are shown whole."""
    (text,) = result.content
    assert isinstance(text, TextContent)
    chars, tokens = CLIENTS[client]
    shown = (text.text, json.dumps(result.structuredContent, ensure_ascii=False, separators=(",", ":")))
    return all(
        len(each.encode("utf-16-le")) // 2 <= chars and max(text_tokens(each), len(each.encode()) // 4) <= tokens
        for each in shown
    )


@pytest.mark.parametrize("client", CLIENTS)
@pytest.mark.parametrize("dense", DENSE.values(), ids=DENSE)
async def test_answers_of_every_long_tool_fit_what_their_client_shows(
    daemon: Daemon, provider: ProviderServer, client: str, dense: str
) -> None:
    """Though a token may be two characters only; the parts still are the whole."""
    rows = [{"role": "user", "content": f"needle {dense[place : place + 900]}"} for place in range(0, 90_000, 900)]
    async with connect(daemon.url, client=client) as session:

        async def fitting(tool: str, **arguments: Any) -> dict[str, Any]:
            result = await session.call_tool(tool, arguments)
            assert not result.isError, result.content
            assert fits(result, client), (tool, result.content[0].text[:300])
            assert result.structuredContent is not None
            return result.structuredContent

        name = (await fitting("conversation_append", messages=rows))["continuation_id"]
        assert (await fitting("conversation_get", continuation_id=name, limit=200))["next_before_seq"]
        assert (await fitting("conversation_export", continuation_id=name))["next_after_seq"] is not None
        assert (await fitting("conversation_search", query="needle", limit=200))["hits"]
        file = (await fitting("file_put", name="dense", content=dense))["file_id"]
        assert (await fitting("file_get", file_id=file))["next_offset"]
        binary = base64.b64encode(bytes(range(256)) * 400).decode()
        file = (await fitting("file_put", name="binary", content_base64=binary))["file_id"]
        assert (await fitting("file_get", file_id=file))["next_offset"]
        for tool in ("chat", "analyze", "codereview"):
            provider.script(kimi_answer(dense, reasoning=""))
            answer = await fitting(tool, prompt="Tell me everything.")
            content, offset = answer["content"], answer["next_offset"]
            while offset is not None:
                where = {"seq": answer["seq"], "char_offset": offset}
                page = await fitting("conversation_get", continuation_id=answer["continuation_id"], **where)
                content, offset = content + page["messages"][0]["content"], page["messages"][0]["next_offset"]
            assert content == dense
