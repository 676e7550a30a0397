"""The declarations of the tools: all that a client receives of an answer comes from its output model."""

from __future__ import annotations

import inspect
import re
import typing
from dataclasses import dataclass

import orjson
import pytest

from exai.mcp.features.results import ToolOutput
from exai.mcp.features.schemas import portable_schema
from exai.mcp.features.tools import ToolRegistry, ToolSpec
from exai.tools.registry import CORE, INSTRUCTIONS
from exai.workflows import load_workflows
from tests.support.outputs import Fixed
from tests.support.surface import all_tools

TOOLS = all_tools()
PIECES = re.compile(r" ?[^\W\d_]+|\d{1,3}| ?[^\w\s]+|_|\s+")
"""The pieces that a vocabulary such as o200k divides a text into first."""

TOKENS_PER_PIECE = 1.11
"""Of o200k, measured on this list: 7,350 tokens in 6,660 pieces."""

IN_ORDER = [
    "chat",
    *(f"conversation_{what}" for what in ("append", "get", "list", "search", "fork", "update", "delete")),
    "conversation_export",
    "conversation_import",
    *(f"file_{what}" for what in ("put", "get", "list", "link", "delete")),
    *("listmodels", "status", "version", "usage"),
    *("analyze", "challenge", "codereview", "debug", "docgen", "planner", "precommit", "refactor", "secaudit"),
    *("testgen", "thinkdeep", "tracer", "consensus"),
]


def test_the_order_of_the_list_is_kept() -> None:
    """It is part of the prompt that clients' providers cache: a new tool comes behind or between, none moves."""
    assert list(TOOLS) == IN_ORDER


def test_the_core_tools_are_offered_in_the_same_order() -> None:
    """A client with room for few tools still asks, reviews, reads and finds."""
    core = list(all_tools("core"))
    assert core == [name for name in TOOLS if name in CORE]
    assert {"chat", "conversation_get", "conversation_search", "listmodels"} <= set(core)


def test_the_tools_that_clients_should_load_at_their_start() -> None:
    """Claude Code finds the others by search; each of these costs every conversation its schema."""
    loaded = {name for name, spec in TOOLS.items() if spec.meta.get("anthropic/alwaysLoad") is True}
    assert loaded == {"chat", "codereview", "consensus", "conversation_get"} & set(TOOLS)


def test_the_instructions_fit_what_clients_show_and_name_tools_that_exist() -> None:
    """Claude Code cuts them at 2 KB."""
    assert len(INSTRUCTIONS.encode()) < 2_000
    named = set(re.findall(r"\b[a-z]+_[a-z]+\b", INSTRUCTIONS)) - {"continuation_id", "file_ids", "ask_model"}
    assert named <= set(TOOLS)


@pytest.mark.parametrize("spec", TOOLS.values(), ids=list(TOOLS))
def test_a_handler_returns_the_output_that_its_tool_declares(spec: ToolSpec) -> None:
    """The annotation is what mypy checked the handler's returns against."""
    handler = inspect.unwrap(spec.handler)
    module = inspect.getmodule(handler)
    assert vars(module)[handler.__annotations__["return"]] is spec.output
    assert issubclass(spec.output, ToolOutput)
    if spec.answer_from is not None:
        made = typing.get_type_hints(spec.answer_from, vars(module))["return"]
        assert made in (spec.output, typing.Self)
        assert typing.cast("typing.Any", spec.answer_from).__self__ is spec.output


def test_an_output_without_a_text_is_refused_at_start() -> None:
    """Half of the clients would show their model nothing."""

    @dataclass
    class Silent(ToolOutput):
        count: int

    spec = TOOLS["version"]
    with pytest.raises(TypeError, match="Silent must define as_text"):
        ToolRegistry([ToolSpec("silent", "", "", spec.arguments, Silent, spec.handler)])
    ToolRegistry([ToolSpec("audible", "", "", spec.arguments, Fixed, spec.handler)])


def test_an_output_that_is_no_dataclass_of_its_own_is_refused_at_start() -> None:
    """It would inherit the constructor of its base, without its own fields."""

    class Undeclared(Fixed):
        count: int

    spec = TOOLS["version"]
    with pytest.raises(TypeError, match="Undeclared must be a dataclass"):
        ToolRegistry([ToolSpec("undeclared", "", "", spec.arguments, Undeclared, spec.handler)])


def test_the_list_of_all_tools_stays_small() -> None:
    """Every conversation of a client pays for it."""
    listed = orjson.dumps({"tools": ToolRegistry(TOOLS.values())._described}).decode()
    assert len(listed) < 36_000
    assert len(PIECES.findall(listed)) * TOKENS_PER_PIECE < 9_000


def test_arguments_that_are_not_listed_are_accepted() -> None:
    """Few clients need them, and each listed one costs all clients tokens."""
    for name in load_workflows():
        spec = TOOLS[name]
        assert "idempotency_key" not in portable_schema(spec.arguments)["properties"]
        assert spec.arguments.model_validate({"prompt": "x", "idempotency_key": "k"})
