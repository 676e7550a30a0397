"""Each form in which clients send arguments gives the same turn, for each workflow tool."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import orjson
import pytest

from exai.app import App
from exai.errors import Conflict, InvalidArgument
from exai.mcp.core.protocol import Call, CallContext, ClientInfo
from exai.mcp.features.schemas import portable_schema
from exai.mcp.features.tools import Arguments
from exai.models import LOCAL_OWNER, Message
from exai.tools.chat import ChatArguments
from exai.tools.consensus import ConsensusArguments
from exai.tools.registry import build_tools
from exai.tools.workflow import arguments_of as arguments_of_workflow
from exai.workflows import load_workflows
from tests.integration.conversations.conftest import Rig
from tests.integration.workflows.conftest import called, quiet, rows_of

NATIVE: dict[str, Any] = {
    "prompt": "Why does it hang, and when?",
    "files": ["app.py", "new.py:1"],
    "focus": "locks",
    "findings": ["high: it waits, it seems (a.py:3)", "alone it ends"],
    "model": "kimi-k3",
    "ask_model": True,
}
OWN: dict[str, dict[str, Any]] = {
    "debug": {"hypothesis": "A lock is held twice."},
    "tracer": {"target": "open_app"},
    "planner": {"revises": 2, "branch": "other"},
    "codereview": {"diff": "uncommitted"},
    "precommit": {"diff": "unstaged"},
}
CHAT: dict[str, Any] = {
    **{name: NATIVE[name] for name in ("prompt", "model")},
    "files": ["app.py", "new.py"],
    "system": "Be short.",
    "max_output_tokens": 4_000,
    "thinking": "high",
    "web_search": False,
}
CONSENSUS: dict[str, Any] = {
    **{name: NATIVE[name] for name in ("prompt", "files", "focus")},
    "models": ["kimi-k3", "kimi-k3"],
    "stances": "for_against",
    "rank": False,
}
CAMEL = {"askModel": "ask_model", "Focus": "focus", "Prompt": "prompt", "Findings": "findings", "Model": "model"}
CAMEL |= {"Files": "files", "maxOutputTokens": "max_output_tokens", "webSearch": "web_search", "Models": "models"}
OLDER = {"step": "prompt", "focus_on": "focus", "use_assistant_model": "ask_model", "revises_step_number": "revises"}
OLDER |= {"branch_id": "branch", "target_description": "target", "relevant_files": "files", "compare_to": "diff"}
OLDER_CHAT = {"absolute_file_paths": "files", "thinking_mode": "thinking", "use_websearch": "web_search"}
COUNTERS = {"step_number": 1, "total_steps": 3, "next_step_required": False, "confidence": "certain"}
COUNTERS |= {"files_checked": ["a.py"], "relevant_context": [], "is_step_revision": False}
PANEL_COUNTERS = {"current_model_index": 0, "model_responses": [], "images": [], "findings": "None yet."}
EMPTY = ("", None, "null")
ARBITER = b"You decide between answers"
EXPERTS = [name for name, workflow in load_workflows().items() if "files" not in workflow.header.without]


def arguments_of(tool: str) -> dict[str, Any]:
    if tool in ("chat", "consensus"):
        return CHAT if tool == "chat" else CONSENSUS
    without = load_workflows()[tool].header.without
    return {name: value for name, value in NATIVE.items() if name not in without} | OWN.get(tool, {})


def as_strings(native: Mapping[str, Any]) -> dict[str, Any]:
    """Each value as text, as a client sends that does not use the schema."""
    texts = {name: str(value).lower() if value in (True, False) else str(value) for name, value in native.items()}
    return texts | {name: "\n".join(value) for name, value in native.items() if isinstance(value, list)}


def as_json_texts(native: Mapping[str, Any]) -> dict[str, Any]:
    return {name: json.dumps(value) if isinstance(value, list) else value for name, value in native.items()}


def with_nothing(tool: str, native: Mapping[str, Any]) -> dict[str, Any]:
    """All that is left out is sent as "", null and "null"."""
    names = portable_schema(TOOLS[tool])["properties"].keys() - native.keys()
    return {**native, **{name: EMPTY[place % len(EMPTY)] for place, name in enumerate(sorted(names))}}


def renamed(native: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    back = {own: name for name, own in names.items()}
    return {back.get(name, name): value for name, value in native.items()}


def as_older(tool: str, native: Mapping[str, Any]) -> dict[str, Any]:
    """The call of the same tool of the system that EXAI replaces."""
    if tool == "chat":
        return renamed(native, OLDER_CHAT)
    counters = {**COUNTERS, **PANEL_COUNTERS} if tool == "consensus" else COUNTERS
    return {**renamed(native, OLDER), **({} if tool == "challenge" else counters)}


def forms(tool: str) -> dict[str, dict[str, Any]]:
    native = arguments_of(tool)
    return {
        "native": native,
        "strings": as_strings(native),
        "json": as_json_texts(native),
        "nothing": with_nothing(tool, native),
        "camel": renamed(native, CAMEL),
        "older": as_older(tool, native),
    }


TOOLS: dict[str, type[Arguments]] = {
    **{name: arguments_of_workflow(workflow) for name, workflow in load_workflows().items()},
    "chat": ChatArguments,
    "consensus": ConsensusArguments,
}


def turn_of(rows: tuple[Message, ...]) -> list[Any]:
    """The stored rows of a turn, without the values that differ between turns."""
    return [(row.seq, row.role, row.kind, row.content, dict(row.metadata)) for row in rows]


@pytest.mark.parametrize("tool", TOOLS)
async def test_six_forms_of_the_arguments_are_one_turn(rig: Rig, rooted: App, repository: Path, tool: str) -> None:
    """Facts of real clients: every one of these has been sent by one."""
    turns = []
    for form, given in forms(tool).items():
        before = len(rig.provider.chats)
        result = await called(rooted, tool, given, directory=str(repository))
        answer = result["structuredContent"]
        asked = sorted(orjson.dumps(each.body) for each in rig.provider.chats[before:])
        if tool == "consensus":
            # What the arbiter is asked names the answers by their numbers, which are those of their ends.
            asked = [each for each in asked if ARBITER not in each]
        rows = () if tool == "consensus" else turn_of(await rows_of(rooted, answer["continuation_id"]))
        turns.append((rows, asked, answer.get("findings"), answer.get("next"), answer.get("read")))
        assert turns[-1] == turns[0], form
        if form == "older":
            assert answer["understood"], form
            assert "note: understood: " in result["content"][0]["text"], form
    if tool in (*EXPERTS, "consensus"):
        assert any("app.py" in each for each in turns[0][4])


@pytest.mark.parametrize("given", [{"next_step_required": True}, {"next_step_required": "true"}])
@pytest.mark.parametrize("tool", ["debug", "codereview", "precommit", "planner"])
async def test_another_step_that_is_announced_is_recorded_only(rig: Rig, tool: str, given: dict[str, Any]) -> None:
    """The older tools asked a model after the last step; so do their prompts here."""
    answer = await called(rig.app, tool, {"step": "One.", "step_number": 1, "total_steps": 2, **given})
    found = answer["structuredContent"]
    assert (found["step"], found["model"]) == (1, None)
    assert "next_step_required: taken as ask_model false" in found["understood"]
    assert rig.provider.chats == []


async def test_confidence_never_skips_the_model(rig: Rig) -> None:
    """However certain a caller is."""
    for confidence in ("certain", "almost_certain", 1):
        await called(rig.app, "debug", {"step": "Done.", "confidence": confidence, "next_step_required": False})
    assert len(rig.provider.chats) == 3


async def test_issues_of_older_tools_are_findings(rig: Rig) -> None:
    """Objects with a severity and a description."""
    issues = [{"severity": "high", "description": "It leaks.", "file": "a.py", "line": 3}, {"description": "Odd."}]
    answer = (await called(rig.app, "codereview", {"step": "Look.", "issues_found": issues}))["structuredContent"]
    assert [(each["severity"], each["text"], each["file"], each["line"]) for each in answer["findings"]] == [
        ("high", "It leaks.", "a.py", 3),
        (None, "Odd.", None, None),
    ]


async def test_an_unknown_argument_is_refused_by_its_name(rig: Rig) -> None:
    with pytest.raises(ValueError, match="depth_of_field"):
        await called(rig.app, "debug", {"prompt": "Why?", "depth_of_field": 3})
    assert (await rig.app.conversations.list(LOCAL_OWNER)).conversations == ()


async def test_keys_and_revisions_may_come_in_meta(rig: Rig) -> None:
    """A key in `_meta` adds nothing to the schema; the revision protects the pages that were read."""
    registry = build_tools(rig.app)
    method = next(each for each in registry.feature().methods if each.name == "tools/call")
    assert method.work is not None

    async def send(meta: dict[str, Any], **arguments: Any) -> dict[str, Any]:
        params = {"name": "debug", "arguments": arguments, "_meta": meta}
        return await method.work(Call(1, method, params, "", ClientInfo()), CallContext(LOCAL_OWNER, "r", quiet))

    first = await send({"exai/idempotencyKey": "k"}, prompt="Why?")
    again = await send({"exai/idempotencyKey": "k"}, prompt="Why?")
    assert (again["structuredContent"]["duplicate"], len(rig.provider.chats)) == (True, 1)
    key = first["structuredContent"]["continuation_id"]
    with pytest.raises(Conflict, match="revision"):
        await send({"exai/expectedRevision": 1}, prompt="And?", continuation_id=key)
    assert method.terms_of is not None
    terms = method.terms_of(Call(1, method, {"name": "debug"}, "", ClientInfo()))
    assert terms.join_key is not None
    for meta, joined in (({}, True), ({"exai/idempotencyKey": "k"}, False)):
        params = {"name": "debug", "arguments": {"prompt": "x"}, "_meta": meta}
        assert (terms.join_key(Call(1, method, params, "", ClientInfo())) is not None) == joined


@pytest.mark.parametrize("tool", [*load_workflows(), "chat", "conversation_append"])
async def test_a_revision_without_its_conversation_is_refused(rig: Rig, tool: str) -> None:
    """Rather than ignored: the caller believes that the call is protected. 0 is that of a new conversation."""
    given = {"messages": [{"role": "user", "content": "x"}]} if tool == "conversation_append" else {"prompt": "What?"}
    with pytest.raises(InvalidArgument, match=r"^expected_revision: is 3 without a continuation_id\. Give the"):
        await called(rig.app, tool, {**given, "expected_revision": 3})
    assert rig.provider.chats == []
    assert (await rig.app.conversations.list(LOCAL_OWNER)).conversations == ()
    if tool in ("chat", "conversation_append"):
        await called(rig.app, tool, {**given, "expected_revision": 0})
