"""The product's tools without services behind them, and a good call of each."""

from __future__ import annotations

from typing import Any
from unittest.mock import Mock
from uuid import UUID

from exai.app import App
from exai.mcp.features.tools import ToolSpec
from exai.tools.registry import build_tools

ONE, TWO = str(UUID(int=1)), str(UUID(int=2))

CALLS: dict[str, dict[str, Any]] = {
    "chat": {
        "prompt": "Why?",
        "model": "kimi-k3",
        "continuation_id": ONE,
        "max_output_tokens": 100,
        "thinking": "low",
        "files": [ONE, TWO],
        "expected_revision": 3,
    },
    "conversation_append": {
        "messages": [{"role": "user", "content": "Hello.", "metadata": {"a": [1, "2", None]}}],
        "title": "T",
        "files": [ONE],
    },
    "conversation_get": {"continuation_id": ONE, "limit": 5, "before_seq": 7},
    "conversation_list": {"limit": 5, "cursor": "x"},
    "conversation_search": {"query": "words", "role": "user", "limit": 5, "since": "2026-01-01T00:00:00+00:00"},
    "conversation_fork": {"continuation_id": ONE, "at_seq": 3},
    "conversation_update": {"continuation_id": ONE, "tags": ["a", "b"], "metadata": {"a": {"b": ""}}, "title": "T"},
    "conversation_delete": {"continuation_id": ONE, "restore": True, "expected_revision": 4},
    "conversation_export": {"continuation_id": ONE, "format": "jsonl", "after_seq": 4, "max_chars": 2_000},
    "conversation_import": {"text": "...", "format": "jsonl", "continuation_id": ONE},
    "file_put": {"name": "a.md", "content": "# A"},
    "file_get": {"file_id": ONE, "offset": 3, "limit": 10},
    "file_list": {"continuation_id": ONE, "limit": 3},
    "file_link": {"continuation_id": ONE, "file_ids": [ONE, TWO]},
    "file_delete": {"file_id": ONE},
    "listmodels": {"provider": "kimi"},
    "status": {},
    "version": {},
    "usage": {"by": "day", "since": "2026-01-01"},
    "analyze": {"prompt": "How does it work?", "files": ["src", "a.py:10-80"], "focus": "the cache"},
    "challenge": {"prompt": "It is never None.", "continuation_id": ONE, "files": [ONE], "model": "kimi-k3"},
    "codereview": {"prompt": "Is it right?", "files": [ONE], "findings": ["high: x (a.py:3)"], "diff": "main...HEAD"},
    "debug": {"prompt": "Why?", "hypothesis": "A race.", "findings": ["it hangs", "alone"], "ask_model": False},
    "docgen": {"prompt": "Document it.", "files": [TWO], "model": "kimi-k3"},
    "planner": {"prompt": "Plan it.", "continuation_id": ONE, "revises": 3, "branch": "other"},
    "precommit": {"prompt": "May it go?", "files": [ONE, TWO], "diff": "staged", "ask_model": True},
    "refactor": {"prompt": "Split it.", "files": ["src/*.py"], "focus": "size"},
    "secaudit": {"prompt": "Is it safe?", "files": ["src"], "continuation_id": ONE},
    "testgen": {"prompt": "Test it.", "files": ["src"], "findings": ["no test of (a.py)"]},
    "thinkdeep": {"prompt": "Which way?", "focus": "cost", "ask_model": True},
    "tracer": {"prompt": "Who calls it?", "target": "open_app", "files": ["src"]},
    "consensus": {
        "prompt": "Postgres or SQLite?",
        "models": ["kimi-k3", "glm-5.3"],
        "continuation_id": ONE,
        "stances": "for_against",
        "rank": True,
        "files": [ONE, TWO],
        "focus": "cost",
    },
}
"""By tool, arguments as its schema asks for them."""


def all_tools(tools: str = "all") -> dict[str, ToolSpec]:
    """Return every tool by name, or those of another setting; none can be called."""
    app: Any = Mock(spec=[*App.__slots__])
    app.settings.tools = tools
    return {spec.name: spec for spec in build_tools(app)}
