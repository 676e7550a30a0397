"""The parts of a result that clients show their model, as observed: each part is sufficient to continue.

Claude Code shows the structure, Codex the structure cut in the middle, Gemini CLI the text cut after its first fifth,
OpenAI's Agents SDK and LangChain the text; others show both, or the first block, or cut at some length.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

import pytest
from mcp import ClientSession
from mcp.types import CallToolResult

from tests.support.client import connect
from tests.support.daemon import Daemon
from tests.support.heads import body_of
from tests.support.provider_server import ProviderServer, kimi_answer

Way = Callable[[CallToolResult], str]
LONG = "".join(f'{number}: "Größe" \\ 漢字\n' for number in range(5_000))
PAGE_CHARS = 1_500


def text(result: CallToolResult) -> str:
    return "\n".join(block.text for block in result.content if block.type == "text")


def first_block(result: CallToolResult) -> str:
    return result.content[0].text if result.content and result.content[0].type == "text" else ""


def structure(result: CallToolResult) -> str:
    return json.dumps(result.structuredContent, ensure_ascii=False, separators=(",", ":"))


def both(result: CallToolResult) -> str:
    return f"{text(result)}\n{structure(result)}"


def cut(way: Way, chars: int) -> Way:
    return lambda result: way(result)[:chars]


def middle_cut(way: Way, chars: int, first: float) -> Way:
    """Keep the beginning and the end."""

    def shown(result: CallToolResult) -> str:
        whole = way(result)
        kept = int(chars * first)
        return whole if len(whole) <= chars else f"{whole[:kept]}\n...\n{whole[kept - chars :]}"

    return shown


def filed(way: Way) -> Way:
    """Show a longer one as the name of a file and its first 2 KB."""
    return lambda result: shown if len(shown := way(result)) <= 50_000 else f"Saved to /tmp/x.\n{shown[:2_000]}"


def preferring_structure(result: CallToolResult) -> str:
    return text(result) if result.structuredContent is None else structure(result)


WAYS: dict[str, Way] = {
    "Claude Code": filed(preferring_structure),
    "Claude Desktop": text,
    "Codex, known models": middle_cut(preferring_structure, 40_000, 0.5),
    "Codex, other models": middle_cut(preferring_structure, 10_000, 0.5),
    "Gemini CLI": middle_cut(text, 40_000, 0.2),
    "Gemini CLI with little room": middle_cut(text, 2_500, 0.2),
    "Cursor": text,
    "VS Code": both,
    "Windsurf": cut(text, 30_000),
    "Augment": first_block,
    "OpenAI Agents": text,
    "OpenAI Agents, structured": structure,
    "LangChain": text,
    "official SDK, both": both,
    "official SDK, first block": first_block,
    "a client that cuts the text at 2,000": cut(text, 2_000),
    "a client that cuts the structure at 2,000": cut(structure, 2_000),
}


class Reader:
    """A model that is shown answers in one way."""

    def __init__(self, session: ClientSession, way: Way) -> None:
        self._session, self._way = session, way

    async def call(self, tool: str, **arguments: Any) -> str:
        """Call a tool and see what is shown of its answer."""
        return self._way(await self._session.call_tool(tool, arguments))


def found_field(shown: str, name: str) -> str | None:
    """Find a field in a text or in JSON, as a model does, also if the surroundings are cut off."""
    found = re.search(rf'"?\b{name}"?:\s*"?([^"|,}}\s]+)', shown)
    return None if found is None or found[1] == "null" else found[1]


def content_of(shown: str) -> str:
    """The one message on a page."""
    if shown.startswith("{"):
        content = json.loads(shown)["messages"][0]["content"]
        assert isinstance(content, str)
        return content
    body = body_of(shown)
    structure_at = body.rfind('\n{"continuation_id"')
    return re.sub(r"^#\d+ \w+: ", "", body if structure_at < 0 else body[:structure_at])


@pytest.mark.parametrize("way", WAYS)
async def test_a_model_continues_with_what_its_client_shows(daemon: Daemon, provider: ProviderServer, way: str) -> None:
    """Long answers and lists are read to their end in parts that are shown whole, and the conversation continues."""
    provider.script(kimi_answer(LONG, reasoning=""))
    async with connect(daemon.url) as session:
        reader = Reader(session, WAYS[way])
        shown = await reader.call("chat", prompt="Tell me everything.")
        name, seq = found_field(shown, "continuation_id"), found_field(shown, "seq")
        assert (seq, found_field(shown, "next_offset") is not None) == ("2", True)
        answer, offset = "", "0"
        while offset is not None:
            where = {"continuation_id": name, "seq": seq, "char_offset": offset, "max_chars": 20 * PAGE_CHARS}
            small = {**where, "max_chars": PAGE_CHARS} if "2,000" in way or "little" in way else where
            small |= {"max_chars": 6 * PAGE_CHARS} if way == "Codex, other models" else {}
            shown = await reader.call("conversation_get", **small)
            answer, offset = answer + content_of(shown), found_field(shown, "next_offset")
            if len(answer) > 20_000 and small["max_chars"] < 20 * PAGE_CHARS:
                break
        assert LONG.startswith(answer)
        assert answer == LONG or small["max_chars"] < 20 * PAGE_CHARS
        shown = await reader.call("chat", prompt="And?", continuation_id=name)
        assert "3 messages." in shown
        for number in range(5):
            await reader.call(
                "conversation_append", messages={"role": "user", "content": "x"}, title=f"Number {number}"
            )
        seen, cursor = "", ""
        while cursor is not None:
            shown = await reader.call("conversation_list", limit=2, cursor=cursor)
            seen, cursor = seen + shown, found_field(shown, "next_cursor")
        assert all(f"Number {number}" in seen for number in range(5))
        refused = await reader.call("conversation_append", messages=[{"role": "user", "content": "x"}],
                                    continuation_id=name, expected_revision=1)  # fmt: skip
        assert found_field(refused, "revision") == "4"
