"""Errors state where a value was and what was wrong with it, and repeat little of it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from exai.errors import MAX_SHOWN_CHARS
from exai.mcp.features.schemas import portable_schema
from exai.mcp.features.texts import UNDERSTOOD
from tests.support.client import connect
from tests.support.daemon import Daemon
from tests.support.heads import head_of, notes_of
from tests.support.surface import CALLS, ONE, all_tools

HUGE = "y" * 600_000
ANSWER_BYTES = 12_000
"""Of a refusal, text and structure together: sentences, and 200 characters of a value in each."""


def spoilt(tool: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Calls with one argument that is far too long, or a name that is."""
    properties = portable_schema(all_tools()[tool].arguments)["properties"]
    for name, part in properties.items():
        if part.get("type") == "string":
            yield name, {**CALLS[tool], name: HUGE}
        elif part.get("type") == "array":
            yield name, {**CALLS[tool], name: [HUGE]}
        else:
            yield name, {**CALLS[tool], name: HUGE}
    yield "a name", {**CALLS[tool], HUGE: 1}


async def test_refusals_repeat_little_of_what_was_sent(daemon: Daemon) -> None:
    """Every argument of every tool; calls that are accepted are not examined."""
    odd: list[tuple[str, dict[str, Any]]] = [
        ("conversation_append", {"messages": [{"role": HUGE, "content": "a"}]}),
        ("conversation_append", {"messages": [{"role": "user", "content": "a", HUGE: 1}]}),
        ("conversation_append", {"messages": [{"role": "user", "content": "a"}], "files": [f"/{HUGE}"]}),
        ("conversation_import", {"text": f'{{"exai": {{}}}}\n{{"role": "{HUGE}"}}', "format": "jsonl"}),
        ("conversation_import", {"text": f"# {HUGE}\n\n## {HUGE}\n", "format": "markdown"}),
        ("file_put", {"path": f"/{HUGE}"}),
        ("chat", {"prompt": "a", "files": f"a,{HUGE}"}),
        ("chat", {"prompt": "a", "continuation_id": ONE, "continuationId": HUGE}),
        ("chat", {"prompt": "a", "thinking": HUGE}),
    ]
    calls = [(tool, f"{tool} {field}", given) for tool in CALLS for field, given in spoilt(tool)]
    calls += [(tool, f"{tool} {number}", given) for number, (tool, given) in enumerate(odd)]
    refused = 0
    async with connect(daemon.url) as session:
        for tool, where, given in calls:
            result = await session.call_tool(tool, given)
            if result.isError:
                refused += 1
                said = result.model_dump_json()
                assert len(said) < ANSWER_BYTES, (where, len(said), said[:500])
                assert HUGE[: MAX_SHOWN_CHARS + 10] not in said, (where, said[:500])
                assert "carried out" not in said, where
    assert refused > len(calls) // 2


async def test_an_answer_says_how_its_arguments_were_understood(daemon: Daemon) -> None:
    """In its text and in its structure, which still has the shape that the tool promises: the client checks it."""
    async with connect(daemon.url) as session:
        result = await session.call_tool("chat", {"question": "Why?", "model": "null", "maxOutputTokens": "500"})
        (content,) = result.content
        assert content.type == "text"
        assert result.structuredContent is not None
        understood = result.structuredContent[UNDERSTOOD]
        assert understood[:2] == ["question: taken as prompt", "model: 'null' taken as left out"]
        assert notes_of(content.text)[0] == f"understood: {'; '.join(understood)}"
        name = head_of(content.text)["continuation_id"]
        for tool, given in (
            ("conversation_get", {"continuationId": name, "limit": "5"}),
            ("conversation_list", {"tag": "none-has-it"}),
            ("conversation_search", {"q": "why"}),
            ("conversation_append", {"messages": {"role": "human", "content": "a"}, "thread_id": name}),
            ("conversation_update", {"id": name, "tags": "one", "metadata": '{"a": 1}'}),
            ("conversation_export", {"id": name}),
            ("conversation_fork", {"id": name, "seq": 1}),
            ("file_put", {"filename": "a.md", "text": "# A"}),
        ):
            result = await session.call_tool(tool, given)
            assert not result.isError, (tool, result.content)
            assert result.structuredContent is not None
            assert bool(result.structuredContent.get(UNDERSTOOD)) is (tool != "conversation_get"), tool
